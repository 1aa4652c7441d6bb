"""Blends of activations: which functions, which features, and why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from archir.errors import PassError
from archir.ir.graph import Graph
from archir.rewrite.derived import with_theta
from archir.rewrite.miss import Miss
from archir.rewrite.theta import Added
from frontends.pytorch import trace
from passes.blend_activation import FUNCTIONS, BlendActivation
from passes.deepen import Deepen
from tests.models.captured import graph_of
from tests.morphisms.checks import Net, change_in_training, emit, predictions, sizes


def reason(graph: Graph, morphism: BlendActivation) -> str:
    """Return why an activation is not blended."""
    miss = morphism.match(graph)
    assert isinstance(miss, Miss)
    with pytest.raises(PassError) as caught:
        morphism.apply(graph)
    assert caught.value.why == miss.reason
    return miss.reason


@pytest.mark.parametrize("into", [*FUNCTIONS, "identity"])
def test_a_whole_share_is_the_other_function(into: str) -> None:
    torch.manual_seed(0)
    net = Net()
    graph = trace(net, (torch.randn(4, 1, 6, 6),)).to(torch.float64)
    labels = [s.label for s in BlendActivation(into=into).sites(graph)]
    assert labels == [
        at for at, kind in (("%1", "relu"), ("%3", "silu"), ("%5", "tanh"), ("%8", "gelu")) if kind != into
    ]
    if into == "relu":
        return
    patch = BlendActivation("%1", into).patch(graph)
    after = with_theta(patch, {Added(0): torch.ones(4, 1, 1, dtype=torch.float64)}).after
    x = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    net.double()
    y = net.first(x)
    y = F.silu(net.second(y if into == "identity" else torch.square(y) if into == "square" else getattr(F, into)(y)))
    expected = net.head(F.gelu(net.hidden(torch.tanh(net.third(y)).amax((2, 3)))))
    assert torch.allclose(after.module().eval()(x), expected, rtol=0, atol=1e-12)


def test_it_keeps_widths_and_the_function_in_training_mode_and_reads_well(tmp_path: Path) -> None:
    graph = trace(Net(), (torch.randn(4, 1, 6, 6),))
    for site in BlendActivation().sites(graph):
        after = site.members[0].apply(graph)
        assert sizes(after) == sizes(graph)
        assert change_in_training(graph, after, torch.randn(3, 1, 6, 6, dtype=torch.float64)) == 0
    image, token = graph_of("resnet"), graph_of("gpt")
    (_, one, *_), (other,) = BlendActivation().sites(image), BlendActivation(into="silu").sites(token)
    source = emit(one.members[0].apply(image), tmp_path / "image")
    assert "self.share = nn.Parameter(torch.zeros(16, 1, 1))" in source
    assert "return y + (x - y) * self.share" in source
    assert "nn.Sequential(nn.Linear(32, 128), GrownGELU()" in emit(other.members[0].apply(token), tmp_path / "token")


def test_why_there_is_none() -> None:
    graph = graph_of("resnet")
    assert reason(graph, BlendActivation("%3", "sillu")) == "there is no function 'sillu'; did you mean silu?"
    assert reason(graph, BlendActivation("%1")) == "it is not the result of an activation"
    assert reason(graph, BlendActivation("%3", "relu")) == "it is a relu already"
    plain = trace(torch.nn.ReLU(), (torch.randn(2, 3),))
    assert reason(plain, BlendActivation("%0")) == "along which axis its features lie cannot be told"


def test_what_is_predicted_comes_true() -> None:
    found = [pair for into in ("identity", "silu", "sigmoid") for pair in predictions(BlendActivation(into=into))]
    assert len(found) == 11
    assert spearmanr(*zip(*found, strict=True)).statistic > 0.9
    assert all(true == pytest.approx(predicted, rel=0.2, abs=1e-5) for predicted, true in found)


def test_a_blend_beside_a_share_has_a_name_of_its_own() -> None:
    """A layer that came with `deepen` may keep a share under the name `blend`, which no module may have as well."""
    torch.manual_seed(0)
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    graph = trace(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 2, 3, padding=1)).double(), (x,))
    deeper = Deepen(after="%0").apply(graph)
    assert "deeper.blend" in deeper.by_name
    blends = [blend.apply(deeper) for blend in BlendActivation().candidates(deeper)]
    assert len(blends) >= 2
    for after in blends:
        names = [name for node in after.parameters for name in node.names]
        assert len(set(names)) == len(names) and after.by_name.keys() > deeper.by_name.keys()
        assert torch.allclose(after.module()(x), graph.module()(x), atol=1e-12)
