"""Shrinking kernels: what zeros in the ring do, for every kind of convolution, and the reverse of enlarging them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.cost import cost
from archir.ir.graph import Graph
from archir.ir.parse import parse_graph
from archir.rewrite.miss import Miss
from archir.testing import outputs, relative_difference
from passes.enlarge_kernel import EnlargeKernel
from passes.shrink_kernel import ShrinkKernel
from tests.models.captured import randomised
from tests.morphisms.convolutions import CONVOLUTIONS, change_of_outputs, trace_layer


def without_ring(graph: Graph, by: int) -> Graph:
    """Put zeros into the ring of the only kernel."""
    weight = graph.tensor("weight")
    inner = [slice(by, size - by) if size > 2 * by else slice(None) for size in weight.shape[2:]]
    kept = torch.zeros_like(weight)
    kept[:, :, *inner] = weight[:, :, *inner]
    return graph.with_tensors({"weight": kept})


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("by", [1, 2])
def test_it_does_what_zeros_in_the_ring_do(name: str, by: int) -> None:
    graph, x = trace_layer(*CONVOLUTIONS[name])
    (member,) = EnlargeKernel(by=by).candidates(graph)
    larger = member.apply(graph)
    large = larger.with_tensors({"weight": torch.randn_like(larger.tensor("weight"))})
    (site,) = ShrinkKernel(by=by).sites(large)
    small = site.members[0].apply(large)
    assert small.tensor("weight").shape == graph.tensor("weight").shape
    assert change_of_outputs(without_ring(large, by), small, x) < 1e-12
    back = small.with_tensors({"weight": graph.tensor("weight")})
    assert change_of_outputs(graph, back, x) < 1e-12
    change = cost(small) - cost(large)
    assert change.parameters < 0 and change.flops < 0 and change.peak_bytes <= 0


def test_there_is_nothing_to_learn() -> None:
    graph, _ = randomised("resnet")
    for site in ShrinkKernel().sites(graph):
        found = site.members[0].perturbation(graph, site)
        assert not isinstance(found, Miss)
        assert not found.theta


class Odd(nn.Module):
    """A kernel of one element, one without padding, one that is long in one direction only, and one used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Conv2d(2, 2, 1)
        self.bare = nn.Conv2d(2, 2, 3)
        self.long = nn.Conv2d(2, 2, (1, 5), padding=(0, 2))
        self.same = nn.Conv2d(2, 2, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.same(F.relu(self.same(self.long(self.bare(self.point(x))))))
        return found


def test_where_there_is_no_ring_and_where_it_is_long() -> None:
    graph, x = trace_layer(Odd(), (2, 8, 8))
    names = [f"%{i}" for i in range(4)]
    reasons = [found.reason for n in names if isinstance(found := ShrinkKernel(n).match(graph), Miss)]
    assert reasons == ["nothing would be left of its kernel", "it has less padding than the ring reaches"]
    small = ShrinkKernel("%2").apply(graph)
    assert small.tensor("long.weight").shape == (2, 2, 1, 3)
    weight = graph.tensor("long.weight").clone()
    weight[..., (0, 4)] = 0
    twin = graph.with_tensors({"long.weight": weight})
    assert relative_difference(outputs(twin, [x]), outputs(small, [x])) < 1e-12
    shared = ShrinkKernel("%3").apply(graph)
    assert shared.tensor("same.weight").shape[2:] == (1, 1)
    assert str(parse_graph(str(shared))) == str(shared)
    assert isinstance(ShrinkKernel("%3", by=0).match(graph), Miss)
