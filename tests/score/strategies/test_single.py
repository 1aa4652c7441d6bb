"""Rules for single candidates against directional derivatives and true differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from archir.rewrite.spec import format_spec
from archir.score.learn import Recipe
from archir.score.objective import Curvature
from archir.score.screen import screen
from archir.score.strategies.single import AdditiveGaussNewton, BruteForce, FirstOrder
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.score.strategies.nets import images, make_task, mean_loss, perceptron, weight


def test_the_first_order_is_the_derivative_along_the_change() -> None:
    graph, batches = perceptron()
    ranking = FirstOrder()(make_task(graph, batches, Split(), Prune(), recipe=Recipe(steps=5)))
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    w, b, v, c = (weight(graph, n) for n in ("inner.weight", "inner.bias", "outer.weight", "outer.bias"))
    hidden = torch.tanh(x @ w.mT + b)
    for unit in range(4):
        split, prune = (ranking[f"{kind}{{width=w0, units=[{unit}]}}"] for kind in ("split", "prune"))
        assert split.theta is not None and prune.theta is None
        (theta,) = split.theta.values()
        plus, minus = (torch.tanh(x @ (w + s * theta).mT + b) for s in (1, -1))
        for ranked, change in ((split, (plus + minus) / 2 - hidden), (prune, -hidden)):
            amount = torch.zeros((), dtype=torch.float64, requires_grad=True)
            only = torch.zeros(4, dtype=torch.float64)
            only[unit] = 1
            loss = cross_entropy((hidden + amount * change * only) @ v.mT + c, y)
            (slope,) = torch.autograd.grad(loss, amount)
            assert ranked.predicted == ranked.order == pytest.approx(float(slope), rel=1e-9, abs=1e-12)


def test_first_order_learning_lowers_the_first_order_as_far_as_the_trust_region_goes() -> None:
    graph, batches = images()
    morphism, recipe = Widen(count=2), Recipe(steps=60, rate=0.5, radius=5.0)
    learned = FirstOrder()(make_task(graph, batches, morphism, recipe=recipe))
    task = make_task(graph, batches, morphism, recipe=replace(recipe, steps=0))
    start = FirstOrder()(task)
    for family in task.families:
        (spec,) = map(format_spec, family.site.members)
        theta = learned[spec].theta
        assert theta is not None
        assert learned[spec].order < min(2 * start[spec].order, 0)
        used = [
            tensor.flatten(1).norm(dim=1) / (5.0 * family.perturbation.theta[node].flatten(1).norm(dim=1))
            for node, tensor in theta.items()
        ]
        assert all(bool((u <= 1 + 1e-9).all()) and bool((u > 0.9).any()) for u in used)


def test_brute_force_is_the_true_difference() -> None:
    graph, batches = images()
    ranking = BruteForce()(make_task(graph, batches, Split(), Prune(), Widen(count=2)))
    before = float(mean_loss(graph, batches).detach())
    assert len(ranking) == 21
    for ranked in ranking:
        true = float(mean_loss(ranking.together([ranked]).apply(), batches).detach()) - before
        assert ranked.predicted == pytest.approx(true, rel=1e-9, abs=1e-12)


def test_additive_is_what_screening_says_of_each_and_their_sum() -> None:
    graph, batches = images()
    task = make_task(graph, batches, Split(), Prune(), recipe=Recipe(steps=3, curvature=Curvature.EXACT))
    ranking = AdditiveGaussNewton()(task)
    found = screen(task.objective, task.perturbations, task.learned, batches, curvature=Curvature.EXACT)
    for family, estimate in zip(task.families, found, strict=True):
        for member, value in zip(family.site.members, estimate.predicted.tolist(), strict=True):
            assert ranking[format_spec(member)].predicted == value
    best = ranking.table[:3]
    assert ranking.predict(best) == pytest.approx(sum(r.order for r in best), rel=1e-12)
