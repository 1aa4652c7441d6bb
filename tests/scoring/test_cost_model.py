"""What sets of candidates cost by the model, against their exact cost."""

from __future__ import annotations

import random

import pytest
import torch

from archir.axes.infer import infer_widths
from archir.axes.terms import leaves
from archir.cost import cost
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.rewrite.morphism import Morphism, UnitMorphism
from archir.rewrite.set_cost import cost_of_set
from archir.scoring.budget import Budget
from archir.scoring.combination import Combination
from archir.scoring.cost_model import CostModel, model_costs
from archir.scoring.families import Candidate, find_families
from archir.scoring.fill import inspect
from archir.scoring.knapsack import Knapsack
from passes.merge import Merge
from passes.prune import Prune
from passes.residual_branch import ResidualBranch
from passes.split import Split
from passes.widen import Widen
from tests.models.captured import graph_of

UNITS: tuple[Morphism, ...] = (Split(), Prune(), Merge(), Widen(count=3))
LIMITS = Budget(parameters=10_000, flops=1_000_000, peak_bytes=10_000)


def used(model: CostModel, chosen: list[int]) -> tuple[float, ...]:
    """Return what a set uses by the model."""
    none = torch.zeros(len(model.kinds), dtype=torch.float64)
    problem = Knapsack(
        alone=none,
        gram=torch.zeros(0, 0, dtype=torch.float64),
        kinds=model.kinds,
        resources=model.resources,
        apart=model.apart,
        sizes=model.sizes,
        effects=model.effects,
        barred=none > 0,
    )
    return inspect(problem, chosen).used


def drawn(model: CostModel, candidates: list[Candidate], combination: Combination, dice: random.Random) -> list[int]:
    """Draw a set of candidates that go together, most of which are on a few widths."""
    chosen: list[int] = []
    for number in dice.sample(range(len(candidates)), min(60, len(candidates))):
        more = combination.plus(candidates[number])
        apart = bool(model.apart[number, chosen].any())
        assert not (apart and more is not None), "what the model keeps apart does not go together"
        if more is not None:
            combination = more
            chosen.append(number)
    assert combination.cost() == cost_of_set(combination.graph, [candidates[c].morphism for c in chosen])
    return chosen


def _three_in_one(graph: Graph, chosen: list[Candidate]) -> bool:
    """Say whether a stored tensor has three widths that change, whose product no quadratic is."""
    widths = infer_widths(graph)
    changed = {widths[m.morphism.width].atom for m in chosen if isinstance(m.morphism, UnitMorphism)}
    stored = [widths.axes[Value(node.id)] for node in graph.parameters]
    return any(len(changed & {atom for term in terms for atom in leaves(term)}) > 2 for terms in stored)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "mlp", "gpt", "unet"])
def test_sets_of_changes_of_widths_cost_what_the_model_says(name: str) -> None:
    graph = graph_of(name)
    families, _ = find_families(graph, UNITS)
    candidates = [c for f in families for c in f.candidates]
    model, dice = model_costs(graph, candidates, LIMITS), random.Random(0)
    assert used(model, []) == pytest.approx(model.used(cost(graph)))
    for _ in range(3):
        chosen = drawn(model, candidates, Combination(graph), dice)
        exact = cost_of_set(graph, [candidates[c].morphism for c in chosen])
        assert used(model, chosen) == pytest.approx(model.used(exact), rel=1e-3)
        while _three_in_one(graph, [candidates[c] for c in chosen]):
            left_out = candidates[chosen[0]].family.site.label
            chosen = [c for c in chosen if candidates[c].family.site.label != left_out]
        exact = cost_of_set(graph, [candidates[c].morphism for c in chosen])
        assert chosen and used(model, chosen)[0] == pytest.approx(model.used(exact)[0], rel=1e-12)


def test_other_rewrites_cost_what_they_cost_alone() -> None:
    graph = graph_of("resnet")
    families, _ = find_families(graph, (ResidualBranch(hidden=2), Split()))
    candidates = [c for f in families for c in f.candidates]
    model = model_costs(graph, candidates, LIMITS)
    for number in range(0, len(candidates), 5):
        exact = cost(graph) + candidates[number].cost
        assert used(model, [number])[:2] == pytest.approx(model.used(exact)[:2], rel=1e-12)


def test_many_candidates_go_together_as_they_do_one_by_one() -> None:
    graph = graph_of("resnet")
    families, _ = find_families(graph, (*UNITS, ResidualBranch(hidden=2)))
    candidates = [c for f in families for c in f.candidates]
    dice, said = random.Random(1), set[bool]()
    for count in (2, 2, 3, 3, 4, 4, 6, 6, 40, 40):
        few = dice.sample(candidates, count)
        one: Combination | None = Combination(graph)
        for candidate in few:
            one = None if one is None else one.plus(candidate)
        many = Combination(graph).plus(*few)
        said.add(many is None)
        assert (one is None) == (many is None)
        assert one is None or many is None or one.cost() == many.cost()
    assert said == {True, False}
