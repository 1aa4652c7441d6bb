"""Kernels of convolutions: where they are stored, and which calls have to change with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from archir.ir.edit import Edit
from archir.ir.graph import Graph
from archir.ir.node import PARAMETER, Node, Value
from archir.ir.operators.operator import Kind
from archir.ir.registry import operator_of
from archir.ir.types import Size, TensorType
from archir.rewrite.miss import Miss
from archir.rewrite.surroundings import CONVOLUTIONS, kind_of


@dataclass(frozen=True)
class Kernel:
    """A stored kernel, and the convolutions that share it.

    Attributes:
        weight: the kernel, `[out, in / groups, *sizes]`; transposed ones `[in, out / groups, *sizes]`.
        sizes: its size along each spatial axis.
        trainable: whether it is learned.
        calls: the convolutions.
    """

    weight: Value
    sizes: tuple[int, ...]
    trainable: bool
    calls: tuple[Node, ...]


def find_kernel(graph: Graph, value: Value) -> Kernel | Miss:
    """Return the kernel of the convolution that makes a value, or why it cannot be changed."""
    node = graph.node(value.node)
    if not _is_convolution(node):
        return Miss("it is no convolution", (node.id,))
    weight = node.argument("weight")
    parameter = graph.node(weight.node).parameter if isinstance(weight, Value) else None
    if not isinstance(weight, Value) or parameter is None:
        return Miss("its kernel is computed, not stored", (node.id,))
    uses = graph.uses(weight)
    others = [u.node for u in uses if u.argument != "weight" or not _is_convolution(graph.node(u.node))]
    if others:
        return Miss("its kernel is used by something else, too", tuple(others))
    calls = tuple(graph.node(u.node) for u in uses)
    return Kernel(weight, tuple(graph.tensors[weight.node].shape[2:]), parameter.trainable, calls)


def kernel_layers(graph: Graph) -> Iterator[Value]:
    """Yield the result of the first convolution of every stored kernel."""
    seen: set[Value] = set()
    for node in graph.calls:
        weight = node.argument("weight") if _is_convolution(node) else None
        if isinstance(weight, Value) and weight not in seen and graph.node(weight.node).op == PARAMETER:
            seen.add(weight)
            yield Value(node.id)


def _is_convolution(node: Node) -> bool:
    return kind_of(node) in CONVOLUTIONS


def is_transposed(node: Node) -> bool:
    """Say whether a convolution is transposed."""
    return kind_of(node) is Kind.TRANSPOSED


def along_axes(node: Node, name: str) -> tuple[int, ...]:
    """Return an argument of a convolution that holds one number for each spatial axis, such as `stride`."""
    features, found = operator_of(node.op).features, node.argument(name)
    assert features is not None
    if not isinstance(found, tuple):
        found = (found,)
    numbers = tuple(n for n in found if isinstance(n, int))
    return numbers * (-1 - features) if len(numbers) == 1 else numbers


def padding_of(node: Node, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many zeros a convolution with a kernel of some sizes puts before each spatial axis.

    At stride 1, `padding="same"` puts `dilation * (size - 1)` around each, the odd one after it.
    """
    padding = node.argument("padding")
    if padding == "valid":
        return (0,) * len(sizes)
    if padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(along_axes(node, "dilation"), sizes, strict=True))
    return along_axes(node, "padding")


def pad_more(edit: Edit, node: Node, more: tuple[int, ...]) -> None:
    """Let a convolution put more zeros at both ends of each spatial axis; `padding="same"` follows by itself."""
    if any(more) and node.argument("padding") != "same":
        padding = tuple(p + m for p, m in zip(padding_of(node, more), more, strict=True))
        edit.update(node.id, op=node.op.replace(".padding", ".default"), arguments={"padding": padding})


def spatial_sizes(graph: Graph, value: Value, axes: int) -> tuple[Size, ...]:
    """Return the sizes of the last axes of a value."""
    type_ = graph.type_of(value)
    assert isinstance(type_, TensorType)
    return type_.shape[-axes:]
