"""Finds the elements of a program's outputs that its operators do not define.

A row of attention whose every position is masked has no result of its own: softmax over nothing but `-inf` is NaN by
the formula, zero in torch, the plain mean elsewhere; where masks are finite (`finfo.min`), rounding decides. The
program is run with such rows filled in several ways, and an output element that follows depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from archir.emit.nesting import nested, tensors_in
from archir.ir.execute import call
from archir.ir.graph import Graph
from archir.ir.node import Node, Value
from archir.ir.operators.attention import ATTENTION

_Values = Callable[[Value], object]
_Filler = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Undefined:
    """What of the outputs for certain inputs is not defined.

    Attributes:
        elements: for each output, which elements depend on undefined rows; `[...]` as the output, of truth values.
        nodes: the calls with undefined rows.
    """

    elements: tuple[Tensor, ...]
    nodes: tuple[Node, ...]

    @property
    def why(self) -> str:
        """What leaves them undefined; empty if nothing does."""
        if not any(bool(e.any()) for e in self.elements):
            return ""
        first = self.nodes[0]
        place = f" of {first.location}" if first.location and str(first.location) else ""
        others = f" and {len(self.nodes) - 1} more" if len(self.nodes) > 1 else ""
        return f"they depend on positions that attend to nothing, in {first.op}{place}{others}"


def find_undefined(graph: Graph, leaves: Sequence[object], limits: Sequence[float]) -> Undefined:
    """Find the elements of the outputs that depend on rows of attention of which every position is masked.

    Args:
        graph: the program, in eval mode.
        leaves: a tensor or number for each input of the graph.
        limits: for each output (`tensors_in` lists them), how much an element may change and still count as defined.
    """
    fills = [_Fill(filler) for filler in FILLERS]
    plain, *others = [_run(graph, leaves, fill) for fill in fills]
    elements = [torch.zeros(t.shape, dtype=torch.bool) for t in plain]
    for outputs in others if any(fill.nodes for fill in fills) else []:
        for i, (one, other) in enumerate(zip(plain, outputs, strict=True)):
            elements[i] |= gap(one, other) > max(limits[i], 0.0)
    nodes = {node.id: node for fill in fills for node in fill.nodes}
    return Undefined(tuple(elements), tuple(nodes.values()))


def gap(one: Tensor, other: Tensor) -> Tensor:
    """Return the absolute differences of two tensors, in float64; NaN equals NaN and is infinitely far from others."""
    wide = torch.complex128 if one.is_complex() else torch.float64
    one, other = one.detach(), other.detach()
    same = (one == other) | (torch.isnan(one) & torch.isnan(other))
    return torch.where(same, 0.0, (one.to(wide) - other.to(wide)).abs().nan_to_num(nan=torch.inf, posinf=torch.inf))


@dataclass
class _Fill:
    """Replaces undefined rows, and notes whose they are."""

    filler: _Filler
    nodes: list[Node] = field(default_factory=list)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __call__(self, node: Node, values: _Values, results: tuple[object, ...]) -> tuple[object, ...]:
        rows = _ROWS[node.op](node, values) if node.op in _ROWS else None
        if rows is None or not bool(rows.any()):
            return results
        self.nodes.append(node)
        first, *others = results
        assert isinstance(first, Tensor)
        return (torch.where(rows, self.filler(first, self.generator), first), *others)


def _as_it_is(result: Tensor, generator: torch.Generator) -> Tensor:
    return result


def _zero(result: Tensor, generator: torch.Generator) -> Tensor:
    return torch.zeros_like(result)


def _share(result: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(result.shape, generator=generator, dtype=torch.float32).to(result.dtype)


def _wide(result: Tensor, generator: torch.Generator) -> Tensor:
    return (8 * torch.randn(result.shape, generator=generator, dtype=torch.float32)).to(result.dtype)


def _opposite(result: Tensor, generator: torch.Generator) -> Tensor:
    return -_wide(result, generator)


FILLERS: tuple[_Filler, ...] = (_as_it_is, _zero, _share, _wide, _opposite)
"""What undefined rows are filled with: what happens to agree with one of them does not with another.

The last two are of both signs and opposite, so that a comparison or a rectifier that hides one shows the other.
"""


def _run(graph: Graph, leaves: Sequence[object], fill: _Fill) -> list[Tensor]:
    """Return the tensors a graph computes with undefined rows filled, in eval mode."""
    kept: dict[Value, object] = {Value(n.id): v for n, v in zip(graph.inputs, leaves, strict=True)}
    kept |= {Value(i): tensor for i, tensor in graph.tensors.items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what the program draws is the same each time
        for node in graph.calls:
            results = fill(node, kept.__getitem__, call(node, kept.__getitem__))
            kept |= {Value(node.id, i): result for i, result in enumerate(results)}
    return tensors_in(nested(graph, {v: kept[v] for v in graph.output.values}))


def _masked_attention(node: Node, values: _Values) -> Tensor | None:
    mask = node.argument("attn_mask")
    return _masked(values(mask), -1) if isinstance(mask, Value) else None


def _masked_softmax(node: Node, values: _Values) -> Tensor | None:
    scores, dim = node.argument("self"), node.argument("dim")
    assert isinstance(scores, Value) and isinstance(dim, int)
    return _masked(values(scores), dim)


def _masked(mask: object, dim: int) -> Tensor | None:
    """Return which rows of a mask let nothing through; the axis is kept, of size 1."""
    if not isinstance(mask, Tensor) or mask.dim() == 0:
        return None
    if mask.is_floating_point():
        return (mask <= torch.finfo(mask.dtype).min / 2).all(dim, keepdim=True)
    return ~mask.any(dim, keepdim=True) if mask.dtype == torch.bool else None


_ROWS: Mapping[str, Callable[[Node, _Values], Tensor | None]] = MappingProxyType(
    {
        ATTENTION: _masked_attention,
        **dict.fromkeys(
            (
                *("aten.softmax.int", "aten._softmax.default", "aten._safe_softmax.default"),
                *("aten.log_softmax.int", "aten._log_softmax.default"),
            ),
            _masked_softmax,
        ),
    }
)
"""For each operator that leaves rows undefined, what finds them."""
