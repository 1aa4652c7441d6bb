"""A bias of zeros: one for each layer, shared or tied, and none where a norm takes it away."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from archir.errors import PassError
from archir.ir.builder import GraphBuilder as Builder
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.rewrite.miss import Miss
from archir.rewrite.reference import refer
from frontends.pytorch import trace
from passes.add_bias import AddBias
from tests.models.captured import graph_of
from tests.morphisms.checks import Net, change_in_training, emit, predictions, sizes
from tests.morphisms.convolutions import CONVOLUTIONS, trace_layer

TAKEN = "right after it takes a bias away"


class Shared(nn.Module):
    """One layer, called twice, and a tied one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.twice = nn.Linear(5, 5, bias=False)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.twice(torch.relu(self.twice(self.embed(x)))))
        return found


def test_a_shared_layer_gets_one_bias_and_a_tied_one_its_own(tmp_path: Path) -> None:
    graph = trace(Shared(), (torch.randint(0, 7, (3, 4)),))
    twice, head = AddBias().sites(graph)
    with_both = head.members[0].apply(twice.members[0].apply(graph))
    added = {n.parameter.names for n in with_both.parameters if n.id not in graph and n.parameter}
    assert added == {("twice.bias",), ("head.bias",)}
    calls = [n for n in with_both.calls if n.op == "aten.linear.default"]
    assert calls[0].argument("bias") == calls[1].argument("bias") == Value(with_both.by_name["twice.bias"].id)
    assert "self.twice = nn.Linear(5, 5)" in emit(with_both, tmp_path)
    later = AddBias(refer(graph, Value(calls[1].id)))
    assert not isinstance(later.match(graph), Miss)
    assert str(later.apply(graph)) == str(twice.members[0].apply(graph))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_convolution_takes_one(name: str) -> None:
    layer, shape = CONVOLUTIONS[name]
    graph, _ = trace_layer(layer, shape)
    if any(n.parameter and n.parameter.names == ("bias",) for n in graph.parameters):
        assert not list(AddBias().sites(graph))
        return
    (site,) = AddBias().sites(graph)
    assert site.members[0].apply(graph).tensor("bias").shape == (6,)


def test_the_channels_of_a_transposed_convolution_are_counted_over_all_groups() -> None:
    graph, _ = trace_layer(nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), (4, 5, 6))
    (site,) = AddBias().sites(graph)
    assert torch.equal(site.members[0].apply(graph).tensor("bias"), torch.zeros(6, dtype=torch.float64))


def test_it_keeps_widths_and_the_function_in_training_mode_and_reads_well(tmp_path: Path) -> None:
    graph = trace(Net(), (torch.randn(4, 1, 6, 6),))
    for site in AddBias().sites(graph):
        after = site.members[0].apply(graph)
        assert sizes(after) == sizes(graph)
        assert change_in_training(graph, after, torch.randn(3, 1, 6, 6, dtype=torch.float64)) == 0
    (image, *_), (token,) = AddBias().sites(graph), AddBias().sites(graph_of("gpt"))
    assert "self.first = nn.Conv2d(1, 4, 3, padding=1)" in emit(image.members[0].apply(graph), tmp_path / "image")
    assert "self.head = nn.Linear(32, 50)" in emit(token.members[0].apply(graph_of("gpt")), tmp_path / "token")


def reason(graph: Graph, layer: str) -> str:
    """Return why a layer gets no bias."""
    miss = AddBias(layer).match(graph)
    assert isinstance(miss, Miss)
    with pytest.raises(PassError) as caught:
        AddBias(layer).apply(graph)
    assert caught.value.why == miss.reason
    return miss.reason


def test_why_there_is_none() -> None:
    graph = graph_of("resnet")
    assert reason(graph, "%1") == f"a batch norm {TAKEN}"
    assert reason(graph, "%2") == "it is not the result of a linear layer or a convolution"
    assert reason(graph, refer(graph, graph.output.values[0])) == "the layer has a bias"
    centred = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.InstanceNorm2d(4))
    assert reason(trace(centred, (torch.randn(2, 3, 4, 4),)), "%0") == f"a instance norm {TAKEN}"
    b = Builder()
    scaled = b.call("aten.tanh.default", b.parameter("weight", "f32[4, 3]"))
    computed = b.graph(b.call("aten.linear.default", b.input("x", "f32[B, 3]"), scaled))
    assert reason(computed, "%1") == "its weight is computed, so there is no place for a bias beside it"
    b = Builder()
    vector = b.graph(b.call("aten.linear.default", b.input("x", "f32[B, 3]"), b.parameter("weight", "f32[3]")))
    assert reason(vector, "%0") == "it is not the result of a linear layer or a convolution"


def test_what_is_predicted_comes_true() -> None:
    found = predictions(AddBias())
    assert len(found) == 5
    assert spearmanr(*zip(*found, strict=True)).statistic > 0.9
    assert all(true == pytest.approx(predicted, rel=0.2) for predicted, true in found)
