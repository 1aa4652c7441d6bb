"""A transformer grows in every width it has, chosen by one joint model: stream, heads, head size, hidden units."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from archir import score, to_onnx, to_python, trace, widths
from archir.ir.graph import Graph
from tests.models.tokens import GPT
from tests.models.vision import ViT

Batches = list[tuple[Tensor, Tensor]]


def _gpt() -> tuple[Graph, Batches]:
    torch.manual_seed(0)
    text = (torch.randint(11, (32, 1)) + 3 * torch.arange(7)) % 11
    graph = trace(GPT(11, width=8, length=6).double(), text[:2, :-1])
    return graph, [(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in torch.tensor_split(text, 4)]


def _vit() -> tuple[Graph, Batches]:
    torch.manual_seed(0)
    images, labels = torch.randn(32, 3, 32, 32).double(), torch.arange(32) % 10
    graph = trace(ViT().double(), images[:2])
    return graph, list(zip(torch.tensor_split(images, 4), torch.tensor_split(labels, 4), strict=True))


def _loss(graph: Graph, batches: Batches) -> float:
    module = graph.module().eval()
    with torch.no_grad():
        losses = [F.cross_entropy(module(x).flatten(0, -2), y.flatten()) for x, y in batches]
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("make", [_gpt, _vit])
def test_all_widths_of_a_transformer_grow_as_one_set(make: object, tmp_path: Path) -> None:
    assert callable(make)
    graph, batches = make()
    scores = score(graph, batches, loss="cross_entropy", morphisms=["widen"], steps=5, radius=0.1)
    sizes = {width.name: width.size for width in widths(graph)}
    assert sorted(scored.spec for scored in scores) == [f"widen{{width={name}}}" for name in sorted(sizes)]
    every = scores.together(list(scores))
    grown = every.apply()
    assert {width.name: width.size for width in widths(grown)} == {name: size + 1 for name, size in sizes.items()}
    change = _loss(grown, batches) - _loss(graph, batches)
    assert change < 0
    assert scores.joint(list(scores)) == pytest.approx(change, rel=0.03)
    single = graph.to(torch.float32)
    to_python(single, tmp_path / "net")
    to_onnx(single, tmp_path / "net.onnx")
