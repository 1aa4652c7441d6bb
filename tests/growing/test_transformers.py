"""Transformers grow in one run in their stream, heads, hidden units and depth, chosen together, and are emitted."""

from __future__ import annotations

from pathlib import Path
from pydoc_data import topics
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import archir
from archir.axes.infer import infer_widths
from archir.cost import cost
from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.ir.graph import Graph
from frontends.pytorch import trace

LENGTH = 16


class Block(nn.Module):
    """Attention and hidden units, each beside a stream that is normalised before them."""

    def __init__(self, width: int, heads: int, size: int, hidden: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * heads * size), nn.Linear(heads * size, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + cast(Tensor, self.down(nn.functional.gelu(self.up(self.norm2(x)))))


class GPT(nn.Module):
    """A language model of characters."""

    def __init__(self, vocabulary: int, width: int = 16, heads: int = 2, size: int = 4, hidden: int = 24) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(LENGTH, width)
        self.block = Block(width, heads, size, hidden, causal=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        return cast(Tensor, self.head(self.norm(self.block(x))))


class ViT(nn.Module):
    """A classifier of patches of images."""

    def __init__(self, width: int = 16, heads: int = 2, size: int = 4, hidden: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.first = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.places = nn.Parameter(torch.randn(1, 17, width) * 0.1)
        self.block = Block(width, heads, size, hidden, causal=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        return cast(Tensor, self.head(self.norm(self.block(x))[:, 0]))


def characters(count: int = 600) -> tuple[Tensor, Tensor, int]:
    """Return windows of text, what follows in each place, and the number of characters there are."""
    text = [c if c.isalpha() else " " for key in sorted(topics.topics) for c in topics.topics[key].lower()]
    known = sorted({c for c in text if c.isascii()})
    number = {c: i for i, c in enumerate(known)}
    codes = torch.tensor([number[c] for c in text if c in number][: count * LENGTH + 1])
    return codes[:-1].reshape(count, LENGTH), codes[1:].reshape(count, LENGTH), len(known)


def digits() -> tuple[Tensor, Tensor]:
    """Return images and labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1, torch.tensor(labels)


def sizes(graph: Graph) -> dict[str, int]:
    """Return the sizes of a transformer: layers are counted by their weights."""
    size = next(w.size for w in infer_widths(graph) if "matched" in w.roles)
    inner, stream = graph.tensor("block.out.weight").shape[1], graph.tensor("block.norm1.weight").shape[0]
    layers = sum(graph.tensors[n.id].dim() > 1 for n in graph.parameters)
    hidden = graph.tensor("block.up.weight").shape[0]
    return {"stream": stream, "heads": inner // size, "size": size, "hidden": hidden, "layers": layers}


def grown(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Graph, Graph]:
    """Return a transformer, and what has become of it in a run that adds 80 % to its parameters."""
    before = trace(model, (x[:2],))
    budget = round(1.8 * cost(before).parameters)
    run = archir.grow(
        model,
        train=(x[:400], y[:400]),
        validation=(x[480:600], y[480:600]),
        budget=budget,
        morphisms="split; widen; deepen",
        options=GrowOptions(
            steps=200,
            growth_steps=1,
            first_growth=0.5,
            last_growth=0.8,
            expansion=1.0,
            batch_size=32,
            learn_steps=10,
            refine=8,
            score_examples=60,
            evaluate_every=0,
            optimiser=OptimiserOptions(rate=0.01),
        ),
    )
    assert 0.98 * budget < cost(run.graph).parameters <= budget
    return before, run.graph


def check_grown(before: Graph, after: Graph) -> None:
    """Check that a transformer has grown in all sizes that are told but that of its heads, which may have."""
    was, now = sizes(before), sizes(after)
    assert now["size"] >= was["size"]
    assert all(now[name] > was[name] for name in ("stream", "heads", "hidden", "layers")), now


def check_emitted(graph: Graph, x: Tensor, folder: Path) -> None:
    """Check that the source and the ONNX file of a graph compute what it does."""
    with torch.no_grad():
        expected = graph.module().eval()(x)
        path = to_python(graph, folder).path
        scope: dict[str, Any] = {"__name__": "net", "__file__": str(path)}
        exec(compile(path.read_text(), str(path), "exec"), scope)
        torch.testing.assert_close(scope["load"]().eval()(x), expected, rtol=1e-6, atol=1e-6)
    session = onnxruntime.InferenceSession(to_onnx(graph, folder / "net.onnx").path)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_language_model_grows(tmp_path: Path) -> None:
    x, y, vocabulary = characters()
    torch.manual_seed(0)
    before, after = grown(GPT(vocabulary), x, y)
    check_grown(before, after)
    check_emitted(after, x[:3], tmp_path)


@pytest.mark.slow
def test_a_classifier_of_patches_grows(tmp_path: Path) -> None:
    x, y = digits()
    torch.manual_seed(0)
    before, after = grown(ViT(), x, y)
    check_grown(before, after)
    check_emitted(after, x[:3], tmp_path)
