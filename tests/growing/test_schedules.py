"""Schedules: their shapes in numbers, and what is none."""

from __future__ import annotations

import math

import pytest

from archir.errors import GrowError
from archir.growing.options import GrowOptions
from archir.growing.schedules import Schedule


def test_schedules() -> None:
    cosine = Schedule(1.0, 12, warmup=2, last=0.1)
    assert [cosine(s) for s in (0, 1)] == [0.5, 1.0]
    assert cosine(2) == 1.0
    assert cosine(7) == pytest.approx(0.55, rel=1e-12)
    assert cosine(4) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 5)) / 2, rel=1e-12)
    assert cosine(12) == cosine(99) == pytest.approx(0.1, rel=1e-12)
    linear = Schedule(1.0, 10, shape="linear")
    assert [linear(s) for s in (0, 5, 10)] == [1.0, 0.5, 0.0]
    assert {Schedule(0.3, 10, shape="constant")(s) for s in range(20)} == {0.3}


def test_a_held_rate_falls_over_the_last_part_of_the_steps() -> None:
    held = Schedule(1.0, 20, warmup=2, shape="held", last=0.2, decay=0.25)
    assert [held(s) for s in (0, 1)] == [0.5, 1.0]
    assert {held(s) for s in range(1, 16)} == {1.0}
    assert [held(s) for s in range(16, 20)] == pytest.approx([0.84, 0.68, 0.52, 0.36], rel=1e-12)
    assert held(20) == held(99) == pytest.approx(0.2, rel=1e-12)
    assert {Schedule(0.3, 10, shape="held", decay=0.0)(s) for s in range(10)} == {0.3}
    whole = Schedule(1.0, 10, warmup=4, shape="held", decay=1.0)
    assert [whole(s) for s in (3, 4, 7)] == pytest.approx([1.0, 1.0, 0.5]), "the decay waits for the warm-up"


def test_options_make_the_schedule_of_a_run() -> None:
    options = GrowOptions(steps=10, growth_steps=0, schedule="held", decay=0.2, warmup=1).with_rate(0.3)
    assert GrowOptions(steps=99).with_rate(0.3).rate == Schedule(0.3, 99, 4, "held")
    assert options.rate == Schedule(0.3, 10, 1, "held", decay=0.2)


def test_bad_schedules_are_refused() -> None:
    with pytest.raises(GrowError, match=r"no schedule 'cosin': did you mean cosine\?"):
        Schedule(1.0, 10, shape="cosin")
    with pytest.raises(GrowError, match="a warm-up of 10 steps does not fit into 10"):
        Schedule(1.0, 10, warmup=10)
