"""Many candidates under a budget: taken in grades they are as good as one by one, and the budget is filled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from archir.cost import cost
from archir.rewrite.morphism import Morphism
from archir.scoring.budget import Budget
from archir.scoring.chunks import singly
from archir.scoring.families import Candidate, find_families
from archir.scoring.joint import screen_jointly
from archir.scoring.objective import Curvature, make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.refine import refine
from archir.scoring.score import score
from archir.scoring.scores import Scores, Selection
from archir.scoring.selection import Ended
from archir.scoring.sets import CandidateSet
from archir.scoring.strategies.context import make_context
from archir.scoring.strategies.worth import asked_for
from passes.merge import Merge
from passes.prune import Prune
from passes.residual_branch import ResidualBranch
from passes.split import Split
from passes.widen import Widen
from tests.scoring.strategies.nets import drawn, images, network

Batch = tuple[Tensor, Tensor]


def chosen(
    times: float, refine: int, refine_most: int = 512, kinds: Sequence[Morphism] = (Split(),)
) -> tuple[Scores, Selection, Budget]:
    """Return the set that is chosen to grow to some multiple of the parameters."""
    graph = network()
    budget = Budget(parameters=round(times * cost(graph).parameters))
    found = score(
        make_objective(graph, "cross_entropy"),
        drawn(4, 1),
        morphisms=kinds,
        learn=drawn(28, 2),
        options=ScoreOptions(steps=40, budget=budget, refine=refine, refine_most=refine_most),
    )
    return found, found.select(budget), budget


@pytest.mark.parametrize("times", [1.2, 1.3, 1.5])
def test_it_is_as_good_as_one_by_one(times: float) -> None:
    every = sum(len(f.site.members) for f in find_families(network(), [Split()])[0])
    gains = {}
    for name, few, most in (("one by one", 3 * every, 512), ("graded", 4, 24)):
        scores, found, _ = chosen(times, few, most)
        sets = [len(s.candidate.members) for s in scores.choice]
        assert (max(sets) > 1) == (name == "graded") and sum(sets) == every
        gains[name] = -scores.together(found.path).learned(drawn(28, 3)).linearised(drawn(4, 1))
    assert gains["one by one"] > 0.02
    assert gains["graded"] >= 0.95 * gains["one by one"], gains


@pytest.mark.parametrize("times", [1.1, 1.3, 1.5])
def test_the_budget_is_filled_within_two_parts_in_a_hundred(times: float) -> None:
    scores, found, budget = chosen(times, refine=4)
    assert 0.98 < budget.share(found.cost) <= 1
    assert cost(scores.apply(found.path)) == found.cost
    assert all(s.refined for s in found.path)


def test_growing_and_shrinking_candidates_and_splices_are_graded_together() -> None:
    kinds = (Split(), Prune(), Merge(), Widen(count=2), ResidualBranch(hidden=2))
    scores, found, budget = chosen(1.4, 4, 40, kinds)
    assert len(scores.choice) <= 40 < scores.candidates
    assert budget.allows(found.cost) and cost(scores.apply(found.path)) == found.cost
    names = {s.candidate.morphism.name for s in scores.choice}
    assert names >= {"split", "prune", "merge", "widen"}
    assert any(len(s.candidate.members) > 1 and s.candidate.morphism.name == "merge" for s in scores.choice)
    smaller = scores.select(Budget(parameters=round(0.8 * cost(network()).parameters)))
    assert smaller.reached and cost(scores.apply(smaller.path)) == smaller.cost


def test_several_members_are_one_candidate() -> None:
    graph, _ = images()
    for family in find_families(graph, [Split(), Prune(), Merge()])[0]:
        members = tuple(range(len(family.site.members)))[1:3] or (0,)
        both = Candidate(family, members)
        units = [u for m in members for u in getattr(family.site.members[m], "units", ())]
        assert both.spec == f"{family.morphism.name}{{width={family.site.label}, units={units}}}"
        assert cost(both.morphism.apply(graph)) == cost(graph) + both.cost
    widened = find_families(graph, [Widen()])[0][0]
    assert widened.united((0,)) == widened.site.members[0] and widened.united((0, 0)) is None


def test_groups_move_the_outputs_as_their_members_do_together() -> None:
    graph, batches = images()
    context = make_context(
        make_objective(graph, "cross_entropy"), batches, morphisms=(Split(), Prune()), options=ScoreOptions(steps=2)
    )
    places = [(f, m) for f, family in enumerate(context.families) for m in range(len(family.site.members))]
    groups = [places[::3], places[1::3], places[2:5], places]
    given = context.streamed, context.perturbations, context.thetas
    alone = refine(*given, singly(places), context.batches)
    for chunk in (1, 3, None):
        found = refine(*given, groups, context.batches, chunk=chunk)
        for number, group in enumerate(groups):
            inside = [places.index(p) for p in group]
            assert float(found.first_order[number]) == pytest.approx(float(alone.first_order[inside].sum()), rel=1e-9)
            for other, beside in enumerate(groups):
                total = alone.gram[inside][:, [places.index(p) for p in beside]].sum()
                assert float(found.gram[number, other]) == pytest.approx(float(total), rel=1e-9, abs=1e-15)
            assert found.linearised([number]) == pytest.approx(alone.linearised(inside), rel=1e-9)
    reverse = screen_jointly(*given, context.batches, curvature=Curvature.EXACT, groups=groups)
    assert torch.allclose(reverse.gram, found.gram, rtol=1e-9, atol=1e-15)
    assert torch.allclose(reverse.groups.first_order, found.first_order, rtol=1e-9, atol=1e-15)
    assert torch.allclose(reverse.groups.stderr, found.stderr, rtol=1e-6, atol=1e-12)
    assert torch.allclose(reverse.cross[:, 3], alone.gram.sum(1), rtol=1e-9, atol=1e-15)


def test_about_as_many_are_asked_for_as_are_taken() -> None:
    graph, _ = images()
    families = find_families(graph, [Split(), Prune()])[0]
    now = cost(graph)
    for times in (1.2, 1.5):
        budget = Budget(parameters=round(times * now.parameters))
        assert 0 < asked_for(families, budget) <= sum(len(f.site.members) for f in families) / 2
    assert asked_for(families, Budget(parameters=now.parameters)) == 0
    assert asked_for(families, Budget(parameters=10**9)) == sum(len(f.site.members) for f in families) / 2
    assert asked_for(families, Budget(flops=now.flops // 2)) > asked_for(families, Budget(flops=now.flops * 9 // 10))
    assert asked_for([], Budget(parameters=10)) == 0


def test_a_limit_that_most_candidates_do_not_touch_is_no_reason_to_look_at_few() -> None:
    graph = network()
    families, now = find_families(graph, [Split()])[0], cost(graph)
    free = sum(len(f.site.members) for f in families if f.cost.peak_bytes <= 0)
    assert 0 < free < sum(len(f.site.members) for f in families)
    budget = Budget(parameters=2 * now.parameters, peak_bytes=now.peak_bytes)
    assert asked_for(families, budget) == free


def test_what_is_in_a_set_counts_as_known() -> None:
    scores, found, _ = chosen(10.0, 4, 16)
    assert len(scores.choice) <= 16 and found.ended in (Ended.TAKEN, Ended.GAINLESS)
    smaller = scores.select(Budget(parameters=1))
    assert smaller.ended is Ended.UNREACHED and all(s.refined for s in smaller.path)


class Alone(Split):
    """A split whose units cannot be taken together."""

    def united(self, members: Sequence[Self]) -> Self:
        """Return none."""
        return None  # type: ignore[return-value]


def test_of_what_can_only_be_alone_the_best_are_known() -> None:
    scores, found, budget = chosen(1.3, 4, 10, (Alone(),))
    assert len(scores.choice) == 10 and all(len(s.candidate.members) == 1 for s in scores.choice)
    assert found.path and budget.allows(found.cost)
    unbounded = chosen(10.0, 4, 10, (Alone(),))[1]
    assert len(unbounded.path) <= 10 and unbounded.ended is Ended.UNREFINED


def test_rewrites_that_exclude_each_other_do_not_learn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    learned, seen = CandidateSet.learned, list[CandidateSet]()

    def record(self: CandidateSet, *given: Any) -> CandidateSet:
        seen.append(self)
        return learned(self, *given)

    monkeypatch.setattr(CandidateSet, "learned", record)
    chosen(4.0, 4, 40, (Split(), *(ResidualBranch(hidden=h) for h in (2, 4, 6))))
    members = [m.candidate for m in seen[0].members]
    splices = [c.family.claims for c in members if c.morphism.name == "residual-branch"]
    assert splices and sum(map(len, splices)) == len(frozenset().union(*splices))
    assert any(c.morphism.name == "split" for c in members)
