"""The commands that make trained networks smaller: `compress`, and `score --shrink-to` with `apply --compensate`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from archir.cost import cost
from archir.growing.data import load_data
from archir.growing.grow import grow_graph
from archir.growing.options import GrowOptions
from archir.growing.run import open_run
from archir.growing.training import evaluate
from archir.ir.graph import Graph
from archir.ir.load import load
from archir.scoring.budget import Budget
from archir.scoring.losses import find_loss
from frontends.pytorch import trace
from passes.prune import Prune
from tests.cli.run import CONFIG, FILES, archir, refused

LOSS = find_loss("cross_entropy")
OPTIONS = GrowOptions(steps=120, batch_size=64, growth_steps=0, evaluate_every=0)
COMPRESSION = (
    CONFIG.replace('factory = "models.py:digits"', 'graph = "trained.archir"')
    .replace("parameters = 700", "flops = 0.5")
    .replace("growth_steps = 1\nfirst_growth = 0.5", "growth_steps = 2")
)


def _trained() -> Graph:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    data = load_data("digits", seed=0)
    graph = trace(net, (torch.randn(4, 1, 8, 8),))
    run = grow_graph(
        graph,
        train=data.train,
        validation=data.validation,
        budget=Budget(parameters=10_000),
        morphisms=(Prune(),),
        options=replace(OPTIONS, optimiser=replace(OPTIONS.optimiser, rate=0.1)),
    )
    return run.graph


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nets") / "trained.archir"
    _trained().save(path)
    return path


@pytest.fixture
def config(folder: Path, trained: Path) -> Path:
    (folder / "trained.archir").write_bytes(trained.read_bytes())
    (folder / "run.toml").write_text(COMPRESSION)
    return folder / "run.toml"


@pytest.mark.slow
def test_compress_carries_out_a_run(config: Path) -> None:
    done = archir("compress", config)
    assert done.code == 0, done
    before = load(config.parent / "trained.archir")
    run, limit = config.parent / "run", cost(before).flops // 2
    assert sorted(p.name for p in run.iterdir() if not p.name.startswith(("step-", "__pycache__"))) == FILES
    assert done.err.startswith("network: 1,434 parameters") and "contraction 1 at step 0: 1,434 -> " in done.err
    final = load(run / "step-0060.archir")
    assert cost(final).flops <= limit == open_run(run).fingerprint["budget.flops"]
    table = [line.strip("| ").split(" | ") for line in archir("report", run, "--markdown").out.splitlines()]
    assert table[0][-3:] == ["loss", "validation", "seconds"]
    assert [row[1] for row in table[2:7]] == ["network", "contraction 1", "trained on", "contraction 2", "end"]
    assert [row[0] for row in table[-2:]] == ["before", "compressed"]
    flops = [int(row[2].replace(",", "")) for row in table[-2:]]
    assert flops == [cost(before).flops, cost(final).flops]

    assert "there is a run in" in refused("compress", config)
    again = archir("compress", config, "--resume", "--quiet")
    assert again.code == 0 and again.out.splitlines()[:3] == done.out.splitlines()[:3]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("flops = 1.0", "the network is within the budget already"),
        ("flops = 10", "the network cannot be made as small as the budget"),
        ("flops = 1.5", "budget.flops is 1.5, not a whole number, nor a part above 0 and at most 1"),
        ("latency = 0.1", "compression needs a budget"),
    ],
)
def test_compress_tells_what_is_wrong_and_leaves_nothing(config: Path, budget: str, expected: str) -> None:
    config.write_text(COMPRESSION.replace("flops = 0.5", budget))
    assert expected in refused("compress", config)
    assert not (config.parent / "run").exists()


def test_grow_tells_who_shrinks(config: Path) -> None:
    said = refused("grow", config)
    assert "the budget is below the size of the seed" in said and "archir compress" in said
    assert not (config.parent / "run").exists()


def test_units_are_chosen_and_removed_with_compensation(trained: Path, tmp_path: Path) -> None:
    specs, small, plain = tmp_path / "specs.txt", tmp_path / "small.archir", tmp_path / "plain.archir"
    done = archir("score", trained, "--data", "digits", "--shrink-to", "0.5", "-o", specs)
    assert done.code == 0, done
    assert "FLOPs of one example" in done.out and f"wrote {specs}" in done.out
    lines = specs.read_text().splitlines()
    assert lines and all(line.startswith("prune{width=") for line in lines)
    assert len({line.partition(",")[0] for line in lines}) == len(lines)
    assert archir("apply", trained, f"@{specs}", "-o", small, "--compensate", "digits").code == 0
    assert archir("apply", trained, "--file", specs, "-o", plain).code == 0
    before = load(trained)
    assert cost(load(small)) == cost(load(plain))
    assert 0.4 * cost(before).flops < cost(load(small)).flops <= 0.5 * cost(before).flops
    test = load_data("digits", seed=0).test
    loss, compensated, without = (evaluate(load(p).module(), test, LOSS).loss for p in (trained, small, plain))
    assert loss < compensated < without


def test_units_are_chosen_under_other_limits_and_rules(trained: Path, tmp_path: Path) -> None:
    found = [
        json.loads(archir("score", trained, "--data", "digits", "--shrink-to", to, "--json", *more).out)
        for to, more in (
            ("parameters=0.7,peak_bytes=4000", ()),
            ("flops=40000", ("--rule", "magnitude", "--rounds", "1")),
        )
    ]
    assert found[0]["parameters"] <= 0.7 * 1434 and found[0]["peak_bytes"] <= 4000
    assert found[0]["budget"] == {"parameters": 1003, "peak_bytes": 4000}
    assert found[1]["flops"] <= 40_000 and found[1]["predicted"] == [None]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--shrink-to", "1.0"), "within the budget already"),
        (("--shrink-to", "flops=12"), "at least"),
        (("--shrink-to", "half"), "'half' is no number"),
        (("--shrink-to", "flop=0.5"), "did you mean flops?"),
        (("--shrink-to", "0.5,flops=0.4"), "given twice"),
        (("--shrink-to", "1.5"), "nor a part above 0 and at most 1"),
        (("--shrink-to", "0.5", "--rule", "magnitud"), "did you mean magnitude?"),
    ],
)
def test_what_cannot_be_shrunk_to_is_told_and_nothing_is_written(
    trained: Path, tmp_path: Path, options: tuple[str, ...], expected: str
) -> None:
    assert expected in refused("score", trained, "--data", "digits", *options, "-o", tmp_path / "specs.txt")
    assert not list(tmp_path.iterdir())
    nowhere = tmp_path / "absent" / "specs.txt"
    assert "cannot write" in refused("score", trained, "--data", "digits", "--shrink-to", "0.9", "-o", nowhere)


@pytest.mark.parametrize(
    "options",
    [
        ("--rounds", "2"),
        ("-o", "specs.txt"),
        ("--shrink-to", "0.5", "--set", "3"),
        ("--shrink-to", "0.5", "--passes", "split"),
    ],
)
def test_options_that_do_not_go_together_are_refused(trained: Path, options: tuple[str, ...]) -> None:
    assert archir("score", trained, "--data", "digits", *options).code == 2
