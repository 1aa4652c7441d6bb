from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from archir.cli import demo as demonstration
from archir.cli import growing
from archir.cli.console import RunProgress
from archir.emit.check import tensors_in
from archir.errors import EmitError, FileError
from archir.growing import engine, step
from archir.growing.config import read_config
from archir.growing.controls import Control, train_controls
from archir.growing.grow import Run, grow_graph
from archir.growing.lock import lock_run
from archir.growing.run import CONTROLS, Event, open_run
from archir.ir.graph import Graph
from archir.ir.load import load
from tests.cli.run import CONFIG, FILES, archir, refused


def _change(folder: Path, old: str, new: str) -> Path:
    assert old in CONFIG
    file = folder / "run.toml"
    file.write_text(CONFIG.replace(old, new))
    return file


def _files(run: Path) -> list[str]:
    return sorted(p.name for p in run.iterdir() if not p.name.startswith(("step-", "__pycache__")))


@pytest.mark.slow
def test_grow_carries_out_a_run(folder: Path) -> None:
    done = archir("grow", folder / "run.toml")
    assert done.code == 0, done
    for text in ("seed", "growth 1", "end", "test data, after 60 steps", "ONNX"):
        assert text in done.out
    assert "growth 1 at step 30: 460 -> " in done.err
    run = folder / "run"
    assert _files(run) == FILES
    events = open_run(run).history()
    assert [e["event"] for e in events[-3:]] == ["finished", "tested", "emitted"]
    (grown,) = (e for e in events if e["event"] == "grown")
    assert 460 < grown["parameters"] <= 700

    # What was emitted works without archir, and is the network of the last checkpoint.
    final = load(run / "step-0060.archir")
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        wanted = tensors_in(final.module().eval()(x))[0].numpy()
    np.save(folder / "x.npy", x.numpy())
    code = (
        "import sys, net, numpy as np, torch; found = net.load().eval()(torch.from_numpy(np.load(sys.argv[1])));"
        "np.save(sys.argv[2], found.detach().numpy()); print('archir' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(folder / "x.npy"), str(folder / "y.npy")]
    said = subprocess.run(command, cwd=run, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"
    np.testing.assert_allclose(np.load(folder / "y.npy"), wanted, atol=1e-6)
    session = onnxruntime.InferenceSession(run / "net.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, wanted, atol=1e-5)

    # The report tells the same again.
    told = archir("report", run)
    assert told.out.splitlines()[:4] == done.out.splitlines()[1:5]
    assert re.split(r"\s{2,}", told.out.splitlines()[0])[3:6] == ["parameters", "FLOPs", "predicted"]
    table = archir("report", run, "--markdown").out.splitlines()
    assert table[0].startswith("| step | what |") and table[1].startswith("| ---: | :--- |")
    assert json.loads(archir("report", run, "--json").out)["growth"][0]["parameters"] == grown["parameters"]
    assert archir("report", run, "--plot", folder / "again.png").code == 0
    assert (folder / "again.png").is_file()

    # A run is not overwritten; a finished one may be finished again.
    assert "there is a run in" in refused("grow", folder / "run.toml")
    again = archir("grow", folder / "run.toml", "--resume", "--quiet")
    assert again.code == 0 and again.err == ""
    assert again.out.splitlines()[:3] == done.out.splitlines()[:3]
    _change(folder, "steps = 60", "steps = 90")
    assert "another configuration" in refused("grow", folder / "run.toml", "--resume")


def test_tables_tell_of_peak_bytes_and_latency_where_they_are_bounded_or_priced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a clock that takes a microsecond for each parameter."""

    def measure(module: nn.Module, _: object) -> float:
        return 1e-6 * sum(p.numel() for p in module.parameters())

    for place in (engine, step, growing):
        monkeypatch.setattr(place, "measure_latency", measure)
    more = "parameters = 700\npeak_bytes = 10_000\n[prices]\nlatency = 1e-6"
    assert archir("grow", _change(folder, "parameters = 700", more), "--quiet", "--controls").code == 0
    (grown,) = (e for e in open_run(folder / "run").history() if e["event"] == "grown")
    assert grown["latency"] == 1e-6 * grown["parameters"]
    lines = [line.strip("| ").split(" | ") for line in archir("report", folder / "run", "--markdown").out.splitlines()]
    assert lines[0][3:7] == ["parameters", "FLOPs", "peak bytes", "latency"]
    after = [f"{grown['peak_bytes']:,}", f"{grown['parameters'] / 1000:.3f} ms"]
    assert [row[5:7] for row in lines[2:5]] == [["64", "0.460 ms"], after, after]
    tests = lines[6:]
    assert tests[0][3:5] == ["peak bytes", "latency"]
    assert [row[0] for row in tests[2:]] == [
        "seed, not grown",
        "uniformly widened",
        "the same, trained for as many FLOPs",
        "grown",
    ]
    assert tests[2][3:5] == ["64", "0.460 ms"] and tests[5][3:5] == after


def test_a_control_that_failed_takes_nothing_else_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def first_failing(*args: Any, **kwargs: Any) -> list[Control]:
        first, *others = train_controls(*args, **kwargs)
        return [replace(first, failure="the loss diverged twice"), *others]

    monkeypatch.setattr(growing, "train_controls", first_failing)
    done = archir("grow", folder / "run.toml", "--quiet", "--controls")
    assert done.code == 0 and "seed, not grown: the loss diverged twice" in done.out
    report = json.loads(archir("report", folder / "run", "--json").out)
    assert [t["loss"] is None for t in report["tested"]] == [True, False, False, False]
    cells = [line.strip("| ").split(" | ") for line in archir("report", folder / "run", "--markdown").out.splitlines()]
    assert next(row for row in cells if row[0] == "seed, not grown")[-1] == "failed"


def test_what_was_trained_beside_the_run_is_told(folder: Path) -> None:
    """In lines while it goes on, in a table of its own, and in that of the test data."""
    beside = "learn_steps = 5\nretrain = true\ncounterfactual = true"
    done = archir("grow", _change(folder, "learn_steps = 5", beside), "--controls")
    assert done.code == 0, done
    events = open_run(folder / "run").history()
    told, ungrown, finished = (
        next(e for e in events if e["event"] == k) for k in ("retrained", "counterfactual", "finished")
    )
    better = "the network from scratch is kept" if told["kept"] else "the grown one is kept"
    assert f"from scratch: {told['parameters']:,} parameters, 60 steps" in done.err
    assert (
        f"from scratch: {100 * told['accuracy']:.1f} %, {told['training_flops']:.2e} training FLOPs; grown" in done.err
    )
    assert f"grown: {100 * told['grown']['accuracy']:.1f} %; {better}" in done.err
    assert f"no growth: {100 * ungrown['accuracy']:.1f} %, {ungrown['training_flops']:.2e} training FLOPs" in done.err
    table = archir("report", folder / "run", "--markdown").out.split("\n\n")[1].splitlines()
    assert [line.strip("| ").split(" | ")[0] for line in table[2:]] == [
        "grown",
        "the same, from scratch",
        "without growth",
    ]
    assert f"{told['training_flops']:.2e}" in table[3] and f"{ungrown['training_flops']:.2e}" in table[4]
    for text in ("what the run might have ended with", "the same, from scratch", "without growth"):
        assert text in done.out
    (tested,) = (e for e in events if e["event"] == "tested")
    assert tested["name"] == ("grown, retrained" if told["kept"] else "grown")
    assert tested["training_flops"] == finished["training_flops"]
    assert json.loads(archir("report", folder / "run", "--json").out)["kept"] == finished["kept"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("parameters = 700", "parameters = 300", "the budget is below the size of the seed"),
        ('source = "digits"', 'source = "digitz"', "did you mean digits?"),
        ('source = "digits"', 'source = "absent.npz"', "absent.npz"),
        ("models.py:digits", "models.py:narrow", "mat1 and mat2 shapes cannot be multiplied"),
        ("models.py:digits", "models.py:mlp", "outputs [32, 1, 8, 4] do not fit class numbers [32]"),
        ("models.py:digits", "models.py:Branch", "models.py:21: if x.sum() > 0:"),
        ("models.py:digits", "models.py:digit", "did you mean digits?"),
        ('output = "run"', 'output = "run"\nloss = "cross_entropi"', "did you mean cross_entropy?"),
        ('output = "run"', 'output = "run"\nloss = "models.py:infinite"', "the loss"),
        ('output = "run"', 'output = "run"\nloss = "bce_with_logits"', "bce_with_logits"),
        ("learn_steps = 5", 'passes = ["splitt"]', "did you mean split"),
        ("learn_steps = 5", "learn_stepss = 5", "did you mean learn_steps or"),
    ],
)
def test_grow_tells_what_is_wrong_and_leaves_nothing(folder: Path, old: str, new: str, expected: str) -> None:
    assert expected in refused("grow", _change(folder, old, new))
    assert not (folder / "run").exists()


def test_grow_needs_its_files(folder: Path) -> None:
    assert "there is no file" in refused("grow", folder / "absent.toml")
    assert "there is no run in" in refused("grow", folder / "run.toml", "--resume")
    (folder / "broken.toml").write_text("[")
    assert "is not TOML" in refused("grow", folder / "broken.toml")


def test_losses_that_diverge_end_the_run_with_one_error(folder: Path) -> None:
    config = _change(folder, "rate = 0.05", "rate = 1e30")
    told = archir("grow", config, "--out", folder / "told").err
    assert "at step 2: going back to the last checkpoint, at a learning rate of 5e+29" in told
    error = refused("grow", config, "--quiet")
    assert "at step" in error and "lower the learning rate" in error
    assert _files(folder / "run") == ["config.toml", "fingerprint.json", "history.jsonl", "lock"]


def test_an_interrupted_run_goes_on_to_the_same_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _change(folder, "batch_size = 32", "batch_size = 32\ncheckpoint_every = 20")
    assert archir("grow", config, "--out", folder / "whole").code == 0

    def interrupted(graph: Graph, **options: Any) -> Run:
        told = options["on_event"]

        def on_event(event: Event) -> None:
            told(event)
            if event["event"] == "grown":
                raise KeyboardInterrupt

        return grow_graph(graph, **{**options, "on_event": on_event})

    monkeypatch.setattr(growing, "grow_graph", interrupted)
    done = archir("grow", config, "--out", folder / "cut")
    assert done.code == 130 and "goes on with --resume" in done.err
    monkeypatch.setattr(growing, "grow_graph", grow_graph)
    done = archir("grow", config, "--out", folder / "cut", "--resume")
    assert done.code == 0 and "going on from step 20" in done.err
    whole, cut = (load(folder / name / "step-0060.archir") for name in ("whole", "cut"))
    assert str(whole) == str(cut)
    assert all(torch.equal(whole.tensor(name), cut.tensor(name)) for name in whole.by_name)


def test_interrupted_controls_go_on_and_nothing_that_is_finished_is_trained_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, told = _change(folder, "batch_size = 32", "batch_size = 32\ncheckpoint_every = 20"), RunProgress.__call__
    assert archir("grow", config, "--out", folder / "whole", "--controls").code == 0
    heard: list[Event] = []

    def interrupted(progress: RunProgress, event: Event) -> None:
        told(progress, event)
        if (event.get("beside"), event["event"], event.get("step")) == ("control-uniform", "train", 30):
            raise KeyboardInterrupt

    monkeypatch.setattr(RunProgress, "__call__", interrupted)
    done = archir("grow", config, "--out", folder / "cut", "--controls")
    assert done.code == 130
    assert f"interrupted; the run in {folder / 'cut'} goes on with --resume --controls" in done.err.replace("\n", " ")
    assert not (folder / "cut" / "net.py").exists()

    def listening(progress: RunProgress, event: Event) -> None:
        heard.append(event)
        told(progress, event)

    monkeypatch.setattr(RunProgress, "__call__", listening)
    done = archir("grow", config, "--out", folder / "cut", "--controls", "--resume")
    assert done.code == 0 and "control, uniform: going on from step 20" in done.err
    assert {e.get("beside") for e in heard if e["event"] in ("train", "scored")} == {
        "control-uniform",
        "control-longer",
    }
    whole, cut = (json.loads(archir("report", folder / n, "--json").out)["tested"] for n in ("whole", "cut"))
    assert whole == cut and len(cut) == 4


def test_grow_takes_other_data_and_another_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(200, 1, 8, 8)).astype(np.float32), generator.integers(10, size=200)
    np.savez("other.npz", x=x, y=y)
    _change(folder, "limit = 800\n", "")
    done = archir("grow", "run.toml", "--data", "other.npz", "--out", "elsewhere", "--quiet", "--controls")
    assert done.code == 0, done
    for name in ("seed, not grown", "uniformly widened", "grown"):
        assert name in done.out and name in archir("report", "elsewhere").out
    assert (folder / "elsewhere" / "net.py").is_file() and not (folder / "run").exists()
    assert open_run(folder / "elsewhere").config.startswith("# with --data other.npz\n")


def test_the_report_is_there_before_the_network_is_emitted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing is lost where that fails; and nobody else writes into the directory until it is done."""
    run = folder / "run"
    locked: list[str] = []

    def fails(*_: object, **__: object) -> None:
        with pytest.raises(FileError, match="is in use") as caught, lock_run(run):
            pass
        locked.append(caught.value.why)
        raise EmitError("no way to say it")

    monkeypatch.setattr(growing, "to_onnx", fails)
    done = archir("grow", folder / "run.toml", "--quiet")
    assert done.code == 1 and "no way to say it" in done.err
    assert len(locked) == 1 and f"process {os.getpid()} " in locked[0]
    for text in ("growth 1", "test data, after 60 steps"):
        assert text in done.out
    assert (run / "growth.png").is_file() and (run / "net.py").is_file()
    assert [e["event"] for e in open_run(run).history()][-2:] == ["finished", "tested"]
    assert archir("report", run).out.splitlines()[0].split() == done.out.splitlines()[1].split()
    with lock_run(run):
        pass


def test_report_needs_a_run(tmp_path: Path) -> None:
    assert "there is no run in" in refused("report", tmp_path)


@pytest.mark.slow
def test_demo_runs_from_end_to_end_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = demonstration.TEXT
    for old, new in (
        ("steps = 2500", "steps = 40"),
        ("score_examples = 100", "score_examples = 100\ngrowth_steps = 2"),
    ):
        assert old in text
        text = text.replace(old, new)
    for _ in range(2):
        demonstration.demo(tmp_path / "demo", quiet=True, text=text)
        out = capsys.readouterr().out
        for part in ("uniformly widened", "for as many FLOPs", "contraction 2", "grown", "ONNX", "seconds in all"):
            assert part in out
        assert _files(tmp_path / "demo") == sorted([*FILES, *CONTROLS[1:]])
    assert [e["event"] for e in open_run(tmp_path / "demo").history()].count("started") == 1


def test_demo_leaves_other_runs_alone(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "config.toml").write_text("seed = 1\n")
    assert "there is a run in" in refused("demo", "--out", folder / "run")
    assert (folder / "run" / "config.toml").read_text() == "seed = 1\n"


LOADER = """
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset

class Digits(Dataset):
    def __init__(self):
        self.digits = load_digits()

    def __len__(self):
        return 600

    def __getitem__(self, number):
        image = torch.from_numpy(self.digits.images[number]) / 16
        return {"image": image[None] + 0.1 * torch.randn(1, 8, 8), "label": self.digits.target[number]}

def loader():
    return DataLoader(Digits(), batch_size=50)
"""


@pytest.mark.slow
def test_a_loader_that_a_configuration_names_is_grown_on(folder: Path) -> None:
    """Its doubles are brought into the type of the model, and its faults are told before anything is written."""
    (folder / "loader.py").write_text(LOADER)
    text = CONFIG.replace('"digits"', '"loader.py:loader"\nworkers = 2').replace("limit = 800\n", "")
    (folder / "run.toml").write_text(text.replace("steps = 60", "steps = 4").replace("= 30", "= 0"))
    done = archir("grow", folder / "run.toml", "--quiet")
    assert done.code == 0, done.err
    assert _files(folder / "run") == FILES
    (folder / "loader.py").write_text(LOADER.replace("600", "6000"))
    assert "error: the data cannot be read" in refused(
        "grow", folder / "run.toml", "--out", folder / "never", "--quiet"
    )
    assert not (folder / "never").exists()


CHOOSES = """
import torch
from torch import nn

class Chooses(nn.Module):
    def __init__(self):
        super().__init__()
        self.ids, self.pixels = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, ids=None, pixels=None):
        return self.ids(ids) if ids is not None else self.pixels(pixels)

def rows():
    return [{"pixels": torch.ones(4), "label": 1} for _ in range(20)]
"""


def test_data_that_a_configuration_names_go_by_the_arguments_of_the_model(folder: Path) -> None:
    """An entry that is alone is the argument of its name, as for `archir.grow`."""
    (folder / "chooses.py").write_text(CHOOSES)
    text = CONFIG.replace("models.py:digits", "chooses.py:Chooses").replace('"digits"', '"chooses.py:rows"')
    (folder / "run.toml").write_text(text.replace("limit = 800\n", ""))
    graph, dataset = growing.seed_and_data(read_config(folder / "run.toml"))
    assert [found.name for found in graph.inputs] == ["pixels"]
    found = dataset.train.take(slice(1)).inputs
    assert isinstance(found, dict) and list(found) == ["pixels"]
