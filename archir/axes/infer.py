"""Infers the axes of every value of a graph, and from them the widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import torch

from archir.axes.rules import (
    attention,
    conv,
    indexing,
    join,
    linear,
    norm,
    pointwise,
    recurrent,
    reduce,
    reshape,
    source,
    spatial,
)
from archir.axes.rules.context import Context, Rule, Speller, Unknown
from archir.axes.rules.movement import data_movement
from archir.axes.terms import Atom, Term, add_role, freeze, leaves, resolve
from archir.axes.widths import Place, Width, Widths
from archir.ir import ops
from archir.ir.graph import Graph
from archir.ir.node import INPUT, PARAMETER, Node, Value
from archir.ir.types import ScalarType, Size, TensorType, evaluate, symbols_of

RULES: Mapping[str, Rule] = {
    op: rule
    for family in (
        attention,
        conv,
        indexing,
        join,
        linear,
        norm,
        pointwise,
        recurrent,
        reduce,
        reshape,
        source,
        spatial,
    )
    for op, rule in family.RULES.items()
}
"""The rule of each operator; pointwise operators are found by their tag."""

_PRIMES = (1_000_003, 1_000_033, 1_000_037, 1_000_039, 1_000_081, 1_000_099)
"""Run-time sizes are given large primes, so that a reshape that mixes them with channels is still unambiguous."""

_SMALL = 5
"""Stands for run-time sizes where a call is run on index arrays."""

_OTHER = 1_000_117
"""Stands for sizes that depend on data."""


@lru_cache(maxsize=4)
def infer_widths(graph: Graph) -> Widths:
    """Find the widths of a graph: what may change, what may not and why, and what changes together.

    Cost is linear in the number of nodes, for bounded numbers of axes and concatenated parts.
    """
    numbers = _Numbers(graph)
    axes: dict[Value, tuple[Term, ...]] = {}
    spellers: dict[int, Speller] = {}
    stored = frozenset(Value(n.id) for n in graph.parameters)
    for node in graph.nodes:
        if node.op in (INPUT, PARAMETER):
            reason = "an axis of an input" if node.op == INPUT else ""
            for i, sizes in enumerate(numbers.of(node)):
                axes[Value(node.id, i)] = tuple(Atom(n, reason) for n in sizes)
            if node.op == INPUT:
                for axis in axes.get(Value(node.id), ()):
                    add_role(axis, "boundary")
        elif node.is_call:
            _infer_call(graph, Context(node, axes, numbers.of(node), stored, spellers, _masks(graph, node)))
    for _, value in graph.output.operands():
        for axis in axes.get(value, ()):
            freeze(axis, "an axis of an output")
            add_role(axis, "boundary")
    found = {value: tuple(map(resolve, terms)) for value, terms in axes.items()}
    free, frozen = _collect(graph, found)
    return Widths(graph, free, frozen, found, spellers)


class _Numbers:
    """Sizes as integers, run-time ones replaced by large primes."""

    def __init__(self, graph: Graph) -> None:
        types = [t for n in graph.inputs for t in n.results if isinstance(t, TensorType)]
        names = sorted({name for t in types for size in t.shape for name in symbols_of(size)})
        self._symbols = {name: _PRIMES[i % len(_PRIMES)] for i, name in enumerate(names)}
        self._known: dict[Size, int] = {}

    def of(self, node: Node) -> list[tuple[int, ...]]:
        """Return the sizes of each result of a node; none for a number."""
        return [tuple(map(self._number, t.shape)) if isinstance(t, TensorType) else () for t in node.results]

    def _number(self, size: Size) -> int:
        if isinstance(size, int):
            return size
        if size not in self._known:
            self._known[size] = evaluate(size, {s: self._symbols.get(s, _OTHER) for s in symbols_of(size)})
        return self._known[size]


def _masks(graph: Graph, node: Node) -> frozenset[Value]:
    types = {value: graph.type_of(value) for _, value in node.operands()}
    return frozenset(v for v, t in types.items() if isinstance(t, TensorType) and t.dtype == torch.bool)


def _infer_call(graph: Graph, c: Context) -> None:
    node = c.node
    if not any(isinstance(t, TensorType) for t in node.results):
        return
    rule = RULES.get(node.op) or (pointwise.pointwise if ops.is_pointwise(node.op) else None)
    try:
        if _names_axes_of_number(c):
            raise Unknown("it names an axis of a tensor that has none")
        found = _by_index_arrays(graph, c) if rule is None else rule(c)
        results = [tuple(map(resolve, axes)) for axes in found]
        if [tuple(a.size for a in axes) for axes in results] != list(c.sizes):
            raise Unknown("its axis rule does not cover this call")
    except Unknown as unknown:
        c.spellers.pop(node.id, None)
        reason = f"{node.op.removesuffix('.default')}: {unknown}" + (f" ({node.location})" if node.location else "")
        for _, value in node.operands():
            c.freeze(c.axes.get(value, ()), reason)
        results = [tuple(c.fresh(reason, i)) for i in range(len(node.results))]
    for i, axes in enumerate(results):
        if isinstance(node.results[i], TensorType):
            c.axes[Value(node.id, i)] = axes


def _by_index_arrays(graph: Graph, c: Context) -> Sequence[Sequence[Term]]:
    """Type a call that has no rule by running it, if it does nothing but move the data of one tensor."""
    operands = {value: graph.type_of(value) for _, value in c.node.operands()}
    tensors = [t for t in operands.values() if isinstance(t, TensorType)]
    numbers = {v: t.value for v, t in operands.items() if isinstance(t, ScalarType)}
    if len(tensors) != 1 or None in numbers.values():
        raise Unknown("it has no axis rule")
    sizes = [*tensors[0].shape, *(n for n in numbers.values() if n is not None)]
    small = {name: _SMALL for size in sizes for name in symbols_of(size)}
    shape = [evaluate(size, small) for size in tensors[0].shape]
    return data_movement(c, shape, {v: evaluate(n, small) for v, n in numbers.items() if n is not None})


def _names_axes_of_number(c: Context) -> bool:
    """Say whether a call such as `sum(x, dim=0)` is on a tensor without axes, where PyTorch takes it to have one."""
    named = {"dim", "dims", "dimension"} & c.node.arguments.keys()
    x = c.node.arguments.get("self", c.node.arguments.get("input"))
    return bool(named) and isinstance(x, Value) and not c.axes.get(x)


def _collect(graph: Graph, axes: Mapping[Value, tuple[Term, ...]]) -> tuple[tuple[Width, ...], tuple[Width, ...]]:
    places: dict[Atom, dict[tuple[int, int], Place]] = {}
    for node in _by_first_use(graph):
        for axis, term in enumerate(axes[Value(node.id)]):
            for atom in leaves(term):
                name = node.parameter.names[0] if node.parameter else ""
                places.setdefault(atom, {}).setdefault((node.id, axis), Place(name, axis, node.id, term))
    free: list[Width] = []
    frozen: list[Width] = []
    for atom, where in places.items():
        if atom.size < 2 and not (atom.reason and atom.reason != "size one"):
            continue
        group, letter = (frozen, "f") if atom.reason else (free, "w")
        group.append(
            Width(f"{letter}{len(group)}", atom.size, frozenset(atom.roles), tuple(where.values()), atom.reason, atom)
        )
    return tuple(free), tuple(frozen)


def _by_first_use(graph: Graph) -> Iterator[Node]:
    seen: set[int] = set()
    for node in graph.nodes:
        for _, value in node.operands():
            source = graph.node(value.node)
            if source.op == PARAMETER and source.id not in seen:
                seen.add(source.id)
                yield source
    yield from (n for n in graph.parameters if n.id not in seen)
