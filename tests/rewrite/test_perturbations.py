"""A family says exactly what its members do where the region of its width ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from archir.ir.execute import call
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.rewrite.equations import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.pipeline import apply_together
from archir.testing import evaluate, leaves_of, randomise, relative_difference
from frontends.pytorch import trace
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
    assert_exact(*capture(name), morphism)


class Same(nn.Module):
    """Convolutions whose padding is `same`, which is another overload of the operator."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding="same")
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 3, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.norm(self.first(x)).relu())
        return y.mean((2, 3))


@pytest.mark.parametrize("morphism", [Split(), Prune(), Widen(count=2), Merge()], ids=lambda m: m.name)
def test_every_overload_of_a_convolution_is_known_to_be_linear(morphism: Morphism) -> None:
    x = torch.randn(3, 2, 6, 6)
    graph = randomise(trace(Same(), (x,)).to(torch.float64))
    assert {n.op for n in graph.calls if "conv" in n.op} == {"aten.conv2d.padding"}
    assert assert_exact(graph, [x.double()], morphism) == 1


def assert_exact(graph: Graph, inputs: list[Tensor], morphism: Morphism) -> int:
    """Compare the families of a graph with what their members do, and return how many were compared."""
    before, compared = evaluate(graph, inputs), 0
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
            compared += 1
    return compared


def test_theta_is_added_with_opposite_signs_to_the_children() -> None:
    graph, _ = capture("vgg")
    site = next(iter(Split().sites(graph)))
    perturbation = Split().perturbation(graph, site)
    assert not isinstance(perturbation, Miss)
    weight = next(iter(perturbation.theta))
    theta = torch.randn_like(graph.tensors[weight])
    member = site.members[1]
    assert isinstance(member, Split)
    new, old = member.apply(graph, {weight: theta}).tensors[weight], graph.tensors[weight]
    assert torch.allclose(new[1], old[1] + theta[1], rtol=1e-12)
    assert torch.allclose(new[len(old)], old[1] - theta[1], rtol=1e-12)
    assert torch.equal(new[0], old[0])
