"""What was emitted is held to the graph wherever the graph defines something, and what it does not is counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archir.emit.check import BATCHES, Agreement, Emitted, agree, compare
from archir.emit.nesting import tensors_in
from archir.errors import EmitError
from archir.ir.graph import Graph
from frontends.pytorch import trace

POSITIONS, FEATURES = 4, 6


class Attention(nn.Module):
    """Causal attention under a mask of positions, `[batch, positions, features]`, by softmax or by torch's own."""

    def __init__(self, kind: str, *, pooled: bool = False) -> None:
        super().__init__()
        self.project = nn.Linear(FEATURES, 3 * FEATURES)
        self.kind, self.pooled = kind, pooled

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        open_ = torch.ones(POSITIONS, POSITIONS, dtype=torch.bool).tril() & mask[:, None].bool()
        if self.kind == "attention":
            y = F.scaled_dot_product_attention(q, k, v, open_)
        else:
            closed = -math.inf if self.kind == "infinite" else torch.finfo(torch.float32).min
            scores = q @ k.mT / math.sqrt(FEATURES) + torch.zeros(()).masked_fill(~open_, closed)
            y = scores.softmax(-1) @ v
        return y.mean(1) if self.pooled else x + y


def _graph(kind: str, *, pooled: bool = False) -> Graph:
    torch.manual_seed(0)
    return trace(
        Attention(kind, pooled=pooled),
        (torch.randn(2, POSITIONS, FEATURES), torch.ones(2, POSITIONS, dtype=torch.long)),
    )


def _other(
    graph: Graph, change: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[tuple[Any, ...], dict[str, Any]], Tensor]:
    """Return what computes the outputs of a graph, changed, where `change` gets them and which rows are masked."""
    module = graph.module().eval()

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            return change(module(*args, **kwargs), args[1].cumsum(1) == 0)

    return run


@pytest.mark.parametrize("kind", ["attention", "infinite", "finite"])
def test_rows_that_attend_to_nothing_are_set_aside_and_counted(kind: str) -> None:
    graph = _graph(kind)
    masked = []

    def change(y: Tensor, rows: Tensor) -> Tensor:
        masked.append(int(rows.sum()))
        return torch.where(rows[..., None], 7.0, y)

    found = agree(graph, _other(graph, change), 1e-5, "it")
    assert masked[0] + masked[1] > 0
    assert found.undefined == sum(masked) * FEATURES
    assert found.compared == sum(BATCHES) * POSITIONS * FEATURES - found.undefined
    assert found.difference == 0.0
    assert "attend to nothing" in found.why and "test_check.py" in found.why
    with pytest.raises(EmitError, match=f"computes something else in {found.undefined} output elements"):
        compare(graph, _other(graph, change), 1e-5, "it")


@pytest.mark.parametrize("kind", ["attention", "infinite", "finite"])
def test_a_difference_at_one_defined_position_is_refused(kind: str) -> None:
    graph = _graph(kind)

    def change(y: Tensor, rows: Tensor) -> Tensor:
        at = int((~rows[0]).nonzero()[0])
        y[0, at, 0] += 0.01
        return torch.where(rows[..., None], 7.0, y)

    with pytest.raises(EmitError, match=r"largest difference of output 0 is 0\.01"):
        agree(graph, _other(graph, change), 1e-5, "it")


def test_nothing_is_set_aside_where_all_agrees() -> None:
    graph = _graph("attention")
    found = agree(graph, _other(graph, lambda y, rows: y), 1e-5, "it")
    assert found == Agreement(0.0, sum(BATCHES) * POSITIONS * FEATURES)


def test_nothing_left_to_compare_is_an_error() -> None:
    class Nothing(Attention):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return super().forward(x, torch.zeros_like(mask))

    x, mask = torch.randn(2, POSITIONS, FEATURES), torch.ones(2, POSITIONS, dtype=torch.long)
    graph = trace(Nothing("attention", pooled=True), (x, mask))
    with pytest.raises(EmitError, match="nothing of output 0 is defined"):
        agree(graph, _other(graph, lambda y, rows: y + 1), 1e-5, "it")


def test_numbers_that_are_not_numbers_are_differences() -> None:
    graph = trace(nn.Linear(3, 2), torch.randn(2, 3))
    module = graph.module().eval()
    for wrong in (math.nan, math.inf):
        with pytest.raises(EmitError, match="largest difference of output 0 is inf"):
            agree(graph, lambda args, kwargs, wrong=wrong: module(*args) + wrong, 1e-5, "it")  # type: ignore[misc]


def test_what_was_not_compared_is_told(tmp_path: Any) -> None:
    assert Emitted(tmp_path, 1e-7).verdict == "largest difference from the graph 1e-07"
    assert Emitted(tmp_path, 1e-7, 6, "for a reason").verdict.endswith("; 6 output elements not compared: for a reason")
    assert [t.item() for t in tensors_in({"a": [torch.tensor(1), 2], "b": None})] == [1, 2]
