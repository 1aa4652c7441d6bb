"""Parallel branches: centred on the layer whatever its kernel, stride and padding, and why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from archir.errors import PassError
from archir.ir.graph import Graph
from archir.rewrite.miss import Miss
from frontends.pytorch import trace
from passes.parallel_branch import ParallelBranch
from tests.models.captured import graph_of
from tests.morphisms.checks import Net, change_in_training, emit, predictions, sizes
from tests.morphisms.convolutions import CONVOLUTIONS, change_of_outputs, trace_layer

PLAIN = [name for name in CONVOLUTIONS if not name.startswith("transposed")]


def test_the_branch_is_centred_on_the_layer() -> None:
    """With weights that only pick the middle, the branch adds what the layer makes."""
    found: set[str] = set()
    for name in PLAIN:
        graph, x = trace_layer(*CONVOLUTIONS[name])
        for kernel in (1, 3, 4, 5):
            for dilation in (0, 1, 2):
                morphism = ParallelBranch("%0", kernel, dilation)
                if len(list(graph.calls)) > 1 or isinstance(morphism.match(graph), Miss):
                    continue
                after = morphism.apply(graph)
                assert change_of_outputs(graph, after, x) == 0
                old, new = graph.tensor("weight"), after.tensor("parallel.conv.weight")
                if any(s % 2 == 0 for s in (*old.shape[2:], kernel)):
                    continue
                one, other = torch.zeros_like(old), torch.zeros_like(new)
                for w in (one, other):
                    flat = w.flatten(2)
                    flat[..., flat.shape[2] // 2] = 1
                alone, beside = (
                    after.with_tensors({"weight": w, "parallel.conv.weight": v}).module().eval()(x)
                    for w, v in ((one, 0 * other), (0 * one, other))
                )
                assert torch.allclose(alone, beside, rtol=0, atol=1e-12), (name, kernel, dilation)
                found.add(name)
    assert found == {"plain", "strided", "grouped", "dilated", "valid", "line", "volume"}


@pytest.mark.parametrize(
    ("kernel", "asked", "dilation"), [(1, 3, 1), (3, 3, 2), (5, 3, 3), (3, 5, 1), (7, 5, 2), (3, 1, 1)]
)
def test_by_default_it_reaches_beyond_the_layer(kernel: int, asked: int, dilation: int) -> None:
    graph, _ = trace_layer(nn.Conv2d(3, 4, kernel, padding=kernel // 2), (3, 9, 9))
    after = ParallelBranch("%0", asked).apply(graph)
    (branch,) = [n for n in after.calls if n.id not in graph and "conv2d" in n.op]
    assert branch.argument("dilation") in {(dilation, dilation), 1}
    assert after.tensor("parallel.conv.weight").shape == (4, 3, asked, asked)


@pytest.mark.parametrize("name", PLAIN)
def test_a_pair_goes_beside_every_convolution(name: str) -> None:
    graph, x = trace_layer(*CONVOLUTIONS[name])
    morphism = ParallelBranch(rank=2, activate=True)
    sites = list(morphism.sites(graph))
    assert len(sites) == (name not in {"same"})
    for site in sites:
        after = site.members[0].apply(graph)
        assert change_of_outputs(graph, after, x) == 0
        assert sorted([*sizes(graph), 2]) == sizes(after)


def test_it_keeps_widths_free_and_the_function_in_training_mode_and_reads_well(tmp_path: Path) -> None:
    graph = trace(Net(), (torch.randn(4, 1, 6, 6),))
    x = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    for morphism in (ParallelBranch(), ParallelBranch(rank=2), ParallelBranch(rank=2, activate=True)):
        sites = list(morphism.sites(graph))
        assert [s.label for s in sites] == ["%0", "%2", "%4", "%7", "%9"]
        for site in sites:
            after = site.members[0].apply(graph)
            hidden = [morphism.rank] if morphism.rank else {"%7": [2], "%9": [2]}.get(site.label, [])
            assert sizes(after) == sorted([*sizes(graph), *hidden]), site.label
            assert change_in_training(graph, after, x) == 0
    image, token = graph_of("resnet"), graph_of("gpt")
    source = emit(ParallelBranch("%4").apply(image), tmp_path / "image")
    assert "self.conv = nn.Conv2d(16, 16, 3, padding=2, dilation=2, bias=False)" in source
    assert "return y + self.conv(x)" in source
    site = next(iter(ParallelBranch(activate=True).sites(token)))
    source = emit(site.members[0].apply(token), tmp_path / "token")
    assert "return y + self.up(F.gelu(self.down(x)))" in source


def test_why_there_is_none() -> None:
    def reason(graph: Graph, kernel: int = 3, dilation: int = 0, rank: int = 0) -> str:
        morphism = ParallelBranch("%0", kernel, dilation, rank)
        miss = morphism.match(graph)
        assert isinstance(miss, Miss)
        with pytest.raises(PassError) as caught:
            morphism.apply(graph)
        assert caught.value.why == miss.reason
        return miss.reason

    def layer(module: nn.Module, size: int = 9) -> Graph:
        return trace_layer(module, (3, size, size))[0]

    plain = layer(nn.Conv2d(3, 4, 3))
    negative = "the kernel has to be positive, dilation and rank not below zero"
    assert {reason(plain, kernel=0), reason(plain, dilation=-1), reason(plain, rank=-1)} == {negative}
    assert reason(layer(nn.ReLU())) == "it is not the result of a linear layer or a convolution"
    assert reason(layer(nn.ConvTranspose2d(3, 4, 3))) == "the layer is a transposed convolution"
    uneven = layer(nn.Conv2d(3, 4, 4, padding="same"))
    assert reason(uneven) == reason(uneven, rank=2) == "the layer is padded more on one side than on the other"
    assert reason(layer(nn.Conv2d(3, 4, 4))) == "the centres of the two kernels are half an element apart"
    assert reason(plain, kernel=1) == "the layer has too little padding for so small a kernel"
    small = "the image is so small that the outer elements of the kernel would see none of it"
    assert reason(layer(nn.Conv2d(3, 4, 1), size=1)) == small
    assert not isinstance(ParallelBranch("%0", rank=2).match(layer(nn.Conv2d(3, 4, 1), size=1)), Miss)


def test_what_is_predicted_comes_true() -> None:
    for morphism in (ParallelBranch(), ParallelBranch(rank=2), ParallelBranch(rank=2, activate=True)):
        found = predictions(morphism)
        assert len(found) == 5
        assert spearmanr(*zip(*found, strict=True)).statistic > 0.85
        assert all(true == pytest.approx(predicted, rel=0.3) for predicted, true in found)
