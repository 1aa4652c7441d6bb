"""Enlarging kernels: exact for every kind of convolution, only the ring is learned, and where there can be none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from archir.axes.infer import infer_widths
from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.errors import PassError
from archir.rewrite.derived import DerivedPerturbation
from archir.rewrite.miss import Miss
from passes.enlarge_kernel import EnlargeKernel
from tests.models.captured import graph_of
from tests.morphisms.convolutions import CONVOLUTIONS, change_of_outputs, predictions, trace_layer


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("by", [1, 2])
def test_the_function_is_kept_and_only_the_ring_is_learned(name: str, by: int) -> None:
    graph, x = trace_layer(*CONVOLUTIONS[name])
    (site,) = EnlargeKernel(by=by).sites(graph)
    (member,) = site.members
    after = member.apply(graph)
    assert change_of_outputs(graph, after, x) < 1e-12
    old, new = graph.tensor("weight"), after.tensor("weight")
    assert new.shape == (*old.shape[:2], *(k + 2 * by for k in old.shape[2:]))
    found = member.perturbation(graph, site)
    assert isinstance(found, DerivedPerturbation)
    node = graph.by_name["weight"].id
    assert found.theta.keys() == {node}
    assert torch.equal(found.masks[node] == 0, F.pad(torch.ones_like(old), [by] * 2 * (old.dim() - 2)) == 1)


class Shared(nn.Module):
    """A convolution used twice, one whose kernel is tied into a regulariser, one with a computed kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.tied = nn.Conv2d(3, 3, 3, padding=1)
        self.computed = nn.Conv2d(3, 3, 3, padding=1)
        self.frozen = nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False)
        self.gate = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.twice(F.relu(self.twice(x)))
        x = self.tied(x)
        x = F.conv2d(x, torch.tanh(self.computed.weight), padding=1)
        x = self.frozen(x)
        return x * self.gate(x.mean((2, 3), keepdim=True)), self.tied.weight.square().sum()


def test_convolutions_that_share_a_kernel_all_change() -> None:
    graph, x = trace_layer(Shared(), (3, 7, 7))
    sites = list(EnlargeKernel().sites(graph))
    assert [s.label for s in sites] == ["%0"]
    after = sites[0].members[0].apply(graph)
    assert change_of_outputs(graph, after, x) < 1e-12
    assert sum(n.arguments.get("padding") == (2, 2) for n in after.calls) == 2


@pytest.mark.parametrize(
    ("layer", "by", "reason"),
    [
        ("%0", 0, "at least one element wide"),
        ("%1", 1, "no convolution"),
        ("%3", 1, "used by something else"),
        ("%5", 1, "computed, not stored"),
        ("%6", 1, "not learned"),
        ("%8", 1, "nothing but padding"),
    ],
)
def test_where_a_kernel_cannot_grow(layer: str, by: int, reason: str) -> None:
    graph, _ = trace_layer(Shared(), (3, 7, 7))
    miss = EnlargeKernel(layer, by).match(graph)
    assert isinstance(miss, Miss) and reason in miss.reason and (by == 0 or miss.nodes)
    with pytest.raises(PassError, match=reason):
        EnlargeKernel(layer, by).apply(graph)


def test_the_widths_stay_free() -> None:
    for name in ("mobilenet", "unet", "decoder"):
        graph = graph_of(name)
        before = {w.name: w.size for w in infer_widths(graph)}
        for site in list(EnlargeKernel().sites(graph)):
            graph = site.members[0].apply(graph)
        assert {w.name: w.size for w in infer_widths(graph)} == before


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("dilated_pyramid", "nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8)"),
        ("vit", "nn.Conv2d(3, 32, 10, stride=8, padding=1)"),
    ],
)
def test_what_is_emitted_is_a_module_of_another_kernel(name: str, layer: str, tmp_path: Path) -> None:
    graph = graph_of(name)
    for site in list(EnlargeKernel().sites(graph)):
        graph = site.members[0].apply(graph)
    assert layer in to_python(graph, tmp_path, name="net").path.read_text()
    to_onnx(graph, tmp_path / "net.onnx")


def test_predictions_agree_with_the_truth() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1)]
    net = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).double()
    predicted, true = predictions(EnlargeKernel(), net)
    assert len(predicted) == 12
    assert spearmanr(predicted, true).statistic > 0.9
    assert predicted == pytest.approx(true, rel=0.2, abs=1e-4)
