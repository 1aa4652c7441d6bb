"""Transformers grow in all their sizes in one run: stream, heads, size of heads, hidden units and depth."""

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
from archir.growing.growth import Growth, grow_once
from archir.growing.options import GrowOptions
from archir.growing.optimisers import OptimiserOptions
from archir.growing.examples import Examples
from archir.ir.graph import Graph
from archir.kinds import morphisms
from archir.scoring.budget import Budget
from archir.scoring.losses import LOSSES
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

    def __init__(self, vocabulary: int, width: int = 6, heads: int = 2, size: int = 2, hidden: int = 12) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(LENGTH, width)
        self.block = Block(width, heads, size, hidden, causal=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        return cast(Tensor, self.head(self.norm(self.block(x))))


class ViT(nn.Module):
    """A classifier of patches of images."""

    def __init__(self, width: int = 6, heads: int = 2, size: int = 2, hidden: int = 12) -> None:
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


def grown(model: nn.Module, x: Tensor, y: Tensor, times: float, seed: int) -> tuple[Graph, Graph]:
    """Return a transformer, and what has become of it in a run."""
    options = GrowOptions(
        steps=30,
        growth_steps=3,
        expansion=1.0,
        batch_size=32,
        learn_steps=4,
        refine=8,
        score_examples=48,
        evaluate_every=0,
        optimiser=OptimiserOptions(rate=0.01),
        seed=seed,
    )
    before = trace(model, (x[:2],))
    budget = round(times * cost(before).parameters)
    run = archir.grow(
        model,
        train=(x[:320], y[:320]),
        validation=(x[500:600], y[500:600]),
        budget=budget,
        morphisms="split; widen; residual-branch{hidden=2}",
        options=options,
    )
    assert 0.98 * budget < cost(run.graph).parameters <= budget
    return before, run.graph


def check_emitted(graph: Graph, x: Tensor, folder: Path) -> None:
    """Check that the source and the ONNX file of a graph compute what it does."""
    with torch.no_grad():
        expected = graph.module().eval()(x)
        path, scope = to_python(graph, folder).path, dict[str, Any]()
        exec(compile(path.read_text(), str(path), "exec"), {"__name__": "net", "__file__": str(path)}, scope)
        torch.testing.assert_close(scope["load"]().eval()(x), expected, rtol=1e-6, atol=1e-6)
    session = onnxruntime.InferenceSession(to_onnx(graph, folder / "net.onnx").path)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_language_model_grows_in_all_its_sizes(tmp_path: Path) -> None:
    x, y, vocabulary = characters()
    torch.manual_seed(0)
    before, after = grown(GPT(vocabulary), x, y, 1.6, 0)
    assert all(size > sizes(before)[name] for name, size in sizes(after).items()), sizes(after)
    check_emitted(after, x[:3], tmp_path)


@pytest.mark.slow
def test_a_classifier_of_patches_grows_in_all_its_sizes(tmp_path: Path) -> None:
    x, y = digits()
    torch.manual_seed(0)
    before, after = grown(ViT(), x, y, 1.6, 0)
    assert all(size > sizes(before)[name] for name, size in sizes(after).items()), sizes(after)
    check_emitted(after, x[:3], tmp_path)
