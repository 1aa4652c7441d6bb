"""Options out of range are refused when they are made, all of them at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

import archir
from archir.errors import ArchirError, GrowError, ScoreError
from archir.growing.batches import Augmentation
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.ir.graph import Graph
from archir.ir.seeds import MOST, derived_seed
from archir.scoring.budget import Budget, Prices
from archir.scoring.ranges import Real, Text, Truth, Whole
from tests.cli.run import refused

HUGE = 10**5000


@pytest.mark.parametrize(
    "clip", [-1, -0.5, 0, 0.0, math.nan, math.inf, -math.inf, "1", True, pytest.param(HUGE, id="huge")]
)
def test_a_clip_that_is_no_norm_is_refused(clip: Any) -> None:
    with pytest.raises(GrowError, match=r"clip is .*, not a finite number above 0"):
        GrowOptions(clip=clip)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (GrowOptions, {"steps": 0, "batch_size": 2.0, "learn_steps": -1, "score_examples": "9", "refine": None}),
        (GrowOptions, {"recalibrate_batches": 0, "checkpoint_every": 0, "evaluate_every": -1, "composites": HUGE}),
        (GrowOptions, {"growth_steps": -1, "warmup": -1, "first_growth": -0.1, "last_growth": 1.5}),
        (GrowOptions, {"agreement": math.nan, "learn_rate": 0.0, "radius": math.inf, "batch_statistics": 1}),
        (GrowOptions, {"seed": -1}),
        (GrowOptions, {"seed": 2**63}),
        (OptimiserOptions, {"rate": math.nan, "weight_decay": -1.0, "momentum": 1.5, "nesterov": 1}),
        (OptimiserOptions, {"rate": -0.1, "betas": (0.9, 0.99, 0.999)}),
        (OptimiserOptions, {"rate": math.inf, "betas": 0.9}),
        (Augmentation, {"flip": "yes", "crop": -1}),
        (Augmentation, {"crop": 1.5, "cutout": -1, "mixup": math.inf}),
        (Augmentation, {"cutout": True, "mixup": -0.1}),
        (GrowOptions, {"ema": 0.51, "label_smoothing": 1.1, "decay": -0.1}),
        (OptimiserOptions, {"decay_all": 1}),
        (Budget, {"parameters": -1, "flops": 1.5, "peak_bytes": HUGE, "latency": math.nan}),
        (Prices, {"parameters": -1.0, "flops": math.inf, "peak_bytes": math.nan, "latency": HUGE}),
    ],
)
def test_every_value_out_of_range_is_named(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(GrowError) as caught:
        kind(**wrong)
    assert all(f"{name} is " in caught.value.where for name in wrong), caught.value.where
    assert len(str(caught.value)) < 1000


def test_values_at_the_ends_of_their_ranges_are_taken() -> None:
    GrowOptions(clip=1e-9, seed=MOST, first_growth=0, last_growth=1, agreement=0, evaluate_every=0)
    OptimiserOptions(rate=0.0, momentum=1.0, betas=(0.0, 0.999))
    Budget(parameters=0, latency=1)
    Prices(flops=1)


def test_seeds_made_of_seeds_stay_in_range() -> None:
    assert derived_seed(0, 7) == 7 and derived_seed(2, 1) == 2_000_007
    assert all(0 <= derived_seed(derived_seed(MOST - i, 3), 5) <= MOST for i in range(9))


def test_numbers_of_numpy_become_those_of_python() -> None:
    """So that they are recorded as any others, and a run goes on that was started with either."""
    given: dict[str, Any] = {"steps": np.int64(9), "growth_steps": np.uint8(2), "clip": np.float32(0.5)}
    given |= {"batch_statistics": np.bool_(True), "seed": np.int32(3)}
    options = GrowOptions(**given)
    assert options == GrowOptions(steps=9, growth_steps=2, clip=0.5, batch_statistics=True, seed=3)
    assert [type(v) for v in (options.steps, options.clip, options.batch_statistics)] == [int, float, bool]
    betas = OptimiserOptions(betas=(np.float64(0.5), np.float64(0.9))).betas
    assert betas == (0.5, 0.9) and {type(b) for b in betas} == {float}
    limit: Any = np.int64(5)
    assert type(Budget(parameters=limit).parameters) is int and type(Prices(flops=np.float64(1)).flops) is float


@pytest.mark.parametrize("wrong", [np.bool_(True), np.float64(3), np.array([3]), np.array(3.0), np.int64(-1), True])
def test_what_is_no_whole_number_is_none_in_numpy_either(wrong: Any) -> None:
    with pytest.raises(GrowError, match=r"steps is .*, not a whole number from 1"):
        GrowOptions(steps=wrong)


@pytest.mark.parametrize(
    ("kind", "taken", "refused"),
    [
        (Whole, [0, 1, np.int64(1)], [True, False, 1.0, "1", None]),
        (Real, [0, 1, 0.5, np.float32(0.5)], [True, "1", None, math.nan]),
        (Truth, [True, False, np.bool_(True)], [1, 0, "true", None]),
        (Text, ["a", " a "], ["", " ", "\0", "a\0b", 1, b"a", None]),
        (Whole | None, [None, 0], [False, "1"]),
    ],
)
def test_true_is_no_one_and_one_is_not_true(kind: Any, taken: list[object], refused: list[object]) -> None:
    adapter = TypeAdapter(kind)
    assert [adapter.validate_python(value) for value in taken] == taken
    for value in refused:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


def test_items_of_lists_and_unknown_options_are_named() -> None:
    with pytest.raises(GrowError, match=r"betas\[1\] is 1\.0, not a finite number from 0 and below 1"):
        OptimiserOptions(betas=(0.9, 1.0))
    with pytest.raises(GrowError, match=r"there is no stepps: did you mean steps or learn_steps"):
        GrowOptions(stepps=3)  # type: ignore[call-arg]
    with pytest.raises(GrowError, match="schedule is 3, not text"):
        GrowOptions(schedule=3)  # type: ignore[arg-type]
    with pytest.raises(GrowError, match=r"prices is 3, not a table"):
        GrowOptions(prices=3)  # type: ignore[arg-type]
    with pytest.raises(GrowError, match="flops is 'x', not a whole number"):
        Budget(1, "x")  # type: ignore[arg-type]
    with pytest.raises(GrowError, match=r"\[4\]: Unexpected positional argument"):
        Budget(1, 2, 3, 4.0, 5)  # type: ignore[call-arg]


def _hidden() -> Graph:
    return archir.trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(2, 4))


BATCHES = [(torch.ones(4, 4), torch.tensor([0, 1, 1, 0]))]


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1},
        {"steps": 2.0},
        {"steps": True},
        {"rate": 0.0, "radius": math.nan},
        {"rate": math.inf, "refine": -1, "chunk": 0},
        {"seed": -1, "batch_statistics": 1},
        {"seed": 2**63, "refine": np.float64(3), "radius": "1"},
        {"rate": HUGE, "chunk": False, "batch_statistics": None},
    ],
)
def test_options_of_scoring_are_held_to_the_same_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(ScoreError, match="out of range") as caught:
        archir.score(_hidden(), BATCHES, **wrong)
    assert all(f"{name} is " in caught.value.where for name in wrong), caught.value.where


def test_scoring_takes_numbers_of_numpy() -> None:
    options: dict[str, Any] = {
        "steps": np.int64(2),
        "rate": np.float64(0.1),
        "refine": np.int32(3),
        "seed": np.uint8(1),
    }
    graph = _hidden()
    found = archir.score(graph, BATCHES, **options)
    wanted = archir.score(graph, BATCHES, **{name: value.item() for name, value in options.items()})
    assert [s.predicted for s in found] == [s.predicted for s in wanted]
    assert len(archir.score(_hidden(), BATCHES, steps=0, refine=0)) == len(found)


@pytest.mark.parametrize("ridge", [-1e-4, math.nan, math.inf, True, "1", None, np.bool_(True)])
def test_the_ridge_of_compensation_is_a_number_from_0(ridge: Any) -> None:
    with pytest.raises(ScoreError, match=r"ridge is .*, not a finite number from 0"):
        archir.prune_with_compensation(_hidden(), BATCHES, "prune{width=w0, units=[0]}", ridge=ridge)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"budget": True}, "parameters is True, not a whole number"),
        ({"budget": 50.5}, "parameters is 50.5, not a whole number"),
        ({"budget": "50"}, "parameters is '50', not a whole number"),
        ({"budget": np.float64(50)}, "parameters is 50.0, not a whole number"),
        ({"budget": -5}, "parameters is -5, not a whole number"),
        ({"budget": None}, "growth needs a budget"),
        ({"options": {"steps": 3}}, "a dict is no GrowOptions"),
        ({"train": torch.ones(4, 4)}, "the training data are no examples with targets"),
        ({"validation": (torch.ones(4, 4),)}, "a batch is a pair (inputs, targets) or a mapping, not a Tensor"),
        ({"train": (np.array("four"), torch.zeros(4, dtype=torch.long))}, "inputs of the training data is no array"),
        ({"train": ({}, torch.zeros(4, dtype=torch.long))}, "there are no inputs, or they are no tensors"),
        ({"train": (torch.ones(4, 4), [0, 1, 1, None])}, "targets of the training data is no array of numbers"),
    ],
)
def test_arguments_of_growth_that_are_none_are_told(changed: dict[str, Any], named: str) -> None:
    given: dict[str, Any] = {"train": BATCHES[0], "validation": BATCHES[0], "budget": 50, **changed}
    with pytest.raises(ArchirError) as caught:
        archir.grow(_hidden(), **given)
    assert named in str(caught.value)


def test_a_budget_may_be_a_number_of_numpys() -> None:
    options, limit = GrowOptions(steps=2, growth_steps=0, batch_size=4), np.int64(50)
    given: dict[str, Any] = {"train": BATCHES[0], "validation": BATCHES[0], "budget": limit, "options": options}
    run = archir.grow(_hidden(), **given)
    assert run.history[0]["budget"] == {"parameters": 50}


def test_the_command_takes_what_the_function_takes(tmp_path: Path) -> None:
    _hidden().save(tmp_path / "net.archir")
    for options, names in (
        (("--learn-steps=-1", "--refine=-1", "--chunk=0"), ("steps is -1", "refine is -1", "chunk is 0")),
        (("--examples=0", "--batch-size=0"), ("examples is 0", "batch_size is 0")),
    ):
        error = refused("score", tmp_path / "net.archir", "--data", "digits", *options)
        assert all(name in error for name in names)
