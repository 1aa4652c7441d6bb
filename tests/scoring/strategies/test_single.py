"""Rules for single candidates against directional derivatives and true differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from archir.scoring.objective import Curvature
from archir.scoring.options import ScoreOptions
from archir.scoring.screen import screen
from archir.scoring.strategies.single import AdditiveGaussNewton, BruteForce, FirstOrder
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.scoring.strategies.nets import images, make_scores, mean_loss, perceptron, weight


def test_the_first_order_is_the_derivative_along_the_change() -> None:
    graph, batches = perceptron()
    scores = make_scores(FirstOrder(), graph, batches, Split(), Prune(), options=ScoreOptions(steps=5))
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    w, b, v, c = (weight(graph, n) for n in ("inner.weight", "inner.bias", "outer.weight", "outer.bias"))
    hidden = torch.tanh(x @ w.mT + b)
    for unit in range(4):
        split, prune = (scores[f"{kind}{{width=w0, units=[{unit}]}}"] for kind in ("split", "prune"))
        assert split.theta is not None and prune.theta is None
        (theta,) = split.theta.values()
        plus, minus = (torch.tanh(x @ (w + s * theta).mT + b) for s in (1, -1))
        for found, change in ((split, (plus + minus) / 2 - hidden), (prune, -hidden)):
            amount = torch.zeros((), dtype=torch.float64, requires_grad=True)
            only = torch.zeros(4, dtype=torch.float64)
            only[unit] = 1
            loss = cross_entropy((hidden + amount * change * only) @ v.mT + c, y)
            (slope,) = torch.autograd.grad(loss, amount)
            assert found.predicted == found.order == pytest.approx(float(slope), rel=1e-9, abs=1e-12)


def test_first_order_learning_lowers_the_first_order_as_far_as_the_trust_region_goes() -> None:
    graph, batches = images()
    options = ScoreOptions(steps=60, rate=0.5, radius=5.0)
    learned, start = (
        make_scores(FirstOrder(), graph, batches, Widen(count=2), options=replace(options, steps=n)) for n in (60, 0)
    )
    assert len(learned) == 3
    for found in learned:
        assert found.theta is not None
        assert found.order < min(2 * start[found.spec].order, 0)
        like = found.candidate.family.perturbation.theta
        used = [
            tensor.flatten(1).norm(dim=1) / (5.0 * like[node].flatten(1).norm(dim=1))
            for node, tensor in found.theta.items()
        ]
        assert all(bool((u <= 1 + 1e-9).all()) and bool((u > 0.9).any()) for u in used)


def test_brute_force_is_the_true_difference() -> None:
    graph, batches = images()
    scores = make_scores(BruteForce(), graph, batches, Split(), Prune(), Widen(count=2))
    before = float(mean_loss(graph, batches).detach())
    assert len(scores) == 21
    for found in scores:
        true = float(mean_loss(scores.together([found]).apply(), batches).detach()) - before
        assert found.predicted == pytest.approx(true, rel=1e-9, abs=1e-12)


def test_additive_is_what_screening_says_of_each_and_their_sum() -> None:
    graph, batches = images()
    options = ScoreOptions(steps=3, curvature=Curvature.EXACT)
    scores = make_scores(AdditiveGaussNewton(), graph, batches, Split(), Prune(), options=options)
    thetas = {s.candidate.family: s.theta or {} for s in scores}
    perturbations = [f.perturbation for f in thetas]
    found = screen(scores.objective, perturbations, list(thetas.values()), batches, curvature=Curvature.EXACT)
    assert sum(len(e.predicted) for e in found) == len(scores) == 18
    for family, estimate in zip(thetas, found, strict=True):
        for candidate, value in zip(family.candidates, estimate.predicted.tolist(), strict=True):
            assert scores[candidate.spec].predicted == value
    best = scores.table[:3]
    assert scores.additive(best) == pytest.approx(sum(r.order for r in best), rel=1e-12)
