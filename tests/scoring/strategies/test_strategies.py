"""What all strategies share: names, determinism, budgets, compatible sets."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import archir
from archir.axes.infer import infer_widths
from archir.cost import cost
from archir.errors import ScoreError
from archir.rewrite.theta import by_node
from archir.scoring.options import ScoreOptions
from archir.scoring.scores import Scores
from archir.scoring.strategies.context import ScoringContext
from archir.scoring.strategies.data_free import Cheapest, Net2Net, Random, Uniform
from archir.scoring.strategies.registry import DEFAULT, STRATEGIES, find_strategy
from archir.scoring.strategies.result import FamilyResult, StrategyResult
from archir.scoring.strategies.single import AdditiveGaussNewton
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.scoring.strategies.nets import images, make_scores, perceptron

KINDS = (Split(), Prune(), Widen(count=2))


def scored(strategy: str, seed: int = 0) -> Scores:
    graph, batches = images()
    return make_scores(strategy, graph, batches, *KINDS, options=ScoreOptions(steps=3, seed=seed))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_is_repeatable_and_keeps_to_budgets_and_to_sets_that_go_together(strategy: str) -> None:
    scores, again = scored(strategy), scored(strategy)
    assert scores.strategy == strategy == find_strategy(strategy).name and find_strategy(strategy).summary
    assert [(r.spec, r.order) for r in scores] == [(r.spec, r.order) for r in again]
    assert [r.order for r in scores] == sorted(r.order for r in scores)
    for one, other in zip(scores, again, strict=True):
        assert (one.theta is None) == (other.theta is None)
        assert all(torch.equal(t, (other.theta or {})[n]) for n, t in (one.theta or {}).items())
    limit = cost(scores.graph).parameters + 40
    path = scores.choose(budget=lambda c: c.parameters <= limit)
    assert path
    grown = scores.together(path).apply()
    assert cost(grown) == scores.together(path).cost()
    for i in range(len(path)):
        assert scores.together(path[: i + 1]).cost().parameters <= limit
    assert all(w.size >= 1 for w in infer_widths(grown))
    assert len(scores.choose(k=1)) == 1


def test_strategies_that_use_chance_depend_on_the_seed() -> None:
    for strategy in ("random", "uniform", "cheapest", "net2net"):
        assert [r.spec for r in scored(strategy, 0)] != [r.spec for r in scored(strategy, 1)]


def test_uniform_spreads_over_widths_in_proportion_to_their_sizes() -> None:
    graph, batches = images()
    scores = make_scores(Uniform(), graph, batches, Split())
    sizes = {"w0": 3, "w1": 4, "w2": 2}
    for k in range(1, 10):
        chosen = [r.spec for r in scores.choose(k=k)]
        for width, size in sizes.items():
            assert abs(sum(width in s for s in chosen) - k * size / 9) < 1.5
    assert len(scores) == 9


def test_cheapest_takes_the_fewest_parameters_first() -> None:
    graph, batches = images()
    scores = make_scores(Cheapest(), graph, batches, Split())
    costs = [r.candidate.cost.parameters for r in scores]
    assert costs == sorted(costs)
    assert [int(r.order) for r in scores] == costs


def test_random_learns_theta_and_net2net_does_not() -> None:
    graph, batches = perceptron()
    random, net2net, additive = (
        make_scores(s, graph, batches, Split(), Prune()) for s in (Random(), Net2Net(), AdditiveGaussNewton())
    )
    assert len(random) == 8 and len(net2net) == 4
    for found in net2net:
        learned, drawn = additive[found.spec].theta, random[found.spec].theta
        assert found.theta and learned and drawn
        for node, noise in by_node(found.theta).items():
            assert torch.equal(drawn[node], learned[node])
            assert not torch.equal(noise, learned[node])
            assert float(noise.norm()) < 0.2 * float(graph.tensors[node].norm())
    assert {label for label, _ in net2net.misses} == {"prune w0"}


@pytest.mark.parametrize("strategy", ["joint", "linearised"])
def test_sets_are_chosen_on_the_model_of_the_strategy(strategy: str) -> None:
    scores, other = scored(strategy), scored("joint" if strategy == "linearised" else "linearised")
    assert scores.refined == 21 and [s.spec for s in scores.choice] == [s.spec for s in other.choice]
    assert [(s.spec, s.predicted) for s in scores] == [(s.spec, s.predicted) for s in other]
    for price in (None, lambda c: 1e-4 * c.parameters):
        path = scores.choose(price=price)
        assert len(path) > 1
        assert [s.spec for s in path] == [s.spec for s in other.choose(price=price, model=strategy)]
        predict = getattr(scores, strategy)
        assert predict(path) == getattr(other, strategy)([s.candidate for s in path])
        assert predict([]) == 0
    assert DEFAULT in STRATEGIES


def test_a_strategy_of_ones_own_is_used_like_the_others() -> None:
    @dataclass(frozen=True)
    class Reverse:
        name: str = "reverse"
        summary: str = "the last members first"
        running_statistics: bool = False

        def __call__(self, context: ScoringContext) -> StrategyResult:
            sizes = (len(f.candidates) for f in context.families)
            return StrategyResult(tuple(FamilyResult(-torch.arange(n, dtype=torch.float64)) for n in sizes))

    graph, batches = images()
    scores = make_scores(Reverse(), graph, batches, Prune())
    assert scores.strategy == "reverse" and scores.model is None
    assert [s.order for s in scores] == [-3, -2, -2, -1, -1, -1, 0, 0, 0]
    assert [s.spec for s in scores.choose(2)] == ["prune{width=w1, units=[3]}", "prune{width=w0, units=[2]}"]
    with pytest.raises(ScoreError, match="the strategy reverse predicts nothing of"):
        scores.additive(scores.table[:1])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_is_known_together_of_what_was_not_refined(strategy: str) -> None:
    scores = scored(strategy)
    if scores.refinement is not None:
        assert scores.joint(scores.table[:2]) != 0 and scores.choose(model="joint")
        return
    for ask in (scores.joint, scores.linearised):
        with pytest.raises(ScoreError, match="was not refined"):
            ask(scores.table[:1])
        assert ask([]) == 0
    with pytest.raises(ScoreError, match="was not refined"):
        scores.choose(model="linearised")


def test_prices_are_paid_by_strategies_that_predict_and_stop_no_others() -> None:
    scores = scored("additive")
    cheap = scores.choose(price=lambda c: 10.0 * c.parameters)
    assert cheap and all(r.candidate.cost.parameters < 0 for r in cheap)
    assert all(r.predicted is not None and r.predicted < 0 for r in scores.choose())
    order = scored("magnitude")
    assert order.choose() == order.choose(price=lambda c: 10.0 * c.parameters)


def test_what_is_not_there_is_said() -> None:
    graph, batches = images()
    with pytest.raises(ScoreError, match="did you mean random"):
        make_scores("randon", graph, batches, *KINDS)
    with pytest.raises(ScoreError, match="no batches"):
        make_scores("taylor", graph, [], *KINDS)
    with pytest.raises(ScoreError, match="the strategy taylor takes running statistics"):
        archir.score(graph, batches, strategy="taylor", morphisms=KINDS, batch_statistics=True)
    scores = scored("taylor")
    with pytest.raises(ScoreError, match="the strategy taylor scores no candidate"):
        scores["split{width=w0, units=[0]}"]


@pytest.mark.parametrize("strategy", ["linearised", "random", "gradmax", "net2net", "magnitude"])
def test_any_strategy_can_be_measured_by_the_linearised_network(strategy: str) -> None:
    graph, batches = images()
    scores = scored(strategy)
    path = scores.choose(k=3)
    found = scores.together(path).linearised(batches)
    if strategy == "linearised":
        assert scores.linearised(path) == pytest.approx(found, rel=1e-12)
    if strategy == "gradmax":
        assert found == pytest.approx(0, abs=1e-12)
    if strategy == "magnitude":
        refined = archir.score(graph, batches, morphisms=KINDS, steps=0)
        assert found == pytest.approx(refined.linearised([s.candidate for s in path]), rel=1e-12)
    assert scores.together([]).linearised(batches) == 0
    assert scores.candidates == 21 >= len(scores)
