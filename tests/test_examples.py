"""The networks of the published setting: they are what they are named after, can grow anywhere, and can be run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from archir.axes.infer import infer_widths
from archir.growing.model import load_model
from archir.growing.run import open_run
from frontends.pytorch import trace
from tests.cli.run import archir

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ("cifar10_vgg19", "cifar10_mobilenet")


def model(name: str, part: float) -> nn.Module:
    return load_model(f"{name}.py:seed", {"part": part}, base=EXAMPLES)


@pytest.mark.parametrize(
    ("name", "convolutions", "parameters"),
    [("cifar10_vgg19", 16, 20_035_018), ("cifar10_mobilenet", 27, 3_217_226), ("resnet18", 20, 11_173_962)],
)
def test_at_full_width_they_are_the_published_ones(name: str, convolutions: int, parameters: int) -> None:
    """Those of the papers, with ten classes: sums over the tables by hand."""
    full = model(name, 1.0)
    assert sum(isinstance(m, nn.Conv2d) for m in full.modules()) == convolutions
    assert sum(p.numel() for p in full.parameters()) == parameters


@pytest.mark.parametrize("name", [*NAMES, "resnet18"])
def test_every_convolution_has_a_width_that_is_free(name: str) -> None:
    seed = model(name, 0.125)
    graph = trace(seed, (torch.randn(2, 3, 32, 32),))
    free = {(place.parameter, place.axis) for width in infer_widths(graph) for place in width.places}
    convolutions = [n for n, m in seed.named_modules() if isinstance(m, nn.Conv2d)]
    assert not [n for n in convolutions if (f"{n}.weight", 0) not in free]
    assert ("head.weight", 0) not in free


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_short_run_of_the_configuration_contracts_the_network(name: str, tmp_path: Path) -> None:
    budget = {"cifar10_vgg19": 1_200_000, "cifar10_mobilenet": 820_000}[name]
    changes = {
        "part = 0.125": "part = 0.0625",
        f"parameters = {budget:_}": "parameters = 100_000",
        "steps = 40_000": "steps = 4",
        "batch_size = 128": "batch_size = 8",
        "score_examples = 2000": "score_examples = 8\ngrowth_steps = 1\nrecalibrate_batches = 1",
    }
    _run_shortly(name, changes, tmp_path)
    events = open_run(tmp_path / name).history()
    (scored,) = (e for e in events if e["event"] == "scored")
    (grown,) = (e for e in events if e["event"] == "grown")
    assert scored["kind"] == "contraction"
    assert grown["parameters_before"] > 100_000 >= grown["parameters"]
    assert (tmp_path / name / "net.py").is_file()


@pytest.mark.slow
def test_a_short_run_of_the_resnet_doubles_it_by_splits(tmp_path: Path) -> None:
    changes = {
        "part = 0.25": "part = 0.0625",
        "parameters = 11_173_962": "parameters = 90_000",
        "steps = 300": "steps = 10",
        "batch_size = 32": "batch_size = 8",
        "growth_steps = 4": "growth_steps = 1\nrecalibrate_batches = 1",
        "score_examples = 256": "score_examples = 8",
    }
    _run_shortly("resnet18", changes, tmp_path)
    events = open_run(tmp_path / "resnet18").history()
    (scored,) = (e for e in events if e["event"] == "scored")
    assert scored["kind"] == "growth" and scored["budget"] == {"parameters": 90_000}
    assert not [e for e in events if e["event"] == "expanded"]
    (grown,) = (e for e in events if e["event"] == "grown")
    assert grown["parameters_before"] < grown["parameters"] <= 90_000
    assert all(spec.startswith("split{") for spec in grown["specs"])


def _run_shortly(name: str, changes: Mapping[str, str], folder: Path) -> None:
    """Run a configuration in a folder on images of noise, with some of its text changed."""
    noise = np.random.default_rng(0)
    for split in ("train", "test"):
        images = noise.integers(256, size=(40, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / f"cifar10_{split}.npz", x=images, y=np.arange(40) % 10)
    (folder / f"{name}.py").write_text((EXAMPLES / f"{name}.py").read_text())
    text = (EXAMPLES / f"{name}.toml").read_text()
    alike = {
        'output = "../runs/': 'output = "',
        "validation = 0.1": "validation = 0.4",
        "[training]": "[training]\nprecision = 'float32'",
    }
    for old, new in {**alike, **changes}.items():
        assert old in text
        text = text.replace(old, new)
    (folder / f"{name}.toml").write_text(text)
    # As the comment of the configuration tells to give them.
    data = f"train={folder / 'cifar10_train.npz'}, test={folder / 'cifar10_test.npz'}"
    done = archir("grow", folder / f"{name}.toml", "--data", data, "--quiet")
    assert done.code == 0, done
