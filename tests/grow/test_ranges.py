"""Options out of range are refused when they are made, all of them at once."""

from __future__ import annotations

import math
from typing import Any

import pytest

from archir.errors import GrowError
from archir.grow.batches import Augmentation
from archir.grow.budget import Budget, Prices
from archir.grow.optimisers import OptimiserOptions
from archir.grow.options import GrowOptions
from archir.ir.seeds import MOST, derived_seed

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
        (OptimiserOptions, {"rate": -0.1, "betas": (0.9, 1.0)}),
        (OptimiserOptions, {"rate": math.inf, "betas": (0.9,)}),
        (Augmentation, {"flip": "yes", "crop": -1}),
        (Augmentation, {"crop": 1.5}),
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
