"""The commands passes, sites, apply with a file, and diff."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from archir.api import apply, prune_with_compensation, score
from archir.growing.data import load_data
from archir.ir.load import load
from passes.catalog import PASSES
from tests.cli.run import archir, refused, write_models


@pytest.fixture
def net(tmp_path: Path) -> Path:
    models, file = write_models(tmp_path), tmp_path / "net.archir"
    assert archir("trace", f"{models}:mlp", "--input", "2,8", "-o", file).code == 0
    return file


def test_passes_tells_what_each_preserves() -> None:
    listed = {p["name"]: p for p in json.loads(archir("passes", "--json").out)}
    assert set(listed) == set(PASSES)
    assert listed["prune"] == {
        "name": "prune",
        "kind": "morphism",
        "options": [
            {"name": "width", "type": "str", "default": ""},
            {"name": "units", "type": "tuple[int, ...]", "default": []},
        ],
        "preserves": "all but the removed units",
        "summary": "remove units",
    }
    assert all(p["summary"] and p["preserves"] for p in listed.values())
    table = archir("passes").out
    assert "units: tuple[int, ...] = []" in table and "all but the removed units" in table


def test_sites_lists_every_kind_that_is_named(net: Path) -> None:
    found = json.loads(archir("sites", net, "--pass", "split; widen{count=2}", "--json").out)
    assert found["misses"] == []
    assert [(s["pass"], s["candidates"], s["parameters"], s["first"]) for s in found["sites"]] == [
        ("split", 6, 13, "split{width=w0, units=[0]}"),
        ("widen", 1, 26, "widen{width=w0, count=2}"),
    ]
    assert all(s["flops"] > 0 and s["bytes"] > 0 for s in found["sites"])


FILE = """# widen the only width
split{width=w0, units=[1]}; split{width=w0, units=[2]}  # two on one line

  prune{width=w0, units=[0]}
"""


@pytest.mark.parametrize("by_option", [False, True])
def test_apply_takes_a_file_of_specs(net: Path, tmp_path: Path, by_option: bool) -> None:
    specs = tmp_path / "specs.txt"
    specs.write_text(FILE)
    given = ("--file", specs) if by_option else (f"@{specs}",)
    assert archir("apply", net, *given, "-o", tmp_path / "out.archir").code == 0
    assert load(tmp_path / "out.archir").history == (
        "split{width=w0, units=[1]}",
        "split{width=w0, units=[2]}",
        "prune{width=w0, units=[0]}",
    )


def test_an_error_in_a_file_names_the_line_and_points_at_the_word(net: Path, tmp_path: Path) -> None:
    specs = tmp_path / "specs.txt"
    specs.write_text(FILE.replace("  prune", "  purne"))
    assert refused("apply", net, f"@{specs}", "--dry-run").splitlines() == [
        "error: this is not a specification of passes",
        f"  where: {specs}:4",
        "           purne{width=w0, units=[0]}",
        "           ^^^^^",
        "  why:   there is no pass 'purne'",
        "  hint:  did you mean prune?",
    ]


def test_apply_needs_specs_once_and_a_file_that_can_be_read(net: Path, tmp_path: Path) -> None:
    assert archir("apply", net, "--dry-run").code == 2
    assert archir("apply", net, "split", "--file", tmp_path / "specs.txt", "--dry-run").code == 2
    assert "there is no file" in refused("apply", net, f"@{tmp_path / 'absent.txt'}", "--dry-run")
    assert "cannot read" in refused("apply", net, "--file", tmp_path, "--dry-run")
    (tmp_path / "specs.txt").write_bytes(b"\xff")
    assert "cannot read" in refused("apply", net, "--file", tmp_path / "specs.txt", "--dry-run")


def test_diff_tells_what_changed(net: Path, tmp_path: Path) -> None:
    after = tmp_path / "after.archir"
    assert archir("apply", net, "split{width=w0, units=[1, 2]}", "-o", after).code == 0
    text = archir("diff", net, after).out
    for part in (
        "parameters                82    108     +26",
        "1 widths changed",
        "w0          6      8  0.weight[0], 0.bias[0], 2.weight[1]",
        "4 -> 4 stored tensors: 0 added, 0 removed, 3 resized",
        "0.weight  f32[6, 8]  f32[8, 8]",
        "only the second was rewritten by split{width=w0, units=[1, 2]}",
    ):
        assert part in text, text
    found = json.loads(archir("diff", net, after, "--json").out)
    assert found["after"]["parameters"] - found["before"]["parameters"] == 26
    assert [(w["before"]["size"], w["after"]["size"]) for w in found["widths"]] == [(6, 8)]
    assert found["history"] == [[], ["split{width=w0, units=[1, 2]}"]]


def test_diff_tells_what_is_there_in_one_only(net: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.archir"
    assert archir("trace", f"{tmp_path / 'models.py'}:digits", "--input", "2,1,8,8", "-o", other).code == 0
    text = archir("diff", net, other).out
    assert "calls: 1 added, 0 removed\n" in text and "aten.flatten.using_ints       0      1      +1" in text
    assert "4 -> 4 stored tensors: 4 added, 4 removed, 0 resized" in text
    assert "2.weight  f32[4, 6]  -" in text and "1.weight  -          f32[6, 64]" in text
    assert "f0     8 frozen          -  0.weight[1]" in text
    assert json.loads(archir("diff", net, other, "--json").out)["operators"] == [
        {"op": "aten.flatten.using_ints", "before": 0, "after": 1}
    ]


def test_diff_of_equal_graphs(net: Path, tmp_path: Path) -> None:
    again, trained = tmp_path / "again.archir", tmp_path / "trained.archir"
    graph = load(net)
    graph.with_history("split").save(again)
    graph.with_tensors({"0.bias": graph.tensor("0.bias") + 1}).save(trained)
    assert "the graphs are the same\n" in archir("diff", net, net).out
    text = archir("diff", net, again).out
    assert "the graphs are the same, but for their history" in text and "rewritten by split" in text
    text = archir("diff", net, trained).out
    assert "other numbers of the same shape in 1 stored tensors: 0.bias" in text
    assert "the same" not in text.replace("of the same shape", "")
    assert "there is no file" in refused("diff", net, tmp_path / "absent.archir")


STREAM = """
import numpy as np

def batches():
    generator = np.random.default_rng(0)
    for _ in range(20):
        yield generator.normal(size=(10, 8)).astype("float32"), np.arange(10) % 4

def splits():
    return {"train": batches, "validation": batches, "test": batches}
"""


def test_data_that_can_only_be_iterated_are_taken(net: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(STREAM)
    data, out = f"{tmp_path / 'mine.py'}:splits", tmp_path / "small.archir"
    inputs = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 8)).astype("float32"))
    done = archir("apply", net, "prune{width=w0, units=[1, 4]}", "-o", out, "--compensate", data)
    assert done.code == 0, done.err
    wanted = prune_with_compensation(load(net), [(inputs, torch.arange(200) % 10 % 4)], "prune{width=w0, units=[1, 4]}")
    assert torch.allclose(load(out).tensor("2.weight"), wanted.tensor("2.weight"), atol=1e-6)
    done = archir("score", net, "--data", data, "--passes", "prune", "--examples", "100", "--json")
    assert done.code == 0, done.err
    expected = score(load(net), [(inputs[:100], torch.arange(100) % 10 % 4)], morphisms="prune")
    found = {s["spec"]: s["predicted"] for s in json.loads(done.out)["scores"]}
    assert found == pytest.approx({s.spec: s.predicted for s in expected}, rel=1e-4, abs=1e-6)


def test_removed_units_are_compensated_for_on_data(net: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    data = tmp_path / "data.npz"
    np.savez(data, x=generator.normal(size=(200, 8)).astype("float32"), y=np.arange(200) % 4)
    prune, out = "prune{width=w0, units=[1, 4]}", tmp_path / "small.archir"
    done = archir("apply", net, prune, "-o", out, "--compensate", str(data))
    assert done.code == 0, done.err
    small, plain = load(out), apply(load(net), prune)
    train = load_data(str(data)).train.take(slice(None))
    wanted = prune_with_compensation(load(net), [(train.inputs, train.targets)], prune)
    assert torch.allclose(small.tensor("2.weight"), wanted.tensor("2.weight"), atol=1e-6)
    assert not torch.allclose(small.tensor("2.weight"), plain.tensor("2.weight"), atol=1e-3)
    replayed = apply(load(net), "; ".join(small.history))
    assert torch.equal(replayed.tensor("2.weight"), plain.tensor("2.weight"))
    said = refused("apply", net, f"{prune}; split{{width=w0, units=[0]}}", "-o", out, "--compensate", str(data))
    assert "only removed units are compensated for, not split" in said
