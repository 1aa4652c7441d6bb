"""Sets that grow and shrink under the models of the loss: what is said of flips is what comes of them."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch

from archir.scoring.options import ScoreOptions
from archir.scoring.refine import Refinement
from archir.scoring.set_models import Additive, Joint, Linearised, SetModel
from passes.prune import Prune
from passes.split import Split
from tests.scoring.strategies.nets import images, make_scores


@cache
def refined() -> Refinement:
    graph, batches = images()
    found = make_scores("linearised", graph, batches, Split(), Prune(), options=ScoreOptions(steps=3)).refinement
    assert found is not None
    return found


def models() -> list[SetModel]:
    return [Additive(refined().quadratic[0]), Joint(refined()), Linearised(refined())]


@pytest.mark.parametrize("model", models(), ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("further", [0, 3])
def test_flips_do_what_is_said_of_them(model: SetModel, further: int) -> None:
    """Prices and further candidates, which the model does not know, add to what it says."""
    count = len(refined().first_order)
    more = torch.randn(count + further, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 10
    state, dice = model.start(more), random.Random(0)
    inside: set[int] = set()

    def true(chosen: set[int]) -> float:
        return model.predict(sorted(c for c in chosen if c < count)) + float(more[sorted(chosen)].sum())

    for _ in range(25):
        one, other = dice.sample(range(count + further), 2)
        assert state.change == pytest.approx(true(inside), abs=1e-9)
        (judged,) = state.judge([one]).tolist()
        assert judged == pytest.approx(true(inside ^ {one}), abs=1e-9)
        assert float(state.estimates[one]) == pytest.approx(judged, abs=1e-12)
        assert state.change + float(state.flips[one]) == pytest.approx(judged, abs=1e-12)
        (both,) = state.judge_pairs([(one, other)]).tolist()
        assert both == pytest.approx(true(inside ^ {one, other}), abs=1e-9)
        if state.exact:
            sign = (1 if one not in inside else -1) * (1 if other not in inside else -1)
            between = float(state.between(torch.tensor([one, other]))[0, 1])
            assert both - state.change == pytest.approx(float(state.flips[[one, other]].sum()) + sign * between)
        apart = state.copy()
        apart.flip(other)
        assert apart.change == pytest.approx(true(inside ^ {other}), abs=1e-9)
        state.flip(one)
        inside ^= {one}
    assert len(inside) > 3


def test_the_estimates_of_the_linearised_network_are_right_to_second_order() -> None:
    """At first they are those of the joint model; those of members follow the same rule."""
    state = Linearised(refined()).start()
    assert torch.allclose(state.flips, Joint(refined()).start().flips)
    state.flip(0)
    (back,) = state.judge([0]).tolist()
    assert back == pytest.approx(0.0, abs=1e-12)
