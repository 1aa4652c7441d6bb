"""Deepening: which layer, which activation, exact where, and why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from archir.errors import PassError
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.rewrite.miss import Miss
from archir.rewrite.reference import refer
from archir.testing import relative_difference
from frontends.pytorch import trace
from passes.deepen import Deepen
from tests.models.captured import graph_of
from tests.morphisms.checks import Net, change_in_training, emit, predictions, sizes


def ops_after(graph: Graph, morphism: Deepen) -> list[str]:
    """Return the short names of the calls that a rewrite adds."""
    return [n.op.split(".")[1] for n in morphism.apply(graph).calls if n.id not in graph]


@pytest.mark.parametrize(
    ("layers", "blended"),
    [
        ([nn.ReLU()], False),
        ([nn.ReLU6()], False),
        ([nn.Hardtanh(0.5, 2)], False),
        ([nn.ReLU(), nn.MaxPool2d(2, padding=1)], False),
        ([nn.ReLU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3)], False),
        ([nn.Hardtanh(0.5, 2), nn.AvgPool2d(2, padding=1)], True),
        ([nn.ReLU6(), nn.AvgPool2d(2, divisor_override=1)], True),
        ([nn.LeakyReLU()], True),
        ([nn.Tanh()], True),
        ([nn.Sigmoid()], True),
        ([nn.ReLU(), nn.BatchNorm2d(4)], True),
        ([], True),
    ],
)
def test_an_activation_follows_as_it_is_where_it_changes_nothing(layers: list[nn.Module], blended: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 3), *layers).double(), (x,))
    morphism = Deepen(refer(graph, graph.output.values[0]))
    assert ("sub" in ops_after(graph, morphism)) == blended
    one, other = (g.module().eval()(x) for g in (graph, morphism.apply(graph)))
    assert relative_difference([other], [one]) < 1e-12


def test_the_kernel_is_that_of_the_layer_or_what_is_asked_for() -> None:
    def kernel(layer: nn.Module, asked: int = 0) -> tuple[int, ...]:
        weight, _ = layer.parameters()
        graph = trace(layer, (torch.randn(2, 4, *(9,) * (weight.dim() - 2)),))
        after = Deepen("%0", asked).apply(graph)
        return tuple(after.tensor("deeper.conv.weight").shape)

    assert kernel(nn.Conv2d(4, 6, (1, 5))) == (6, 6, 1, 5)
    assert kernel(nn.Conv2d(4, 6, (1, 5)), 3) == (6, 6, 3, 3)
    assert kernel(nn.Conv2d(4, 4, 3, groups=4)) == (4, 4, 3, 3)
    assert kernel(nn.Conv1d(4, 6, 4)) == (6, 6, 3)
    assert kernel(nn.ConvTranspose3d(4, 6, 3)) == (6, 6, 3, 3, 3)


def test_a_norm_changes_nothing_in_evaluation_mode_only_and_tokens_have_none() -> None:
    torch.manual_seed(0)
    graph = trace(Net(), (torch.randn(4, 1, 6, 6),)).to(torch.float64)
    x = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    for at, count in (("%1", 1), ("%8", 1)):
        after = Deepen(at, norm=True).apply(graph)
        assert [n.op for n in after.calls].count("aten.batch_norm.default") == count
        assert relative_difference([after.module().eval()(x)], [graph.module().eval()(x)]) < 1e-12
        assert change_in_training(graph, after, x) > 1e-3
    tokens = graph_of("gpt")
    for site in Deepen(norm=True).sites(tokens):
        assert "batch_norm" not in ops_after(tokens, site.members[0])  # type: ignore[arg-type]


def test_it_keeps_widths_free_and_the_function_in_training_mode_and_reads_well(tmp_path: Path) -> None:
    graph = trace(Net(), (torch.randn(4, 1, 6, 6),))
    x = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    found = {s.label: s.members[0].apply(graph) for s in Deepen().sites(graph)}
    assert {at: sorted(sizes(after)) for at, after in found.items()} == {
        "%1": [4, 4, 6, 6, 8],
        "%3": [4, 6, 6, 6, 8],
        "%5": [4, 6, 6, 6, 8],
        "%8": [4, 6, 6, 8, 8],
    }
    assert all(change_in_training(graph, after, x) < 1e-12 for after in found.values())
    image, token = graph_of("resnet"), graph_of("gpt")
    block = next(n for n in image.calls if n.location and n.location.module == "layers.0" and "relu" in n.op)
    source = emit(Deepen(refer(image, Value(block.id))).apply(image), tmp_path / "image")
    assert "self.conv = nn.Conv2d(16, 16, 3, padding=1)" in source
    assert "return F.relu(self.conv(x))" in source
    sites = list(Deepen().sites(token))
    source = emit(sites[len(sites) // 2].members[0].apply(token), tmp_path / "token")
    assert "return x + (F.gelu(x) - x) * self.blend" in source


def test_why_there_is_none() -> None:
    def reason(graph: Graph, morphism: Deepen) -> str:
        miss = morphism.match(graph)
        assert isinstance(miss, Miss)
        with pytest.raises(PassError) as caught:
            morphism.apply(graph)
        assert caught.value.why == miss.reason
        return miss.reason

    graph = graph_of("resnet")
    assert reason(graph, Deepen("%3", 2)) == reason(graph, Deepen("%3", -1)) == "the kernel has to be odd"
    assert reason(graph, Deepen("x")) == "along which axis its features lie cannot be told"
    assert reason(graph_of("gpt"), Deepen("tokens")) == "it is no tensor of features"


def test_what_is_predicted_comes_true() -> None:
    found = [pair for norm in (False, True) for pair in predictions(Deepen(norm=norm))]
    assert len(found) == 8
    assert spearmanr(*zip(*found, strict=True)).statistic > 0.9
    assert all(true == pytest.approx(predicted, rel=0.2) for predicted, true in found)
