"""RemoveIdentity: calls that return what they are given go, and moves of data that follow each other become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import ClassVar

import torch

from archir.axes.rules.reshape import PERMUTATIONS, axis_order
from archir.ir.execute import mode_argument
from archir.ir.graph import Graph, Patch
from archir.ir.node import Argument, Node, Value
from archir.ir.operators.operator import Kind, Movement
from archir.ir.registry import operator_of
from archir.ir.types import Size
from archir.rewrite.passes import Pass
from passes.sweep import Sweep, sweep, written_in_training


def _names(text: str) -> frozenset[str]:
    return frozenset(f"aten.{name}" for name in text.split())


_LAYOUTS = _names("contiguous.default clone.default _to_copy.default")
"""Calls that may change how a tensor lies in memory."""

_STRIDED = _names("view.default _unsafe_view.default view.dtype as_strided.default")
"""Calls that depend on how a tensor lies in memory."""

_DETACHING = _names("detach.default detach_copy.default")
"""Calls that let no gradient pass."""

_RETURNING = frozenset({Movement.COPY, Movement.CAST, Movement.RESHAPE, Movement.REPEAT, Movement.JOIN, Movement.CUT})
"""Ways to move data whose result is the operand where it has its type."""


@dataclass(frozen=True)
class RemoveIdentity(Pass):
    """Remove calls that return what they are given.

    These are dropout with p = 0, `x + 0`, `x - 0`, `x * 1`, `x / 1`, `x ** 1`, conversions, reshapes, expansions,
    slices, pads and permutations that change nothing, copies and aliases. A reshape of a reshape becomes one, and so
    does a permutation of a permutation. Signs of zeros aside (`-0 + 0` is `0`), the function is the same.

    Attributes:
        training: keep what matters in training alone: dropout, which is the identity in evaluation mode, and `detach`.
            Training is the same afterwards if they are kept.

    Source: ours.
    """

    name: ClassVar[str] = "remove-identity"
    summary: ClassVar[str] = "remove calls that return what they are given"
    preserves: ClassVar[str] = "the function, in training too"

    training: bool = True

    def patch(self, graph: Graph) -> Patch:
        """Return a patch without such calls; an empty one if there are none."""
        strided = any(node.op in _STRIDED for node in graph.calls)
        written = written_in_training(graph)
        rules: list[Callable[[Sweep, Node], Value | None]] = [
            partial(_dropout, training=self.training),
            partial(_same_type, kept=_LAYOUTS if strided else frozenset()),
            _pad,
            _permutation,
            partial(_arithmetic, written=written),
        ]

        def remove(walk: Sweep, node: Node) -> None:
            for rule in rules:
                source = rule(walk, node)
                if source is not None and walk.type_of(source) == node.results[0]:
                    walk.replace(Value(node.id), source)
                    return
            if operator_of(node.op).moves is Movement.RESHAPE:
                _merge_reshapes(walk, node)
            elif node.op in PERMUTATIONS:
                _merge_permutations(walk, node)

        return sweep(graph, self, remove)


def _operand(node: Node) -> Value | None:
    """Return the first operand of a call, the only one where it is a list of tensors."""
    first: Argument = next(iter(node.arguments.values()), None)
    if isinstance(first, tuple):
        first = first[0] if len(first) == 1 else None
    return first if isinstance(first, Value) else None


def _dropout(walk: Sweep, node: Node, training: bool) -> Value | None:
    """Return the operand of a dropout that does nothing, or of `detach` where training does not matter."""
    if node.op in _DETACHING:
        return None if training else _operand(node)
    if operator_of(node.op).kind is not Kind.DROPOUT:
        return None
    idle = node.argument("p") == 0 or (not training and mode_argument(node) is not None)
    return _operand(node) if idle else None


def _same_type(walk: Sweep, node: Node, kept: frozenset[str]) -> Value | None:
    """Return the operand of a call that changes nothing but the type, which the caller compares."""
    known, apart = operator_of(node.op), kept | _DETACHING
    stays = known.mode or "device" in node.arguments or node.op in apart
    return None if stays or len(node.results) != 1 or known.moves not in _RETURNING else _operand(node)


def _pad(walk: Sweep, node: Node) -> Value | None:
    """Return the operand of a pad by nothing."""
    if operator_of(node.op).moves is not Movement.PAD:
        return None
    pad = node.argument("pad" if "pad" in node.arguments else "padding")
    return _operand(node) if isinstance(pad, tuple) and not any(pad) else None


def _permutation(walk: Sweep, node: Node) -> Value | None:
    """Return what a chain of permutations that cancel was applied to."""
    order = _order(node)
    source = _operand(node)
    if order is None or source is None:
        return None
    if _moves_nothing(order, node.tensor_type().shape):
        return source
    before = walk.find(source.node)
    inner = _order(before) if before is not None else None
    below = _operand(before) if before is not None and inner is not None else None
    if inner is None or below is None:
        return None
    return below if _moves_nothing(tuple(inner[a] for a in order), node.tensor_type().shape) else None


def _order(node: Node) -> tuple[int, ...] | None:
    """Return for each axis of the result of a permutation the axis of its operand it is."""
    return tuple(axis_order(node, len(node.tensor_type().shape))) if node.op in PERMUTATIONS else None


def _moves_nothing(order: tuple[int, ...], shape: tuple[Size, ...]) -> bool:
    """Say whether a permutation keeps the order of all axes that have more than one element."""
    moved = [axis for axis, size in zip(order, shape, strict=True) if size != 1]
    return moved == sorted(moved)


def _merge_permutations(walk: Sweep, node: Node) -> None:
    """Apply a permutation to what another was applied to, if nothing else uses that."""
    source = _operand(node)
    before = walk.find(source.node) if source is not None else None
    order, inner = _order(node), _order(before) if before is not None else None
    below = _operand(before) if before is not None else None
    if order is None or inner is None or below is None or source is None or len(walk.uses(source)) > 1:
        return
    dims = tuple(inner[axis] for axis in order)
    walk.update(node.id, {"self": below, "dims": dims}, op="aten.permute.default", drop=set(node.arguments) - {"self"})


def _merge_reshapes(walk: Sweep, node: Node) -> None:
    """Apply a reshape to what another was applied to, if nothing else uses that."""
    source = _operand(node)
    before = walk.find(source.node) if source is not None else None
    below = _operand(before) if before is not None and operator_of(before.op).moves is Movement.RESHAPE else None
    if source is None or below is None or len(walk.uses(source)) > 1:
        return
    if node.op == "aten.reshape.default":
        walk.update(node.id, {"self": below})
        return
    shape = node.tensor_type().shape
    if sum(not isinstance(size, int) for size in shape) > 1 or 0 in shape:
        return
    spelled = tuple(size if isinstance(size, int) else -1 for size in shape)
    walk.update(
        node.id, {"self": below, "shape": spelled}, op="aten.reshape.default", drop=set(node.arguments) - {"self"}
    )


_NEUTRAL = MappingProxyType(
    {"add": (0, True), "sub": (0, False), "mul": (1, True), "div": (1, False), "pow": (1, False)}
)
"""The number that does nothing as the second operand, and whether it does nothing as the first either."""


def _arithmetic(walk: Sweep, node: Node, written: frozenset[int]) -> Value | None:
    """Return the operand of a sum with zero, a product with one and the like."""
    name, _, form = node.op.removeprefix("aten.").partition(".")
    if name not in _NEUTRAL or form not in ("Tensor", "Scalar", "Tensor_Scalar", "Tensor_Tensor"):
        return None
    neutral, commutes = _NEUTRAL[name]
    one, other = node.argument("self"), node.argument("exponent" if name == "pow" else "other")
    if isinstance(one, Value) and _is_all(walk, other, neutral, written):
        return one
    plain = "alpha" not in node.arguments
    if commutes and plain and isinstance(other, Value) and _is_all(walk, one, neutral, written):
        return other
    return None


def _is_all(walk: Sweep, argument: Argument, number: int, written: frozenset[int]) -> bool:
    """Say whether an argument is a number, or a stored tensor that never changes and holds nothing else."""
    if isinstance(argument, int | float) and not isinstance(argument, bool):
        return argument == number
    known, tensor = walk.parameter(argument), walk.stored(argument)
    if known is None or tensor is None or known.trainable or not isinstance(argument, Value):
        return False
    return argument.node not in written and tensor.dtype != torch.bool and bool((tensor == number).all())
