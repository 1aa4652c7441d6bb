"""Scores of a small trained net: predictions against true changes, sets, budgets, and what cannot be scored."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import nn

from archir.api import score
from archir.cost import cost
from archir.errors import ScoreError
from archir.growing.batches import Batches, stream
from archir.growing.examples import Examples
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.recalibration import recalibrate
from archir.growing.trainer import Trainer
from archir.growing.training import evaluate, train
from archir.ir.graph import Graph
from archir.rewrite.morphism import Morphism
from archir.rewrite.spec import format_spec
from archir.rewrite.theta import by_node
from archir.scoring.combination import Combination
from archir.scoring.families import Candidate
from archir.scoring.learn import learn
from archir.scoring.losses import find_loss
from archir.scoring.objective import make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.propose import propose_composites
from archir.scoring.scores import Score, Scores
from frontends.pytorch import trace
from passes.prune import Prune
from passes.residual_branch import ResidualBranch
from passes.split import Split
from passes.widen import Widen
from tests.models.vision import ResNet

LOSS = find_loss("cross_entropy")


class Net(nn.Module):
    """A small convolutional net with a residual connection."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(width, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.outer = nn.Conv2d(6, width, 3, padding=1)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = nn.functional.max_pool2d(torch.relu(x + self.outer(self.inner(x))), 2)
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def digits() -> Examples:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    inputs = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)[order]
    return Examples((inputs - inputs.mean()) / inputs.std(), torch.tensor(labels)[order])


@pytest.fixture(scope="module")
def trained(digits: Examples) -> Graph:
    torch.manual_seed(0)
    trainer = Trainer(
        trace(Net(), (torch.randn(4, 1, 8, 8),)), GrowOptions(optimiser=OptimiserOptions("sgd", rate=0.05))
    )
    batches = Batches(digits.take(slice(0, 1000)), 64, seed=0)
    several = stream(batches)
    train(trainer.module, (next(several) for _ in range(100)), LOSS, trainer.optimiser)
    recalibrate(trainer.module, batches)
    return trainer.graph()


@pytest.fixture(scope="module")
def scores(trained: Graph, digits: Examples) -> Scores:
    return make_scores(trained, digits)


def make_scores(graph: Graph, digits: Examples, morphisms: Sequence[Morphism] = (Split(), Prune())) -> Scores:
    return score(
        graph,
        Batches(digits.take(slice(1000, 1400)), 200),
        loss="cross_entropy",
        morphisms=morphisms,
        learn=Batches(digits.take(slice(0, 1000)), 100, seed=1),
        steps=60,
        refine=1000,
    )


def true_change(scores: Scores, subset: list[Score], on: Examples) -> float:
    before = evaluate(scores.graph.module(), on, LOSS).loss
    return evaluate(scores.apply(subset).module(), on, LOSS).loss - before


def test_single_predictions_rank_the_candidates_as_the_truth_does(scores: Scores, digits: Examples) -> None:
    on = digits.take(slice(1000, 1400))
    clear = [s for s in scores if s.stderr is not None and abs(scores.additive([s])) > 2 * s.stderr]
    true = [true_change(scores, [s], on) for s in clear]
    assert len(clear) >= 12
    assert spearmanr([s.predicted for s in clear], true).statistic > 0.9


def test_the_joint_models_are_right_about_sets_and_the_additive_one_is_not(scores: Scores, digits: Examples) -> None:
    on = digits.take(slice(1000, 1400))
    splits = [s for s in scores if s.spec.startswith("split")]
    dice = random.Random(0)
    subsets = [dice.sample(splits, k=dice.randrange(2, len(splits))) for _ in range(25)]
    true = torch.tensor([true_change(scores, s, on) for s in subsets])
    errors = {
        name: float((torch.tensor([getattr(scores, name)(s) for s in subsets]) - true).abs().mean())
        for name in ("additive", "joint", "linearised")
    }
    assert errors["linearised"] < 0.5 * errors["additive"]
    assert errors["joint"] < errors["additive"]


def test_the_chosen_set_does_what_was_predicted(scores: Scores, digits: Examples) -> None:
    path = scores.choose(k=6)
    assert len(path) == 6
    predicted = scores.linearised(path)
    realised = true_change(scores, path, digits.take(slice(1000, 1400)))
    assert predicted < 0
    assert realised == pytest.approx(predicted, rel=0.35)
    values = [scores.linearised(path[: i + 1]) for i in range(len(path))]
    assert values == sorted(values, reverse=True)


def test_a_budget_is_hard_and_a_price_is_paid(scores: Scores) -> None:
    now = cost(scores.graph)
    path = scores.choose(budget=lambda c: c.parameters <= now.parameters + 150)
    assert path
    assert cost(scores.apply(path)).parameters <= now.parameters + 150
    assert cost(scores.apply(path)) == scores.cost_of(path)
    assert all(s.candidate.cost.parameters < 0 for s in scores.choose(price=lambda c: 10.0 * c.parameters))
    smaller = scores.choose(price=lambda c: 10.0 * c.parameters)
    assert cost(scores.apply(smaller)).parameters < now.parameters


def test_no_unit_is_both_split_and_pruned_and_no_width_vanishes(scores: Scores) -> None:
    path = scores.choose(price=lambda c: 1000.0 * c.parameters)
    assert path
    smaller = scores.apply(path)
    assert smaller.parameter_count < scores.graph.parameter_count
    assert [t.shape for t in smaller.tensors.values() if 0 in t.shape] == []
    touched = [(s.candidate.morphism.width, s.candidate.morphism.units) for s in path]  # type: ignore[attr-defined]
    assert len(set(touched)) == len(touched)


def test_the_same_seed_gives_the_same_scores(trained: Graph, digits: Examples, scores: Scores) -> None:
    again = make_scores(trained, digits)
    assert [s.spec for s in again] == [s.spec for s in scores]
    assert [s.predicted for s in again] == [s.predicted for s in scores]


def test_learning_lowers_the_estimate_and_stays_in_the_trust_region(scores: Scores, trained: Graph) -> None:
    assert float(scores.learning[-10:].mean()) < float(scores.learning[:10].mean())
    learned = {s.candidate.family: s.theta for s in scores if s.theta}
    assert len(learned) >= 2
    for theta in learned.values():
        for node, change in by_node(theta).items():
            weight = trained.tensors[node]
            assert bool((change.flatten(1).norm(dim=1) <= 0.5 * weight.flatten(1).norm(dim=1) * (1 + 1e-5)).all())


def test_widening_is_learned_and_scored_too(trained: Graph, digits: Examples) -> None:
    on = digits.take(slice(1000, 1400))
    found = score(trained, Batches(on, 200), morphisms=(Widen(count=3),), steps=60, refine=100)
    best = next(iter(found))
    assert found.additive([best]) < 0
    assert true_change(found, [best], on) == pytest.approx(best.predicted, rel=0.5)


def test_what_cannot_be_scored_is_said(trained: Graph, digits: Examples, scores: Scores) -> None:
    one = Batches(digits.take(slice(0, 64)), 64)
    with pytest.raises(ScoreError, match="no batches"):
        score(trained, [], morphisms=(Prune(),))
    images = torch.randn(4, 1, 8, 8)
    for wrong in (images, [images], [(images, [1, 2, 3, 4])]):
        with pytest.raises(ScoreError, match="a batch is a pair"):
            score(trained, wrong, morphisms=(Prune(),))  # type: ignore[arg-type]
    with pytest.raises(ScoreError, match="nan"):
        score(trained, one, morphisms=(Prune(),), loss=lambda o, t: o.mean(tuple(range(1, o.dim()))) * math.nan)
    with pytest.raises(ScoreError, match="did you mean cross_entropy"):
        score(trained, one, morphisms=(Prune(),), loss="cross_entrop")
    with pytest.raises(ScoreError, match="scores no candidate"):
        scores["split{width=w9, units=[0]}"]
    with pytest.raises(ScoreError, match="no model"):
        scores.choose(model="additve")
    few = score(trained, one, morphisms=(Split(), Prune()), steps=2, refine=3)
    assert few.refined == 3
    unrefined = [s for s in few if not s.refined]
    with pytest.raises(ScoreError, match="was not refined"):
        few.joint(unrefined[:1])
    torch.manual_seed(0)
    model = ResNet()
    with pytest.raises(ScoreError):
        score(trace(model, (torch.randn(2, 3, 32, 32),)), one, morphisms=(Prune(),))


def test_nothing_to_learn_leaves_nothing_learned(trained: Graph, digits: Examples) -> None:
    site = next(iter(Prune().sites(trained)))
    perturbation = Prune().perturbation(trained, site)
    learned = learn(
        make_objective(trained, LOSS),
        [perturbation],  # type: ignore[list-item]
        Batches(digits.take(slice(0, 64)), 64),
        ScoreOptions(steps=3),
    )
    assert learned.thetas == ({},)


def test_a_set_is_predicted_on_other_batches(scores: Scores, trained: Graph, digits: Examples) -> None:
    """On the batches it was scored on the prediction is the same; on others it is that of the linearised network.

    At half of what was learned the network is nearly linear there; how far off it is at all of it depends on rounding.
    """
    chosen = scores.choose(k=4)
    same, other = digits.take(slice(1000, 1400)), digits.take(slice(1400, 1797))
    assert scores.predict([], Batches(other, 64)) == 0
    assert scores.predict(chosen, Batches(same, 64)) == pytest.approx(scores.linearised(chosen), rel=1e-4)
    together, batches = scores.together(chosen), Batches(other, 64)
    assert all(m.theta for m in together.members)
    assert scores.predict(chosen, batches) == pytest.approx(together.linearised(batches), rel=1e-6)
    half = together.scaled(0.5)
    true = evaluate(half.apply().module(), other, LOSS).loss - evaluate(trained.module(), other, LOSS).loss
    assert half.linearised(batches) == pytest.approx(true, rel=0.05)


def test_composites_of_what_scored_well_are_proposed_and_scored(trained: Graph, digits: Examples) -> None:
    single = make_scores(trained, digits, morphisms=[ResidualBranch(hidden=4), Split()])
    proposed = propose_composites(single, 3)
    assert len(proposed) == 3
    assert all(isinstance(c.steps[0], ResidualBranch) for c in proposed)
    both = make_scores(trained, digits, morphisms=[ResidualBranch(hidden=4), Split(), *proposed])
    for composite in proposed:
        found = both[format_spec(composite)]
        true = true_change(both, [found], digits.take(slice(1000, 1400)))
        assert found.predicted == pytest.approx(true, rel=0.25), found.spec


@pytest.mark.parametrize("shortlist", [1, 4, 1000])
def test_a_few_candidates_are_judged_and_the_choice_is_that_of_judging_all(
    trained: Graph, digits: Examples, shortlist: int
) -> None:
    kinds: list[Morphism] = [Split(), Prune(), ResidualBranch(hidden=4)]
    scores = make_scores(trained, digits, morphisms=kinds)
    scores = replace(scores, options=replace(scores.options, shortlist=shortlist))
    assert scores.refinement is not None
    for price in (0.0, 5e-6):
        path = scores.choose(k=8, price=lambda c, price=price: price * c.parameters)  # type: ignore[misc]
        expected: list[Score] = []
        combination: Combination | None = Combination(trained)
        while len(expected) < 8:
            gains = {
                s.spec: scores.linearised([*expected, s])
                - scores.linearised(expected)
                + price * s.candidate.cost.parameters
                for s in scores.choice
                if combination is not None and combination.plus(s.candidate) is not None
            }
            best = min(gains, key=gains.__getitem__)
            if gains[best] >= 0:
                break
            expected.append(scores[best])
            combination = combination and combination.plus(scores[best].candidate)
        assert [s.spec for s in path] == [s.spec for s in expected] and len(path) > 4


def test_a_candidate_is_a_family_and_a_number_in_it(scores: Scores, trained: Graph, digits: Examples) -> None:
    again = make_scores(trained, digits)
    for mine, other in zip(scores, again, strict=True):
        assert mine.candidate != other.candidate and mine.spec == other.spec == mine.candidate.spec
        assert mine.candidate == Candidate(mine.candidate.family, mine.candidate.members)
        assert scores[mine.spec] is mine
    some, others = list(scores)[:3], list(again)[:3]
    assert scores.joint(some) == scores.joint([s.candidate for s in some]) == scores.joint(others)
    assert scores.together(some).members[0].candidate is some[0].candidate
