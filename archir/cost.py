"""What a graph costs, read off its types: parameters, FLOPs, bytes of activations, in all and at once.

Nothing is run. A multiply-add counts as two FLOPs, as PyTorch's own counter has it; biases added on the
way are not counted, other operators count one FLOP an element, and moving data counts none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Protocol
from weakref import WeakKeyDictionary

import torch

from archir.errors import GraphError, suggest
from archir.ir import ops
from archir.ir.graph import Graph, Patch
from archir.ir.input_checks import sources
from archir.ir.node import Argument, Node, Value
from archir.ir.operators.operator import Shape
from archir.ir.registry import operator_of
from archir.ir.structure import Structure
from archir.ir.types import Size, TensorType, Type, evaluate, symbols_of
from archir.memory import Memory, memory_of


@dataclass(frozen=True, slots=True)
class Cost:
    """What a graph costs, or the difference between two.

    Attributes:
        parameters: trainable numbers, tied ones once.
        flops: floating-point operations of the forward pass.
        bytes: total size of the tensors the forward pass makes, views left out; what training keeps, at most.
        peak_bytes: size of those among them that are alive at once, at most: each is made when its call is due and
            released after its last use. Inputs and stored tensors belong to the caller and are left out.
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


Sizes = tuple[tuple[str, int], ...]
"""Values of sizes known at run time only, by their names."""

_known: WeakKeyDictionary[Structure, dict[tuple[int, Sizes], Cost]] = WeakKeyDictionary()


def cost(graph: Graph, batch: int = 1, sizes: Mapping[str, int] | None = None) -> Cost:
    """Return the cost of a graph for a batch of `batch` examples.

    Other sizes that are known at run time only, such as the length of a sequence, are those of the example that the
    graph was captured on, or those given. Where neither is known they are taken to be `batch`. Graphs of the same nodes
    are counted once.

    Args:
        graph: the graph.
        batch: number of examples.
        sizes: other sizes, by name: `{"T": 512}`.

    Raises:
        GraphError: no input has a size of that name, or it is not positive.
    """
    values = sizes_of(graph, sizes)
    known = _known.setdefault(graph.structure, {})
    key = batch, values
    if key not in known:
        flops = sum(node_flops(graph, node, batch, values) for node in graph.calls)
        kept = memory(graph, batch, values)
        known[key] = Cost(graph.parameter_count, flops, kept.total, kept.peak)
    return known[key]


def sizes_of(graph: Graph, sizes: Mapping[str, int] | None = None) -> Sizes:
    """Return the sizes that costs of a graph are told for: given ones, and those it was captured for.

    Raises:
        GraphError: no input has a size of that name, it is not positive, or they are no mapping.
    """
    if not sizes:
        return graph.signature.sizes
    known = sources([node.results[0] for node in graph.inputs])
    if not isinstance(sizes, Mapping):
        raise GraphError("sizes are a mapping", why=f"{sizes!r:.100} is none", hint='give sizes={"T": 512}')
    wrong = [f"no input has the size {name}: {suggest(str(name), known)}" for name in sizes if name not in known]
    wrong += [f"{name} is {size!r}" for name, size in sizes.items() if type(size) is not int or size < 1]
    if wrong:
        raise GraphError("costs cannot be told for these sizes", where="\n         ".join(wrong))
    return tuple(sorted({**dict(graph.signature.sizes), **sizes}.items()))


TRAINING = 3
"""FLOPs of training on an example over those of its forward pass."""


def training_flops(graph: Graph, examples: int) -> int:
    """Return the FLOPs of training on so many examples: three times the forward pass, the backward pass taken for two.

    Source: Kaplan et al. 2020, section 2.1.
    """
    return TRAINING * cost(graph).flops * examples


def memory(graph: Graph, batch: int = 1, sizes: Sizes | None = None) -> Memory:
    """Return the memory that the forward pass takes for a batch of `batch` examples; see `cost` for other sizes."""
    values = graph.signature.sizes if sizes is None else sizes
    return memory_of(graph, (batch, values), lambda: Memory(graph, lambda n: _bytes(n.results, batch, values), is_view))


class Types(Protocol):
    """Gives the types of values: a graph, or one of which some sizes are others."""

    def type_of(self, value: Value) -> Type:
        """Return the type of a value."""
        ...


def node_cost(types: Types, node: Node, batch: int = 1, sizes: Sizes = ()) -> Cost:
    """Return what one stored tensor or call costs, the memory of its results apart from all others."""
    flops = node_flops(types, node, batch, sizes) if node.is_call else 0
    results = [types.type_of(value) for value in node.made]
    parameters = sum(math.prod(shape) for shape in _shapes(results, 1, ())) if node.is_trainable else 0
    return Cost(parameters, flops, _bytes(results, batch, sizes))


def cost_change(patch: Patch, batch: int = 1) -> Cost:
    """Return what a patch adds to the cost of a graph for a batch of `batch` examples: only what it affects is read."""
    before, after, sizes = patch.before, patch.after, patch.before.signature.sizes
    gone = [before.node(i) for i in patch.removed] + [before.node(n.id) for n in patch.affected if n.id in before]
    found = sum((node_cost(after, n, batch, sizes) for n in patch.affected), Cost())
    found = sum((-node_cost(before, n, batch, sizes) for n in gone), found)
    old = memory(before, batch)
    total, peak = old.patched(patch)
    return Cost(found.parameters, found.flops, total - old.total, peak - old.peak)


def node_flops(types: Types, node: Node, batch: int = 1, sizes: Sizes = ()) -> int:
    """Return the FLOPs of one call for a batch of `batch` examples, and other sizes by name.

    Raises:
        GraphError: the node calls no operator.
    """
    if not node.is_call:
        raise GraphError(f"a node {node.op} does not compute anything")
    operator = operator_of(node.op)
    made = _shapes(map(types.type_of, node.made), batch, sizes)
    if not made or operator.moves or is_view(node.op):
        return 0
    if operator.multiply_adds is not None:
        return 2 * operator.multiply_adds(_Call(types, node, batch, sizes, made[0]))
    read = _shapes(map(types.type_of, node.values), batch, sizes)
    return max(map(math.prod, (*read, made[0]))) if read else 0


@dataclass(frozen=True, slots=True)
class _Call:
    """The sizes of a call."""

    types: Types
    node: Node
    batch: int
    sizes: Sizes
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
        return _sizes(type_, self.batch, self.sizes)


def _sizes(type_: TensorType, batch: int, sizes: Sizes) -> Shape:
    return tuple(s if isinstance(s, int) else _at(s, batch, sizes) for s in type_.shape)


@lru_cache(maxsize=65536)
def _at(size: Size, batch: int, sizes: Sizes) -> int:
    return evaluate(size, {**dict.fromkeys(symbols_of(size), batch), **dict(sizes)}, floored=True)


def _shapes(types: Iterable[Type], batch: int, sizes: Sizes) -> list[Shape]:
    """Return the shapes of those that are types of tensors."""
    return [_sizes(t, batch, sizes) for t in types if isinstance(t, TensorType)]


def _bytes(types: Iterable[Type], batch: int, sizes: Sizes) -> int:
    return sum(math.prod(_sizes(t, batch, sizes)) * t.dtype.itemsize for t in types if isinstance(t, TensorType))


@lru_cache(maxsize=4096)
def is_view(op: str) -> bool:
    """Say whether the result may share the memory of an operand it does not write to."""
    target = ops.function(op)
    if not isinstance(target, torch._ops.OpOverload):
        return False
    aliases = [r.alias_info for r in target._schema.returns]
    return any(a is not None and not a.is_write for a in aliases)
