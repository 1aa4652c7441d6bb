"""A family says exactly what its members do where the region of its width ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from archir.ir.execute import call
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.rewrite.equations import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.pipeline import apply_together
from archir.rewrite.theta import by_node
from archir.testing import evaluate, leaves_of, randomise, relative_difference
from passes.merge import Merge
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.captured import graph_of
from tests.models import ZOO


def capture(name: str) -> tuple[Graph, list[Tensor]]:
    """Return the randomised graph of a model of the zoo in float64, and inputs for it."""
    torch.manual_seed(0)
    example = ZOO[name]
    args, kwargs = example.inputs(), example.kwargs()
    return randomise(graph_of(name).to(torch.float64)), leaves_of(args, kwargs)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("morphism", [Split(), Prune(), Widen(count=2), Merge()], ids=lambda m: m.name)
def test_a_perturbation_is_the_exact_change_where_the_region_ends(name: str, morphism: Morphism) -> None:
    graph, inputs = capture(name)
    before = evaluate(graph, inputs)
    for site in morphism.sites(graph):
        perturbation = morphism.perturbation(graph, site)
        if isinstance(perturbation, Miss):
            assert perturbation.reason
            continue
        theta = perturbation.initial_theta(before, 1)
        deltas = perturbation.delta(before, theta)
        member = len(site.members) // 2
        after = evaluate(apply_together(graph, [(site.members[member], theta or None)]), inputs)
        first = min(deltas, key=lambda edge: graph.order.index(edge.node))
        delta = deltas[first]
        if isinstance(first, Value):
            expected = before[first] + delta
        else:
            members = perturbation.edges[first]
            shape = [-1 if d == members.axis else 1 for d in range(delta.dim())]
            shifted = delta * (members.index == member).reshape(shape)
            node = graph.node(first.node)
            (value,) = [v for use, v in node.operands() if use == first]
            changed = {**before, value: before[value] + shifted}
            expected = call(node, changed.__getitem__)[0]
        found = after[Value(first.node)]
        if found.shape == expected.shape:
            assert relative_difference([found], [expected]) < 1e-9, f"{morphism.name} {site.label}"


def test_theta_is_added_with_opposite_signs_to_the_children() -> None:
    graph, _ = capture("vgg")
    site = next(iter(Split().sites(graph)))
    perturbation = Split().perturbation(graph, site)
    assert not isinstance(perturbation, Miss)
    weight = next(iter(by_node(perturbation.theta)))
    theta = torch.randn_like(graph.tensors[weight])
    member = site.members[1]
    assert isinstance(member, Split)
    new, old = apply_together(graph, [(member, {weight: theta})]).tensors[weight], graph.tensors[weight]
    assert torch.allclose(new[1], old[1] + theta[1], rtol=1e-12)
    assert torch.allclose(new[len(old)], old[1] - theta[1], rtol=1e-12)
    assert torch.equal(new[0], old[0])
