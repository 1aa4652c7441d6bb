"""What decides a run is recorded, and a run that goes on with anything else is refused, item by item."""

from __future__ import annotations

import enum
import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import archir
from archir.errors import FileError, GrowError
from archir.growing.batches import Augmentation
from archir.growing.code_checksum import checksum_of_code
from archir.growing.fingerprint import ELSEWHERE, differences, fingerprint
from archir.growing.grow import grow_graph
from archir.growing.importing import load_object
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.run import open_run
from archir.ir.graph import Graph
from archir.scoring.budget import Budget, Prices
from archir.scoring.losses import coupled, find_loss
from passes.split import Split as SplitUnits
from passes.widen import Widen
from tests.growing.small_run import OPTIONS, data

SHORT = replace(OPTIONS, steps=4, growth_steps=0)


def _grow(graph: Graph, directory: Path, *, resume: bool, **changed: Any) -> None:
    arguments: dict[str, Any] = {
        "train": data(64, 1),
        "validation": data(40, 2),
        "budget": Budget(parameters=900),
        "morphisms": (SplitUnits(),),
        "options": SHORT,
        **changed,
    }
    grow_graph(graph, directory=directory, resume=resume, **arguments)


def _other_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"budget": Budget(parameters=850)}, ["budget.parameters was 900, is 850"]),
        ({"budget": Budget(flops=10**9)}, ["budget.parameters was 900, is not given", "budget.flops was not given"]),
        ({"options": replace(SHORT, seed=3)}, ["options.seed was 0, is 3"]),
        (
            {"options": replace(SHORT, optimiser=replace(SHORT.optimiser, rate=0.01, name="adamw"))},
            ['options.optimiser.name was "sgd", is "adamw"', "options.optimiser.rate was 0.05, is 0.01"],
        ),
        (
            {"options": replace(SHORT, ema=0.1, label_smoothing=0.2, augmentation=Augmentation(mixup=0.3))},
            [
                "options.ema was 0.0, is 0.1",
                "options.label_smoothing was 0.0",
                "options.augmentation.mixup was not given",
            ],
        ),
        ({"options": replace(SHORT, optimiser=replace(SHORT.optimiser, rate="auto"))}, ['rate was 0.05, is "auto"']),
        ({"options": replace(SHORT, prices=Prices(flops=1e-9))}, ["options.prices.flops was 0.0, is 1e-09"]),
        ({"loss": _other_loss}, ['loss was "cross_entropy", is "_other_loss"', "loss.code was not given"]),
        ({"morphisms": (Widen(count=2),)}, ['morphisms was ["split"], is ["widen{count=2}"]']),
        ({"train": data(64, 3)}, ["train.inputs was ", "train.targets was "]),
        ({"train": data(63, 1)}, ["train.examples was 64, is 63"]),
        ({"validation": data(40, 4)}, ["validation.inputs was "]),
    ],
)
def test_a_run_goes_on_only_with_what_it_was_started_with(
    seed_graph: Graph, tmp_path: Path, changed: dict[str, Any], named: list[str]
) -> None:
    _grow(seed_graph, tmp_path, resume=False)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "lock"}
    with pytest.raises(GrowError, match="started with another configuration") as caught:
        _grow(seed_graph, tmp_path, resume=True, **changed)
    assert all(text in caught.value.why for text in named), caught.value.why
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "lock"} == before
    _grow(seed_graph, tmp_path, resume=True)


def test_another_seed_network_is_refused(seed_graph: Graph, tmp_path: Path) -> None:
    _grow(seed_graph, tmp_path, resume=False)
    other = seed_graph.with_tensors({"head.bias": torch.ones(3)})
    with pytest.raises(GrowError) as caught:
        _grow(other, tmp_path, resume=True)
    assert caught.value.why.startswith("seed.tensors was ") and "\n" not in caught.value.why


def test_python_refuses_a_smaller_budget_and_another_model(tmp_path: Path) -> None:
    """A network of 73 parameters does not go on under a limit of 75 that was 80, nor does a wider one."""

    def run(width: int, budget: int, *, resume: bool) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 1))
        archir.grow(
            model,
            train=(torch.ones(8, 4), torch.ones(8, 1)),
            validation=(torch.ones(8, 4), torch.ones(8, 1)),
            budget=budget,
            loss="mse",
            options=GrowOptions(steps=2, growth_steps=0, batch_size=4),
            directory=tmp_path / "run",
            resume=resume,
        )

    run(12, 80, resume=False)
    with pytest.raises(GrowError, match=r"budget\.parameters was 80, is 75"):
        run(12, 75, resume=True)
    with pytest.raises(GrowError, match=r"seed\.parameters was 73, is 79\n.*seed\.graph, line \d+, was "):
        run(13, 80, resume=True)
    run(12, 80, resume=True)


def test_the_record_is_readable(seed_graph: Graph, tmp_path: Path) -> None:
    _grow(seed_graph, tmp_path, resume=False)
    found = json.loads((tmp_path / "fingerprint.json").read_text())
    assert found["budget.parameters"] == 900 and found["options.optimiser.name"] == "sgd"
    assert found["seed.graph"].startswith("graph ") and found["version.torch"] == torch.__version__
    assert found == open_run(tmp_path).fingerprint


def test_a_run_without_a_record_does_not_go_on(seed_graph: Graph, tmp_path: Path) -> None:
    _grow(seed_graph, tmp_path, resume=False)
    for content in (b"[]", b"\xff", b"{"):
        (tmp_path / "fingerprint.json").write_bytes(content)
        with pytest.raises(FileError, match=r"fingerprint\.json"):
            _grow(seed_graph, tmp_path, resume=True)
    (tmp_path / "fingerprint.json").write_text('{"budget.parameters": {"a": [1]}}')
    with pytest.raises(GrowError, match=r'budget\.parameters was {"a": \[1\]}, is 900'):
        _grow(seed_graph, tmp_path, resume=True)


def test_values_that_python_takes_for_the_same_differ() -> None:
    assert differences({"a": 1, "b": True}, {"a": 1.0, "b": 1}) == ["a was 1, is 1.0", "b was true, is 1"]
    assert differences({"a": "x\ny"}, {"a": "x\ny\nz"}) == ['a, line 3, was nothing, is "z"']
    assert differences({"a": [1]}, {"a": [1]}) == []


def _made(scale: float, weight: torch.Tensor) -> Any:
    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return scale * nn.functional.cross_entropy(outputs, targets, weight)

    return loss


def test_the_code_of_a_loss_counts_with_what_it_closes_over() -> None:
    one = _made(1.0, torch.ones(3))
    assert checksum_of_code(one) == checksum_of_code(_made(1.0, torch.ones(3)))
    assert checksum_of_code(one) != checksum_of_code(_made(2.0, torch.ones(3)))
    assert checksum_of_code(one) != checksum_of_code(_made(1.0, torch.zeros(3)))
    assert checksum_of_code(find_loss(one)) != checksum_of_code(find_loss(_made(2.0, torch.ones(3))))
    assert checksum_of_code(coupled(one)) != checksum_of_code(coupled(_other_loss))
    weighted = [
        nn.CrossEntropyLoss(torch.tensor([1.0, w]), ignore_index=i) for w, i in ((1, 0), (1, 0), (2, 0), (1, 1))
    ]
    first, same, heavier, ignoring = map(checksum_of_code, weighted)
    assert first == same and len({first, heavier, ignoring}) == 3


def test_everything_that_decides_a_run_is_in_its_record(seed_graph: Graph, tmp_path: Path) -> None:
    """Every option is, by its name; and each item that is another one is a reason to refuse."""
    _grow(seed_graph, tmp_path, resume=False)
    found = dict(open_run(tmp_path).fingerprint)

    def names(kind: Any, prefix: str) -> set[str]:
        parts = {"optimiser": OptimiserOptions, "prices": Prices}
        return {
            name
            for f in fields(kind)
            for name in (
                names(parts[f.name], f"{prefix}.{f.name}")
                if kind is GrowOptions and f.name in parts
                else {f"{prefix}.{f.name}"}
            )
        }

    splits = {f"{split}.{part}" for split in ("train", "validation") for part in ("examples", "inputs", "targets")}
    seed = {"seed.parameters", "seed.graph", "seed.tensors", "version.archir", "version.torch"}
    code = {"loss", "loss.code", "morphisms", "morphisms.code"}
    assert set(found) == names(GrowOptions, "options") - set(ELSEWHERE) | names(Budget, "budget") | splits | seed | code
    for name in found:
        assert [d.partition(" was ")[0] for d in differences({**found, name: "other"}, found)] in (
            [name],
            [f"{name}, line 1,"],
        )
        assert len(differences({k: v for k, v in found.items() if k != name}, found)) == (found[name] is not None)


def test_where_a_run_is_computed_decides_nothing(seed_graph: Graph) -> None:
    def decided(options: GrowOptions) -> dict[str, Any]:
        budget = Budget(parameters=400)
        return fingerprint(
            seed_graph,
            train=data(8, 1),
            validation=data(8, 2),
            budget=budget,
            options=options,
            loss=find_loss("mse"),
            morphisms=(),
        )

    assert not differences(decided(OPTIONS), decided(replace(OPTIONS, device="cpu")))


def test_a_loss_of_the_same_name_and_other_code_is_refused(seed_graph: Graph, tmp_path: Path) -> None:
    _grow(seed_graph, tmp_path, resume=False, loss=_made(1.0, torch.ones(3)))
    for other in (_made(2.0, torch.ones(3)), _made(1.0, torch.full((3,), 2.0))):
        with pytest.raises(GrowError, match="started with another") as caught:
            _grow(seed_graph, tmp_path, resume=True, loss=other)
        assert caught.value.why.startswith("loss.code was ") and "\n" not in caught.value.why
    _grow(seed_graph, tmp_path, resume=True, loss=_made(1.0, torch.ones(3)))


def _morphism(factor: int) -> Any:
    class Mine(SplitUnits):
        name = "mine"

        def unused(self) -> int:
            return factor

    return Mine()


def test_a_pass_of_the_same_name_and_other_code_is_refused(seed_graph: Graph, tmp_path: Path) -> None:
    _grow(seed_graph, tmp_path, resume=False, morphisms=(_morphism(1),))
    with pytest.raises(GrowError) as caught:
        _grow(seed_graph, tmp_path, resume=True, morphisms=(_morphism(2),))
    assert caught.value.why.startswith("morphisms.code was ") and "\n" not in caught.value.why
    _grow(seed_graph, tmp_path, resume=True, morphisms=(_morphism(1),))


class _Slotted:
    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class _Colour(enum.Enum):
    RED = 1
    BLUE = 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.ones(5000), np.r_[np.ones(2500), 0, np.ones(2499)]),
        (np.float32(1), np.float64(1)),
        (torch.float32, torch.float64),
        (torch.device("cpu"), torch.device("meta")),
        (range(3), range(4)),
        (slice(1), slice(2)),
        (Path("a"), Path("b")),
        (_Slotted(1), _Slotted(2)),
        (_Slotted(_Slotted([1])), _Slotted(_Slotted([2]))),
        (_Colour.RED, _Colour.BLUE),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (True, 1),
        (_other_loss, data),
    ],
)
def test_values_a_function_closes_over_count(one: Any, other: Any) -> None:
    assert checksum_of_code(_closing(one)) == checksum_of_code(_closing(one)) != checksum_of_code(_closing(other))


def _closing(value: object) -> Any:
    def function(*, more: object = value) -> object:
        return value, more

    return function


LOSS = """
import helpers

LEVEL = 1

def loss(outputs, targets, scale=1):
    def inner():
        return helpers.smooth(outputs) * LEVEL
    return inner().mean(1) * scale
"""
HELPERS = """
from constants import FACTOR

def smooth(x):
    return x * FACTOR

def other(x):
    return x
"""


@pytest.mark.parametrize(
    ("file", "old", "new", "counts"),
    [
        ("loss.py", "mean(1)", "sum(1)", True),
        ("loss.py", "scale=1", "scale=2", True),
        ("loss.py", "LEVEL = 1", "LEVEL = 2", True),
        ("helpers.py", "x * FACTOR", "x + FACTOR", True),
        ("constants.py", "3", "4", True),
        ("helpers.py", "    return x\n", "    return -x\n", False),
        ("loss.py", "LEVEL = 1", "LEVEL = 1  # or more", False),
    ],
)
def test_code_in_other_files_counts_as_far_as_it_is_named(
    tmp_path: Path, file: str, old: str, new: str, counts: bool
) -> None:
    found = []
    for change in (False, True):
        folder = tmp_path / str(change)
        folder.mkdir()
        for name, text in (("loss.py", LOSS), ("helpers.py", HELPERS), ("constants.py", "FACTOR = 3\n")):
            assert name != file or old in text
            (folder / name).write_text(text.replace(old, new) if change and name == file else text)
        found.append(checksum_of_code(load_object("loss.py:loss", base=folder)))
        for name in ("helpers", "constants", "archir_user_loss"):
            sys.modules.pop(name)
    assert (found[0] != found[1]) == counts
