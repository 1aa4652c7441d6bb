from __future__ import annotations

import itertools
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from archir.errors import ArchirError, FileError, GrowError, ScoreError
from archir.growing.batches import Augmentation
from archir.growing.config import RunConfig, read_config
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions, Training
from archir.scoring.budget import Budget, Prices
from archir.scoring.ranges import MOST_PROBLEMS

SMALL = """
[model]
factory = "models.py:seed"
[data]
source = "digits"
[budget]
parameters = 1000
"""

FULL = """
seed = 3
loss = "mse"
output = "runs/one"

[model]
factory = "package.module:seed"
arguments = { width = 8, shape = [3, 4] }

[data]
source = "train=a.npz, test=b.npz"
validation = 0.2
test = 0.3
limit = 500
normalise = false

[budget]
parameters = 60_000
flops = 1_000_000

[optimiser]
name = "adamw"
rate = 1
weight_decay = 0.0
betas = [0.8, 0.99]
decay_all = true

[augmentation]
flip = true
crop = 4
cutout = 3
mixup = 0.2

[training]
steps = 300
batch_size = 32
warmup = 10
schedule = "held"
decay = 0.3
clip = 1.0
ema = 0.02
label_smoothing = 0.1
precision = "float32"
device = "cuda:1"
channels_last = true
compile = "inductor"
evaluate_every = 20
checkpoint_every = 50

[growth]
growth_steps = 2
first_growth = 0.2
last_growth = 0.7
learn_steps = 9
refine = 5
passes = ["split", "widen{count=2}"]

[prices]
parameters = 3e-7
"""


def _read(folder: Path, text: str) -> RunConfig:
    file = folder / "run.toml"
    file.write_text(text)
    return read_config(file)


def _problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(GrowError) as caught:
        _read(folder, text)
    assert caught.value.what == f"{folder / 'run.toml'} does not make a run"
    return [line.strip() for line in caught.value.why.splitlines()]


def test_every_field_is_read(tmp_path: Path) -> None:
    config = _read(tmp_path, FULL)
    assert config.model.factory == "package.module:seed"
    assert config.model.arguments == {"width": 8, "shape": [3, 4]}
    assert (config.data.validation, config.data.test, config.data.limit) == (0.2, 0.3, 500)
    assert not config.data.normalise
    assert (config.loss, config.passes) == ("mse", ("split", "widen{count=2}"))
    assert config.budget == Budget(60_000, 1_000_000)
    assert config.options == GrowOptions(
        steps=300,
        growth_steps=2,
        first_growth=0.2,
        last_growth=0.7,
        batch_size=32,
        optimiser=OptimiserOptions("adamw", 1.0, 0.0, betas=(0.8, 0.99), decay_all=True),
        warmup=10,
        schedule="held",
        decay=0.3,
        augmentation=Augmentation(True, 4, 3, 0.2),
        clip=1.0,
        ema=0.02,
        label_smoothing=0.1,
        precision="float32",
        device="cuda:1",
        channels_last=True,
        compile="inductor",
        learn_steps=9,
        refine=5,
        prices=Prices(parameters=3e-7),
        evaluate_every=20,
        checkpoint_every=50,
        seed=3,
    )
    assert (config.output, config.base, config.text) == (tmp_path / "runs/one", tmp_path, FULL)


def test_shards_are_asked_for_by_the_file_or_by_who_reads_it(tmp_path: Path) -> None:
    config = _read(tmp_path, SMALL + "[training]\nsharded = true\n")
    assert config.options == GrowOptions(sharded=True) and config.on(None).options == config.options
    assert config.on("cpu", sharded=False).options == GrowOptions(device="cpu")
    assert _read(tmp_path, SMALL).on(None, sharded=True).options.sharded
    assert "sharded and channels_last" in " ".join(
        _problems(tmp_path, SMALL + "[training]\nsharded = true\nchannels_last = true\n")
    )


def test_defaults_are_those_of_the_options(tmp_path: Path) -> None:
    config = _read(tmp_path, SMALL)
    assert config.options == GrowOptions()
    assert (config.loss, config.output, config.passes) == ("cross_entropy", tmp_path / "run", ())


def test_another_rule_is_part_of_the_text(tmp_path: Path) -> None:
    config = _read(tmp_path, SMALL).with_rule("net2net")
    assert config.options == GrowOptions(rule="net2net")
    assert config.text == f"# with --rule net2net\n{SMALL}"
    assert _read(tmp_path, SMALL + '[growth]\nrule = "random"\n').options.rule == "random"
    assert "did you mean random" in " ".join(_problems(tmp_path, SMALL + '[growth]\nrule = "randon"\n'))


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = """
losss = "mse"
loss = "cross_entropi"
[model]
factory = "a:b"
graph = "c.archir"
[data]
sorce = "digits"
[budget]
parameters = -1
[optimiser]
name = "adam"
[training]
stepps = 4
batch_size = 2.5
[growth]
radius = inf
passes = "split"
[prices]
flops = "much"
"""
    assert sorted(_problems(tmp_path, text)) == sorted(
        [
            "there is no losss: did you mean loss?",
            "model: the model needs one of factory and graph",
            "there is no data.sorce: did you mean source or workers?",
            "data.source is missing",
            "optimiser.name: there is no optimiser 'adam': did you mean adamw?",
            "there is no training.stepps: did you mean steps?",
            "training.batch_size is 2.5, not a whole number from 1",
            "growth.radius is inf, not a finite number above 0",
            "growth.passes is 'split', not a list of texts",
            "prices.flops is 'much', not a finite number from 0",
            "budget.parameters is -1, not a whole number from 0",
            "loss: there is no loss 'cross_entropi'; did you mean cross_entropy?",
        ]
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('factory = "models.py:seed"', "", "the model needs one of factory and graph"),
        ('factory = "models.py:seed"', "factory = 3", "model.factory is 3, not text"),
        ('factory = "models.py:seed"', 'factory = "a:b"\narguments = [1]', "model.arguments is [1], not a table"),
        ('factory = "models.py:seed"', 'graph = "a.archir"\narguments = { a = 1 }', "a graph takes none"),
        (
            'factory = "models.py:seed"',
            'factory = "a:b"\ndynamic = ["x1=T", "x:0=T"]',
            "model: dynamic: 'x1=T' is not an axis of an input with a name; 'x:0=T': axis 0 is the batch",
        ),
        ('factory = "models.py:seed"', 'graph = "a.archir"\ndynamic = ["x:1=T"]', "a graph says itself which axes"),
        (
            'source = "digits"',
            'source = "digits"\nvalidation = 1.5',
            "not a finite number above 0 and below 1",
        ),
        ('source = "digits"', 'source = "digits"\nlimit = 0', "data.limit is 0, not a whole number from 1"),
        ("parameters = 1000", "", "budget: a budget needs one of parameters, flops, peak_bytes, latency"),
        ("parameters = 1000", "parameters = true", "budget.parameters is True, not a whole number"),
        ("parameters = 1000", "parameters = 9\n[training]\nsteps = 0", "steps is 0, not a whole number from 1"),
        ("parameters = 1000", "parameters = 9\n[training]\nwarmup = 5000", "warm-up of 5000 steps does not fit"),
        ("parameters = 1000", "parameters = 9\n[training]\nschedule = 'cosin'", "did you mean cosine?"),
        ("parameters = 1000", "parameters = 9\n[training]\nprecision = 'bfloat8'", "did you mean bfloat16"),
        (
            "parameters = 1000",
            "parameters = 9\n[training]\nema = 0.999",
            "ema is 0.999, not a finite number from 0 to 0.5",
        ),
        ("parameters = 1000", "parameters = 9\n[optimiser]\nbetas = [0.9]", "optimiser.betas[1] is missing"),
        ("parameters = 1000", "parameters = 0", "budget: parameters is 0, not positive"),
        ("parameters = 1000", "parameters = 9\n[optimiser]\nbetas = [0, 1, 2]", "not a list of 2 values"),
        ("parameters = 1000", "parameters = 9\n[optimiser]\nbetas = [0, 1]", "optimiser.betas[1] is 1, not a finite"),
        ("parameters = 1000", "parameters = 9\n[training]\ndevice = 'gpu'", "there is no device 'gpu': write auto"),
        ("parameters = 1000", "parameters = 9\n[training]\nsteps = 3", "8 growth steps do not fit into 3 steps"),
        ("parameters = 1000", "parameters = 9\n[augmentation]\nflipp = true", "did you mean flip?"),
        (
            "parameters = 1000",
            "parameters = 9\n[growth]\nlast_growth = 0",
            "first_growth is 0.2, after last_growth, which",
        ),
        ("parameters = 1000", "parameters = 9\n[growth]\npasses = ['']", "growth.passes[0] is '', not text that says"),
        ('source = "digits"', 'source = "digits"\nbase = {}', "there is no data.base"),
        ('factory = "models.py:seed"', 'factory = " "', "model.factory is ' ', not text that says something"),
        ("[model]", "output = ''\n[model]", "output is '', not text that says something"),
        ("[budget]\nparameters = 1000", "budget = 4", "budget is 4, not a table"),
    ],
)
def test_values_are_checked(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in SMALL
    text = SMALL.replace(old, new)
    # A key of the top level has to stand above the tables.
    text = "budget = 4\n" + text.replace("budget = 4", "") if new == "budget = 4" else text
    assert expected in " ".join(_problems(tmp_path, text))


ODD = ("true", "nan", "-inf", "-1", "[]", "[[1]]", "'x'", "''", "{}", "{a = nan}", "1979-05-27", "1e400", "9" * 400)
"""Values that next to no key takes."""


@pytest.mark.parametrize(
    "table", ["", "model", "data", "budget", "optimiser", "augmentation", "training", "growth", "prices"]
)
def test_odd_values_are_taken_or_refused_by_name(tmp_path: Path, table: str) -> None:
    keys = {
        "": ("seed", "loss", "output"),
        "model": ("factory", "arguments"),
        "data": ("source", "validation", "test", "limit", "normalise", "workers"),
        "budget": ("parameters", "flops", "peak_bytes", "latency"),
        "training": tuple(f.name for f in fields(Training)),
        "growth": (
            "growth_steps",
            "first_growth",
            "radius",
            "rule",
            "agreement",
            "batch_statistics",
            "passes",
            "plugins",
        ),
        "optimiser": ("name", "rate", "weight_decay", "momentum", "betas", "nesterov", "decay_all"),
        "augmentation": ("flip", "crop", "cutout", "mixup"),
        "prices": ("parameters", "flops", "peak_bytes", "latency"),
    }
    small = {"model": {"factory": "'a:b'"}, "data": {"source": "'digits'"}, "budget": {"parameters": "9"}}
    refused = 0
    for key, value in itertools.product(keys[table], ODD):
        tables: dict[str, dict[str, str]] = {"": {}} | {name: dict(t) for name, t in small.items()}
        tables.setdefault(table, {})[key] = value
        text = "".join(
            (f"[{name}]\n" if name else "") + "".join(f"{k} = {v}\n" for k, v in t.items())
            for name, t in tables.items()
        )
        path = tmp_path / "run.toml"
        path.write_text(text)
        try:
            read_config(path)
        except GrowError as error:
            refused += 1
            assert (
                (key in error.why or "there is no optimiser" in error.why)
                and str(path) in error.what
                and len(str(error)) < 600
            ), (key, value, str(error))
    assert refused > len(ODD) / 2 * len(keys[table])


def test_a_file_of_thousands_of_wrong_keys_is_told_in_a_few_lines(tmp_path: Path) -> None:
    text = "".join(f"{'k' * 200}{i} = 1\n" for i in range(3000)) + SMALL
    problems = _problems(tmp_path, text)
    assert len(problems) == MOST_PROBLEMS + 1 and problems[-1] == f"and {3000 - MOST_PROBLEMS} more"
    assert max(map(len, problems)) < 300


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no file"):
        read_config(tmp_path / "absent.toml")
    with pytest.raises(FileError, match=r"is not TOML\n.*line 1"):
        _read(tmp_path, "a = = 3")
    with pytest.raises(FileError, match="cannot read"):
        read_config(tmp_path)
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(FileError, match="cannot read"):
        read_config(tmp_path / "run.toml")


def test_losses_may_be_functions_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "losses.py").write_text(
        "def double(outputs, targets):\n    return 2 * (outputs - targets).square().sum(1)\n"
    )
    config = _read(tmp_path, 'loss = "losses.py:double"\n' + SMALL)
    outputs, targets = torch.ones(3, 2), torch.zeros(3, 2)
    assert config.find_loss()(outputs, targets).item() == 4.0
    for loss, kind in (("losses.py:triple", GrowError), ("absent.py:double", FileError)):
        with pytest.raises(kind):
            _read(tmp_path, f'loss = "{loss}"\n' + SMALL).find_loss()


def test_data_are_read_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "points.py").write_text(
        "import torch\ndef read():\n    return torch.arange(40.)[:, None], torch.arange(40) % 2\n"
    )
    config = _read(tmp_path, SMALL.replace('"digits"', '"points.py:read"\nlimit = 20\nvalidation = 0.25'))
    data = config.load_data()
    assert (len(data.train), len(data.validation), len(data.test)) == (15, 5, 8)


def test_other_data_start_from_the_working_directory(tmp_path: Path) -> None:
    config = _read(tmp_path, SMALL).with_data("other.npz")
    assert config.data.source == "other.npz"
    assert config.text == f"# with --data other.npz\n{SMALL}"
    with pytest.raises(ArchirError, match=r"other\.npz"):
        config.load_data()


def test_other_data_leave_the_model_where_it_is(tmp_path: Path) -> None:
    assert _read(tmp_path, SMALL).with_data("other.npz").base == tmp_path


def test_unknown_losses_raise_when_asked_for(tmp_path: Path) -> None:
    with pytest.raises((GrowError, ScoreError)):
        _read(tmp_path, 'loss = "hinge"\n' + SMALL)
