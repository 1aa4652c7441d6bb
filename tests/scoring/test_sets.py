"""Sets of candidates whose θ is learned for all of them together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from archir.api import score
from archir.ir.graph import Graph
from archir.scoring.options import ScoreOptions
from archir.scoring.scores import Score, Scores
from archir.scoring.sets import ALIKE, LARGEST_SCALE, SCALED_ON, SCALINGS, SMALLEST_SCALE
from frontends.pytorch import trace
from passes.prune import Prune
from passes.residual_branch import ResidualBranch
from passes.split import Split as SplitUnits

STEPS = 20
Examples = list[tuple[Tensor, Tensor]]
Digits = tuple[Graph, Examples, Examples]


@pytest.fixture(scope="module")
def digits() -> Digits:
    """A network trained for a while, batches to learn θ on, and others."""
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images / 16), torch.tensor(labels)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 10)).double()
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(inputs[:1000]), targets[:1000]))
        optimiser.step()
    graph = trace(model, (inputs[:2],))
    pairs = [(inputs[i : i + 100], targets[i : i + 100]) for i in range(0, 1700, 100)]
    return graph, pairs[:10], pairs[10:]


@pytest.fixture(scope="module")
def scores(digits: Digits) -> Scores:
    graph, learn, held = digits
    kinds = (SplitUnits(), Prune(), ResidualBranch(hidden=6))
    return score(graph, held, morphisms=kinds, learn=learn, steps=STEPS, rate=0.1)


def overshooting(scores: Scores) -> list[Score]:
    """Return the best candidates whose θ is learned, and a prune of another unit."""
    pruned = next(s for s in scores if s.candidate.morphism.name == "prune" and s.refined)
    others = [s for s in scores if s.candidate.morphism.name != "prune" and s.refined]
    return [*[s for s in others if s.spec.partition("{")[2] != pruned.spec.partition("{")[2]][:9], pruned]


def true_change(graph: Graph, grown: Graph, batches: Examples) -> float:
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        before, after = (F.cross_entropy(g.module().eval()(inputs), targets) for g in (graph, grown))
    return float(after - before)


def test_a_set_learned_together_does_not_overshoot(digits: Digits, scores: Scores) -> None:
    graph, learn, held = digits
    alone = scores.together(overshooting(scores))
    found = alone.learned(learn, ScoreOptions(steps=STEPS, rate=0.1))
    assert found.specs == alone.specs and len(found) == len(alone)
    assert found.linearised(held) < min(0.0, alone.linearised(held))
    assert true_change(graph, found.apply(), held) < min(0.0, true_change(graph, alone.apply(), held))
    assert found.cost() == alone.cost()


def test_theta_is_scaled_before_it_is_learned(digits: Digits, scores: Scores) -> None:
    _, learn, _ = digits
    best = overshooting(scores)
    prunes = [s for s in scores if s.candidate.morphism.name == "prune"]
    inside: list[tuple[float, float]] = []
    for subset in (best, best[:1], *([best[0], pruned] for pruned in prunes)):
        alone = scores.together(subset)
        learning = [i for i, m in enumerate(alone.members) if m.theta]
        still = [i for i, m in enumerate(alone.members) if not m.theta]
        looked: dict[float, float] = {}
        at = 1.0
        for look in range(SCALINGS):
            if any(max(at / one, one / at) <= ALIKE for one in looked):
                break
            joint = alone.scaled(at).refine(learn[:SCALED_ON])
            slope = sum(float(joint.first_order[i]) for i in learning)
            coupling = sum(float(joint.gram[i, j]) for i in learning for j in still)
            curvature = sum(float(joint.gram[i, j]) for i in learning for j in learning)
            looked[at], lowest = slope + coupling + curvature / 2, -(slope + coupling) / curvature
            if still and not look and 0 < lowest < 1:
                inside.append((lowest, -slope / curvature))
            at = min(max(at * max(lowest, 0.0) ** 0.5, SMALLEST_SCALE), LARGEST_SCALE)
        scale = min(looked, key=looked.__getitem__)
        found = alone.learned(learn, ScoreOptions(steps=STEPS, rate=1e-15, radius=1e6))
        for old, new in zip(alone.members, found.members, strict=True):
            assert (old.theta is None) == (new.theta is None)
            for node, theta in (old.theta or {}).items():
                assert torch.allclose((new.theta or {})[node], scale * theta, rtol=1e-6, atol=1e-12)
    assert any(abs(scale - without) > 0.1 for scale, without in inside), "what stands still makes no difference here"


def test_theta_of_all_members_is_scaled_alike(digits: Digits, scores: Scores) -> None:
    graph, _, held = digits
    alone = scores.together(overshooting(scores))
    half = alone.scaled(0.5)
    assert half.specs == alone.specs
    for old, new in zip(alone.members, half.members, strict=True):
        assert (old.theta is None) == (new.theta is None)
        for node, theta in (old.theta or {}).items():
            assert torch.equal((new.theta or {})[node], theta / 2)
    learning = replace(alone, members=tuple(m for m in alone.members if m.theta))
    inputs = held[0][0]
    assert torch.allclose(learning.scaled(0.0).apply().module()(inputs), graph.module()(inputs), rtol=0, atol=1e-12)


def test_sets_with_nothing_to_learn_stay_as_they_are(digits: Digits, scores: Scores) -> None:
    pruned = next(s for s in scores if s.candidate.morphism.name == "prune")
    alone = scores.together([pruned])
    assert alone.learned(digits[1], ScoreOptions(steps=STEPS)) is alone
    empty = scores.together([])
    assert empty.learned(digits[1], ScoreOptions(steps=STEPS)) is empty and empty.linearised(digits[2]) == 0
