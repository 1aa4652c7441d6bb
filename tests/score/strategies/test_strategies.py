"""What all rules share: names, determinism, budgets, compatible sets."""

from __future__ import annotations

import pytest
import torch

from archir.axes.infer import infer_widths
from archir.cost import cost
from archir.errors import ScoreError
from archir.score.score import score
from archir.score.strategies.data_free import Cheapest, Net2Net, Random, Uniform
from archir.score.strategies.ranking import Ranking
from archir.score.strategies.rules import DEFAULT, RULES, find_rule, rank
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.score.strategies.nets import images, make_task, perceptron

KINDS = (Split(), Prune(), Widen(count=2))


def ranked(rule: str, seed: int = 0) -> Ranking:
    graph, batches = images()
    return rank(graph, batches, rule=rule, morphisms=KINDS, steps=3, seed=seed)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_repeatable_and_keeps_to_budgets_and_to_sets_that_go_together(rule: str) -> None:
    ranking, again = ranked(rule), ranked(rule)
    assert ranking.rule == rule == find_rule(rule).name and find_rule(rule).summary
    assert [(r.spec, r.order) for r in ranking] == [(r.spec, r.order) for r in again]
    assert [r.order for r in ranking] == sorted(r.order for r in ranking)
    for one, other in zip(ranking, again, strict=True):
        assert (one.theta is None) == (other.theta is None)
        assert all(torch.equal(t, (other.theta or {})[n]) for n, t in (one.theta or {}).items())
    limit = cost(ranking.graph).parameters + 40
    path = ranking.choose(budget=lambda c: c.parameters <= limit)
    assert path
    grown = ranking.together(path).apply()
    assert cost(grown) == ranking.together(path).cost()
    for i in range(len(path)):
        assert ranking.together(path[: i + 1]).cost().parameters <= limit
    assert all(w.size >= 1 for w in infer_widths(grown))
    assert len(ranking.choose(k=1)) == 1
    assert (ranking.predict(path) is None) == (ranking.model is None)


def test_rules_that_use_chance_depend_on_the_seed() -> None:
    for rule in ("random", "uniform", "cheapest", "net2net"):
        assert [r.spec for r in ranked(rule, 0)] != [r.spec for r in ranked(rule, 1)]


def test_uniform_spreads_over_widths_in_proportion_to_their_sizes() -> None:
    graph, batches = images()
    ranking = Uniform()(make_task(graph, batches, Split()))
    sizes = {"w0": 3, "w1": 4, "w2": 2}
    for k in range(1, 10):
        chosen = [r.spec for r in ranking.choose(k=k)]
        for width, size in sizes.items():
            assert abs(sum(width in s for s in chosen) - k * size / 9) < 1.5
    assert len(ranking) == 9


def test_cheapest_takes_the_fewest_parameters_first() -> None:
    graph, batches = images()
    ranking = Cheapest()(make_task(graph, batches, Split()))
    costs = [r.candidate.cost.parameters for r in ranking]
    assert costs == sorted(costs)
    assert [int(r.order) for r in ranking] == costs


def test_random_learns_theta_and_net2net_does_not() -> None:
    graph, batches = perceptron()
    task = make_task(graph, batches, Split(), Prune())
    random, net2net = Random()(task), Net2Net()(task)
    learned = task.learned[0]
    assert all(random[r.spec].theta == learned for r in net2net)
    for r in net2net:
        assert r.theta is not None
        for node, noise in r.theta.items():
            assert not torch.equal(noise, learned[node])
            assert float(noise.norm()) < 0.2 * float(graph.tensors[node].norm())
    assert {label for label, _ in net2net.misses} == {"prune w0"}


@pytest.mark.parametrize("rule", ["joint", "linearised"])
def test_the_rules_of_the_scorer_choose_what_the_scorer_does(rule: str) -> None:
    graph, batches = images()
    ranking = ranked(rule)
    scores = score(graph, batches, morphisms=KINDS, steps=3)
    assert [(r.spec, r.predicted) for r in ranking] == [(s.spec, s.predicted) for s in scores]
    for price in (None, lambda c: 1e-4 * c.parameters):
        path = ranking.choose(price=price)
        assert [r.spec for r in path] == [s.spec for s in scores.choose(price=price, model=rule)]
        assert ranking.predict(path) == pytest.approx(getattr(scores, rule)([r.candidate for r in path]), rel=1e-12)
    assert ranking.predict([]) == 0
    assert DEFAULT in RULES


def test_prices_are_paid_by_rules_that_predict_and_stop_no_others() -> None:
    ranking = ranked("additive")
    cheap = ranking.choose(price=lambda c: 10.0 * c.parameters)
    assert cheap and all(r.candidate.cost.parameters < 0 for r in cheap)
    assert all(r.predicted is not None and r.predicted < 0 for r in ranking.choose())
    order = ranked("magnitude")
    assert order.choose() == order.choose(price=lambda c: 10.0 * c.parameters)


def test_what_is_not_there_is_said() -> None:
    graph, batches = images()
    with pytest.raises(ScoreError, match="did you mean random"):
        rank(graph, batches, rule="randon", morphisms=KINDS)
    with pytest.raises(ScoreError, match="no batches"):
        rank(graph, [], morphisms=KINDS)
    with pytest.raises(ScoreError, match="the rule taylor takes running statistics"):
        rank(graph, batches, rule="taylor", morphisms=KINDS, batch_statistics=True)
    ranking = ranked("taylor")
    with pytest.raises(ScoreError, match="the rule taylor ranks no candidate"):
        ranking["split{width=w0, units=[0]}"]
    for rule in ("taylor", "splitting-index", "gradmax"):
        task = make_task(graph, [], *KINDS)
        with pytest.raises(ScoreError, match="no batches"):
            find_rule(rule)(task)


@pytest.mark.parametrize("rule", ["linearised", "random", "gradmax", "net2net", "magnitude"])
def test_any_rule_can_be_measured_by_the_linearised_network(rule: str) -> None:
    graph, batches = images()
    ranking = ranked(rule)
    path = ranking.choose(k=3)
    found = ranking.together(path).linearised(batches)
    if rule == "linearised":
        assert ranking.predict(path) == pytest.approx(found, rel=1e-12)
    if rule == "gradmax":
        assert found == pytest.approx(0, abs=1e-12)
    if rule == "magnitude":
        scores = score(graph, batches, morphisms=KINDS, steps=0, refine=1000)
        assert found == pytest.approx(scores.linearised([r.candidate for r in path]), rel=1e-12)
    assert ranking.together([]).linearised(batches) == 0
    assert ranking.candidates == 21 >= len(ranking)
