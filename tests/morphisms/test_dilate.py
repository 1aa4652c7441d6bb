"""Other dilations: exact where every tap that is not zero lies on the new grid, refused with the tap elsewhere."""

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
from archir.rewrite.pipeline import apply_passes
from archir.rewrite.spec import parse_specs
from passes.catalog import PASSES
from passes.dilate import Dilate
from tests.models.captured import graph_of
from tests.morphisms.convolutions import CONVOLUTIONS, change_of_outputs, predictions, trace_layer


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_finer_grid_computes_the_same_and_its_new_taps_are_learned(name: str) -> None:
    graph, x = trace_layer(*CONVOLUTIONS[name])
    sites = list(Dilate().sites(graph))
    assert len(sites) == (name in {"dilated", "same", "valid", "line", "transposed dilated"})
    for site in sites:
        (member,) = site.members
        after = member.apply(graph)
        assert change_of_outputs(graph, after, x) < 1e-12
        found = member.perturbation(graph, site)
        assert isinstance(found, DerivedPerturbation)
        weight = graph.by_name["weight"].id
        assert torch.equal(found.masks[weight] == 0, after.tensor("weight") != 0)


@pytest.mark.parametrize("name", ["valid", "line", "transposed dilated"])
def test_a_coarser_grid_takes_it_back(name: str) -> None:
    graph, _ = trace_layer(*CONVOLUTIONS[name])
    finer = Dilate("%0").apply(graph)
    (site,) = Dilate(dilation=2).sites(finer)
    back = site.members[0].apply(finer)
    assert str(back) == str(graph)
    assert torch.equal(back.tensor("weight"), graph.tensor("weight"))


@pytest.mark.parametrize("size", [3, 4, 5])
@pytest.mark.parametrize("old", [1, 2, 3, 6])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d])
def test_it_is_exact_or_says_why_not(size: int, old: int, kind: type[nn.Conv1d] | type[nn.ConvTranspose1d]) -> None:
    graph, x = trace_layer(kind(2, 3, size, padding=old, dilation=old, stride=2), (2, 23))
    weight = graph.tensor("weight")
    exact = 0
    for kept in range(1, 2**size):
        present = torch.tensor([bool(kept >> i & 1) for i in range(size)])
        sparse = graph.with_tensors({"weight": weight * present})
        for new in (n for n in (1, 2, 3, 4) if n != old):
            miss = Dilate("%0", new).match(sparse)
            if not isinstance(miss, Miss):
                exact += 1
                assert change_of_outputs(sparse, Dilate("%0", new).apply(sparse), x) < 1e-12
            else:
                assert old % new
                assert any(part in miss.reason for part in ("is not on the new grid", "padding would", "same centre"))
    assert exact


def test_a_kernel_of_one_element_takes_any_dilation_and_then_grows_by_it() -> None:
    graph, x = trace_layer(nn.Conv2d(3, 4, 1), (3, 9, 9))
    assert not list(Dilate(dilation=3).sites(graph))
    after = apply_passes(graph, parse_specs("dilate{layer=%0, dilation=3}; enlarge-kernel{layer=%0}", PASSES))
    (node,) = after.calls
    assert node.arguments["dilation"] == node.arguments["padding"] == (3, 3)
    assert change_of_outputs(graph, after, x) < 1e-12


class Grids(nn.Module):
    """Convolutions of several grids, two that share a kernel at different dilations among them."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 3, 3, padding=1)
        self.even = nn.Conv2d(3, 3, (2, 1), padding=1)
        self.bare = nn.Conv2d(3, 3, (5, 1))
        with torch.no_grad():
            self.plain.weight[..., 0, 0] = 0
            self.plain.weight[..., 2, 2] = 0
            self.even.weight[..., 0, :] = 0
            self.bare.weight[..., (0, 1, 3, 4), :] = 0
        self.shared = nn.Parameter(torch.randn(3, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bare(self.even(self.plain(x))))
        return F.conv2d(x, self.shared, padding=1) + F.conv2d(x, self.shared, padding=2, dilation=2)


@pytest.mark.parametrize(
    ("layer", "dilation", "reason"),
    [
        ("%0", 0, "at least 1"),
        ("%0", 1, "that dilation already"),
        ("%0", 2, r"tap 1 of 3, which is not zero, is not on the new grid \(spatial axis 0\)"),
        ("%1", 2, "no kernel of that dilation has the same centre"),
        ("%2", 3, "the padding would have to be -2"),
        ("%3", 2, "no convolution"),
        ("%4", 2, "different dilations"),
    ],
)
def test_where_the_dilation_stays(layer: str, dilation: int, reason: str) -> None:
    graph, _ = trace_layer(Grids(), (3, 9, 9))
    miss = Dilate(layer, dilation).match(graph)
    assert isinstance(miss, Miss) and (dilation == 0 or miss.nodes)
    with pytest.raises(PassError, match=reason):
        Dilate(layer, dilation).apply(graph)


def test_the_widths_stay_free_and_modules_are_emitted(tmp_path: Path) -> None:
    graph = graph_of("dilated_pyramid")
    before = {w.name: w.size for w in infer_widths(graph)}
    for site in list(Dilate().sites(graph)):
        graph = site.members[0].apply(graph)
    assert {w.name: w.size for w in infer_widths(graph)} == before
    source = to_python(graph, tmp_path, name="net").path.read_text()
    assert "nn.Conv2d(8, 8, 5, padding=2, groups=8)" in source
    assert 'nn.Conv2d(8, 8, 9, padding="same")' in source
    to_onnx(graph, tmp_path / "net.onnx")


def test_predictions_agree_with_the_truth() -> None:
    torch.manual_seed(0)
    spread = [nn.Conv2d(i, 6, 3, padding=2, dilation=2) for i in (2, 6, 6)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)]
    net = nn.Sequential(*(layer for conv in spread for layer in (conv, nn.ReLU())), *head).double()
    predicted, true = predictions(Dilate(), net)
    assert len(predicted) == 12
    assert spearmanr(predicted, true).statistic > 0.9
    assert predicted == pytest.approx(true, rel=0.2, abs=1e-4)
