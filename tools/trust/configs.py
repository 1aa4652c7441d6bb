"""Configurations of runs with keys, values and tables changed."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np

from archir.growing.config import read_config
from archir.kinds import morphisms
from archir.plugins import find_passes
from tools.trust.attack import Attack, Files
from tools.trust.hostile import CODE, NAMES
from tools.trust.mutate import mutate_bytes, mutate_text

CONFIG = """\
seed = 3
loss = "cross_entropy"
output = "runs/one"

[model]
graph = "net.archir"

[data]
source = "data.npz"
validation = 0.2
test = 0.3
limit = 20
normalise = true

[budget]
parameters = 1000
flops = 1_000_000

[optimiser]
name = "sgd"
rate = 0.1
weight_decay = 0.0
momentum = 0.9
nesterov = true
betas = [0.9, 0.99]
decay_all = false

[augmentation]
flip = true
crop = 1
cutout = 2
mixup = 0.2

[training]
steps = 100
batch_size = 8
warmup = 2
schedule = "cosine"
decay = 0.4
clip = 1.0
ema = 0.01
label_smoothing = 0.1
precision = "auto"
device = "cpu"
channels_last = false
compile = "off"
sharded = false
evaluate_every = 10
checkpoint_every = 50

[growth]
growth_steps = 2
first_growth = 0.1
last_growth = 0.6
learn_steps = 3
learn_rate = 0.05
radius = 0.5
score_examples = 10
recalibrate_batches = 2
refine = 4
rule = "joint"
composites = 0
passes = ["split", "prune", "widen{count=2}"]
plugins = []

[prices]
parameters = 0.0
"""

_NUMBERS = (
    "0",
    "-1",
    "1",
    "2",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "1e-320",
    "9" * 30,
    "9" * 5000,
    "2.5",
    "0x7fffffffffffffff",
    "9223372036854775808",
    "true",
)
_VALUES = (
    '""',
    '"x"',
    "[]",
    "[1, 2]",
    "{}",
    "{a = 1}",
    "1979-05-27",
    "'''x'''",
    '"\\u0000"',
    "[[]]",
    '[[1], "a"]',
    '["split"]',
    '"mse"',
    '"digits"',
)
_SPECS = (
    '"digits, digits"',
    '"train=data.npz, test=data.npz"',
    '"train="',
    '"=x"',
    '"missing.npz"',
    '"."',
    '"/"',
    '"~"',
    '"~nobody/x"',
    '"run.toml"',
    '"data.npz:x"',
    '"missing.py:f"',
    '":"',
    '"a:b:c"',
    '"os:"',
    '"../victim"',
    '"data.npz/x"',
    '"' + "x" * 5000 + '"',
    '"\\u0000:f"',
    '"x\\u0000"',
    '"train=' * 200 + '"',
    '"split; prune"',
    '"compose{passes=[split]}"',
    '"' + "compose{passes=[" * 900 + '"',
    '"split{width=w0}"',
    '"no-such-pass"',
    *(f"'{n}'" for n in NAMES if "'" not in n and "\n" not in n and len(n) < 400),
    f'"{CODE}"',
)
_KEYS = (
    "seed",
    "[model]",
    "[data]",
    "[growth]",
    "[[budget]]",
    "a.b.c = 1",
    "model = 1",
    "[",
    "]",
    "=",
    "\n",
    "#",
    "[a.b]",
    "[" * 5000,
    "x = " + "[" * 5000,
    "x = " + "{a=" * 3000,
)


def data() -> bytes:
    """Return a small data file."""
    generator = np.random.default_rng(0)
    file = io.BytesIO()
    np.savez(file, x=generator.standard_normal((40, 2, 6, 6)).astype(np.float32), y=np.arange(40) % 3)
    return file.getvalue()


_DATA = data()


def make(dice: random.Random) -> Files:
    """Return a configuration, with data beside it."""
    text = mutate_text(dice, CONFIG, (_NUMBERS, _VALUES, _SPECS, _KEYS))
    content = text.encode("utf-8", "surrogatepass")
    return {"run.toml": mutate_bytes(dice, content) if dice.random() < 0.2 else content, "data.npz": _DATA}


def use(folder: Path) -> None:
    """Read the configuration and all it names but the model."""
    config = read_config(folder / "run.toml")
    config.find_loss()
    morphisms("; ".join(config.passes) or None, registry=find_passes(config.plugins, base=config.base))
    dataset = config.load_data()
    len(dataset.test)
    [config.options.rate(step) for step in range(0, 3)]


CONFIGS = Attack("config", make, use)
