"""What a graph costs, read off its types: parameters, FLOPs, bytes of activations, in all and at once.

Nothing is run. A multiply-add counts as two FLOPs, as PyTorch's own counter has it; biases added on the
way are not counted, other operators count one FLOP an element, and moving data counts none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Protocol

import torch

from archir.errors import GraphError
from archir.ir import ops
from archir.ir.graph import Graph, Patch
from archir.ir.node import Argument, Node, Value
from archir.ir.types import Size, TensorType, Type, evaluate, symbols_of
from archir.memory import Memory, memory_of

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a graph costs, or the difference between two.

    Attributes:
        parameters: trainable numbers, tied ones once.
        flops: floating-point operations of the forward pass.
        bytes: total size of the tensors the forward pass makes, views left out; what training keeps, at most.
        peak_bytes: size of those among them that are alive at once, at most: each is made when its call is due and let
            go after its last use. Inputs and stored tensors belong to the caller and are left out.
    """

    parameters: int = 0
    flops: int = 0
    bytes: int = 0
    peak_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return self - -other

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def __neg__(self) -> Cost:
        return Cost() - self

    @property
    def frees(self) -> bool:
        """Whether, as a difference, it frees room in any budget."""
        return min(self.parameters, self.flops, self.peak_bytes) < 0


def cost(graph: Graph, batch: int = 1) -> Cost:
    """Return the cost of a graph for a batch of `batch` examples.

    Sizes that are not known until run time are all taken to be `batch`.
    """
    flops = sum(node_flops(graph, node, batch) for node in graph.calls)
    kept = memory(graph, batch)
    return Cost(graph.parameter_count, flops, kept.total, kept.peak)


def memory(graph: Graph, batch: int = 1) -> Memory:
    """Return the memory that the forward pass takes for a batch of `batch` examples."""
    return memory_of(graph, batch, lambda: Memory(graph, lambda node: result_bytes(node, batch), is_view))


def result_bytes(node: Node, batch: int = 1) -> int:
    """Return the bytes of all results of a call."""
    return sum(_numel(_sizes(t, batch)) * t.dtype.itemsize for t in node.results if isinstance(t, TensorType))


class Types(Protocol):
    """Gives the types of values: a graph, or one of which some sizes are others."""

    def type_of(self, value: Value) -> Type:
        """Return the type of a value."""
        ...


def node_cost(types: Types, node: Node, batch: int = 1) -> Cost:
    """Return what one stored tensor or call costs, the memory of its results apart from all others."""
    flops = node_flops(types, node, batch) if node.is_call else 0
    results = [types.type_of(Value(node.id, i)) for i in range(len(node.results))]
    made = sum(_numel(_sizes(t, batch)) * t.dtype.itemsize for t in results if isinstance(t, TensorType))
    trained = node.parameter is not None and node.parameter.trainable
    parameters = sum(_numel(_sizes(t, 1)) for t in results if isinstance(t, TensorType)) if trained else 0
    return Cost(parameters, flops, made)


def cost_change(patch: Patch, batch: int = 1) -> Cost:
    """Return what a patch adds to the cost of a graph for a batch of `batch` examples: only what it affects is read."""
    before, after = patch.before, patch.after
    gone = [before.node(i) for i in patch.removed] + [before.node(n.id) for n in patch.affected if n.id in before]
    found = sum((node_cost(after, n, batch) for n in patch.affected), Cost())
    found = sum((-node_cost(before, n, batch) for n in gone), found)
    old = memory(before, batch)
    total, peak = old.patched(patch)
    return Cost(found.parameters, found.flops, total - old.total, peak - old.peak)


def node_flops(types: Types, node: Node, batch: int = 1) -> int:
    """Return the FLOPs of one call for a batch of `batch` examples.

    Raises:
        GraphError: the node calls no operator.
    """
    if not node.is_call:
        raise GraphError(f"a node {node.op} does not compute anything")
    name = node.op.split(".")[1]
    results = [types.type_of(Value(node.id, i)) for i in range(len(node.results))]
    made = [_sizes(t, batch) for t in results if isinstance(t, TensorType)]
    if not made or name in _MOVES or is_view(node.op):
        return 0
    call = _Call(types, node, batch, made[0])
    if name in MULTIPLY_ADDS:
        return 2 * MULTIPLY_ADDS[name](call)
    operands = (types.type_of(value) for _, value in node.operands())
    read = [_numel(_sizes(t, batch)) for t in operands if isinstance(t, TensorType)]
    return max(*read, _numel(made[0])) if read else 0


@dataclass(frozen=True, slots=True)
class _Call:
    """A call, with the sizes its counting rule needs."""

    types: Types
    node: Node
    batch: int
    result: Shape

    def argument(self, name: str) -> Argument:
        return self.node.argument(name)

    def shape(self, name: str) -> Shape:
        return self.shape_of(self.argument(name))

    def shapes(self, name: str) -> list[Shape]:
        listed = self.argument(name)
        return [self.shape_of(a) for a in listed] if isinstance(listed, tuple) else []

    def shape_of(self, argument: Argument) -> Shape:
        type_ = self.types.type_of(argument) if isinstance(argument, Value) else None
        if not isinstance(type_, TensorType):
            raise GraphError(f"an operand of {self.node.op} is not a tensor", where=str(self.node.location or ""))
        return _sizes(type_, self.batch)


def _sizes(type_: TensorType, batch: int) -> Shape:
    return tuple(s if isinstance(s, int) else _at(s, batch) for s in type_.shape)


@lru_cache(maxsize=65536)
def _at(size: Size, batch: int) -> int:
    return evaluate(size, dict.fromkeys(symbols_of(size), batch), floored=True)


def _numel(shape: Sequence[int]) -> int:
    return math.prod(shape)


@lru_cache(maxsize=4096)
def is_view(op: str) -> bool:
    """Say whether the result may share the memory of an operand it does not write to."""
    target = ops.function(op)
    if not isinstance(target, torch._ops.OpOverload):
        return False
    aliases = [r.alias_info for r in target._schema.returns]
    return any(a is not None and not a.is_write for a in aliases)


def _convolution(call: _Call) -> int:
    if "transposed" in ops.schema(call.node.op).names and call.argument("transposed"):
        return _convolution_transpose(call)
    return _numel(call.result) * _numel(call.shape("weight")[1:])


def _convolution_transpose(call: _Call) -> int:
    return _numel(call.shape("input")) * _numel(call.shape("weight")[1:])


def _linear(call: _Call) -> int:
    return _numel(call.result) * call.shape("input")[-1]


def _bilinear(call: _Call) -> int:
    left, right = call.shape("input1")[-1], call.shape("input2")[-1]
    return _numel(call.result) * left * right + _numel(call.result) * right


def _contract(left: str) -> Callable[[_Call], int]:
    """Return the rule of a product whose operand `left` is contracted along its last axis."""
    return lambda call: _numel(call.result) * call.shape(left)[-1]


def _add_batches(call: _Call) -> int:
    return _numel(call.result) * _numel(call.shape("batch1")[::2])


def _attention(call: _Call) -> int:
    query, key, value = call.shape("query"), call.shape("key"), call.shape("value")
    return _numel(call.result[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(call: _Call) -> int:
    names = ops.schema(call.node.op).names
    steps = _numel(call.shape("input" if "input" in names else "data")[:-1])
    return steps * sum(_numel(w) for w in call.shapes("params") if len(w) == 2)


def _recurrent_cell(call: _Call) -> int:
    return _numel(call.shape("input")[:-1]) * (_numel(call.shape("w_ih")) + _numel(call.shape("w_hh")))


def _einsum(call: _Call) -> int:
    """Count a contraction from left to right; a letter nobody needs any more is summed over at once."""
    equation = str(call.argument("equation")).replace(" ", "")
    shapes = call.shapes("tensors")
    left, arrow, result = equation.partition("->")
    terms = [_letters(term, len(shape)) for term, shape in zip(left.split(","), shapes, strict=True)]
    size = {letter: 1 for term in terms for letter in term}
    for term, shape in zip(terms, shapes, strict=True):
        size.update((letter, n) for letter, n in zip(term, shape, strict=True) if n != 1)
    every = [letter for term in terms for letter in term]
    kept = set(_letters(result, len(call.result))) if arrow else {x for x in every if every.count(x) == 1 or x < "A"}
    total, done = 0, set(terms[0])
    for i, term in enumerate(terms[1:], start=1):
        later = kept.union(*terms[i + 1 :])
        shared = (done & set(term)) | (done & later) | (set(term) & later)
        total += _numel([size[letter] for letter in shared])
        done = shared & later
    return total


def _letters(term: str, rank: int) -> tuple[str, ...]:
    """Return the letters of a term, with the axes of an ellipsis as `0`, `1`, ... counted from the right."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return (*before, *(str(i) for i in reversed(range(hidden))), *after)


MULTIPLY_ADDS: dict[str, Callable[[_Call], int]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "_convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution_transpose),
    "linear": _linear,
    "bilinear": _bilinear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "inner"), _contract("self")),
    "addmm": _contract("mat1"),
    "baddbmm": _contract("batch1"),
    "addbmm": _add_batches,
    "addmv": _contract("mat"),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _recurrent_cell),
}
"""Multiply-adds of the operators that multiply matrices, by name without overload."""

_MOVES = (
    {"cat", "stack", "clone", "copy", "_to_copy", "expand_copy", "lift_fresh_copy", "unsafe_split", "meshgrid"}
    | {"embedding", "index", "index_select", "gather", "scatter", "index_put", "take_along_dim", "one_hot"}
    | {"pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"}
    | {"roll", "flip", "repeat", "tile", "repeat_interleave", "broadcast_tensors", "tril", "triu", "im2col"}
    | {"pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "upsample_nearest1d", "upsample_nearest2d"}
    | {"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full"}
    | {"dropout", "feature_dropout", "alpha_dropout"}
)
"""Operators that only move or make data, beside the views; dropout does nothing outside training."""
