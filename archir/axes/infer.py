"""Infers the axes of every value of a graph, and from them the widths."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate, chain, islice
from operator import attrgetter
from weakref import WeakKeyDictionary

import sympy
import torch
from sympy import nextprime

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
from archir.axes.rules.context import Context, Room, Rule, Speller, Unknown
from archir.axes.rules.movement import data_movement
from archir.axes.terms import Atom, Term, add_role, freeze, leaves, resolve
from archir.axes.value_axes import Axes
from archir.axes.widths import Analysis, Place, Width, Widths
from archir.ir.graph import Graph
from archir.ir.input_checks import example_symbols
from archir.ir.node import INPUT, Node, Value
from archir.ir.registry import operator_of
from archir.ir.structure import Structure
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
"""The rule of each operator; other pointwise operators are found in the table of operators."""

_BEFORE_PRIMES = 1_000_000
"""Run-time sizes are given large primes, so that a reshape that mixes them with channels is still unambiguous."""

_NAMES_OF_AXES = frozenset({"dim", "dims", "dimension"})
"""Arguments that say along which axes an operator works."""

_SMALL = 5
"""Stands for run-time sizes where a call is run on index arrays."""

_OTHER = 1_000_117
"""Stands for sizes that depend on data."""

_COUNTING = frozenset({torch.int16, torch.int32, torch.int64})
"""Types of stored tensors whose numbers count or pick, and are no amounts that a unit could have more or less of."""


_known: WeakKeyDictionary[Structure, Analysis] = WeakKeyDictionary()


def infer_widths(graph: Graph) -> Widths:
    """Find the widths of a graph: what may change, what may not and why, and what changes together.

    Graphs that differ in their numbers alone share one analysis, which is kept for as long as one of them lives.
    """
    analysis = _known.get(graph.structure)
    if analysis is None:
        analysis = _known[graph.structure] = analyse(graph)
    return Widths(graph, analysis)


def analyse(graph: Graph) -> Analysis:
    """Find out what the axes of a graph are made of; this reads the nodes alone, and no stored number.

    Cost is linear in the number of nodes, for bounded numbers of axes and concatenated parts.
    """
    sizes = _Sizes(graph)
    axes: dict[int, Sequence[tuple[Term, ...] | None]] = {}
    spellers: dict[int, Speller] = {}
    for node in graph.inputs:
        axes[node.id] = [_boundary(tuple(map(Atom, found)), "an axis of an input") for found in sizes.of(node)]
    for node in graph.parameters:
        axes[node.id] = [tuple(map(Atom, found)) for found in sizes.of(node)]
    room = Room()
    for node in graph.calls:
        axes[node.id] = _infer_call(Context(graph, node, axes, sizes.of(node), spellers, room))
    for value in graph.output.values:
        _boundary(axes[value.node][value.index] or (), "an axis of an output")
    free, frozen = _collect(graph, axes)
    run_time, examples, rows = _run_time(graph, axes)
    return Analysis(free, frozen, Axes(axes), spellers, run_time, examples, rows)


def _run_time(
    graph: Graph, axes: Mapping[int, Sequence[tuple[Term, ...] | None]]
) -> tuple[frozenset[Atom], frozenset[Atom], frozenset[Atom]]:
    """Return the atoms whose sizes are known at run time only, those that examples lie along, and those of inputs.

    Examples lie along the first axes of the outputs that have a size of the batch; along those of inputs where there is
    none, and in values that have none of the outputs'. In a graph for one batch size they lie along the axis that all
    outputs and some input begin with.
    """
    batch = example_symbols(graph)
    open_, fixed, examples = set[Atom](), set[Atom](), set[Atom]()
    for node in graph.nodes:
        for type_, terms in zip(node.results, axes.get(node.id, ()), strict=False):
            for size, term in zip(type_.shape, terms or (), strict=False) if isinstance(type_, TensorType) else ():
                found = leaves(term)
                (fixed if isinstance(size, int) else open_).update(found)
                if node.op == INPUT and symbols_of(size) & batch:
                    examples.update(found)
    begun = _first_axes(graph, axes, graph.output.values)
    if batch:
        first = {term for term, size in begun if isinstance(term, Atom) and symbols_of(size) & batch}
        return frozenset(open_ - fixed), frozenset((first or examples) - fixed), frozenset(examples - fixed)
    stored = {leaf for n in graph.parameters for terms in axes[n.id] for term in terms or () for leaf in leaves(term)}
    given = {term for term, _ in _first_axes(graph, axes, [Value(n.id) for n in graph.inputs])} - stored
    same = len({term for term, _ in begun}) == 1
    alike = frozenset(t for t, _ in begun if isinstance(t, Atom) and same and t in given)
    return frozenset(open_ - fixed), alike, alike


def _first_axes(
    graph: Graph, axes: Mapping[int, Sequence[tuple[Term, ...] | None]], values: Iterable[Value]
) -> list[tuple[Term, Size]]:
    """Return the first axes of the tensors among some values that have one, and their sizes."""
    found: list[tuple[Term, Size]] = []
    for value in values:
        type_, terms = graph.type_of(value), axes[value.node][value.index]
        if isinstance(type_, TensorType) and terms:
            found.append((resolve(terms[0]), type_.shape[0]))
    return found


def _boundary(axes: tuple[Term, ...], reason: str) -> tuple[Term, ...]:
    for axis in axes:
        freeze(axis, reason)
        add_role(axis, "boundary")
    return axes


class _Sizes(dict[Size, int]):
    """Sizes as integers, run-time ones replaced by large primes, times what the guards say divides them."""

    def __init__(self, graph: Graph) -> None:
        types = [t for n in graph.inputs for t in n.results if isinstance(t, TensorType)]
        names = sorted({name for t in types for size in t.shape for name in symbols_of(size)})
        primes, divisors = (
            accumulate(names, lambda prime, _: nextprime(prime), initial=_BEFORE_PRIMES),
            _divisors(graph),
        )
        self._symbols = {
            name: prime * divisors.get(name, 1) for name, prime in zip(names, islice(primes, 1, None), strict=False)
        }

    def __missing__(self, size: Size) -> int:
        number = self[size] = evaluate(size, {s: self._symbols.get(s, _OTHER) for s in symbols_of(size)}, floored=True)
        return number

    def of(self, node: Node) -> list[tuple[int, ...]]:
        """Return the sizes of each result; none for a number."""
        number = self.__getitem__
        return [tuple(map(number, t.shape)) if isinstance(t, TensorType) else () for t in node.results]


def _divisors(graph: Graph) -> dict[str, int]:
    """Return by what the guards say that a symbol can be divided."""
    found: dict[str, int] = {}
    for guard in graph.signature.guards:
        match guard.left:
            case sympy.Mod(args=(sympy.Symbol(name=name), sympy.Integer() as by)) if str(guard).endswith("== 0"):
                found[name] = math.lcm(found.get(name, 1), int(by))
    return found


def _infer_call(c: Context) -> Sequence[tuple[Term, ...] | None]:
    """Return the axes of each result of a call, None for a number."""
    node = c.node
    if TensorType not in map(type, node.results):
        return [None] * len(node.results)
    try:
        if not _NAMES_OF_AXES.isdisjoint(node.arguments) and _is_on_number(c):
            raise Unknown("it names an axis of a tensor that has none")
        results = _by_rule(c)
    except Unknown as unknown:
        c.spellers.pop(node.id, None)
        reason = f"{node.op.removesuffix('.default')}: {unknown}" + (f" ({node.location})" if node.location else "")
        for value in node.values:
            c.freeze(c.axes_of(value), reason)
        results = [tuple(c.fresh(reason, i)) for i in range(len(node.results))]
    if ScalarType not in map(type, node.results):
        return results
    return [axes if isinstance(t, TensorType) else None for axes, t in zip(results, node.results, strict=True)]


def _by_rule(c: Context) -> list[tuple[Term, ...]]:
    try:
        results = list(map(tuple, (RULES.get(c.node.op) or _general_rule(c.node.op))(c)))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # A rule takes a call to be as networks have it; a file can give it lists of other lengths, or sizes of zero.
        raise Unknown("its axis rule does not cover this call") from error
    if [tuple(map(_size, axes)) for axes in results] != c.sizes:
        raise Unknown("its axis rule does not cover this call")
    return results


_size = attrgetter("size")


@cache
def _general_rule(op: str) -> Rule:
    """Return what is done with an operator that has no rule of its own."""
    return pointwise.pointwise if operator_of(op).pointwise else _by_index_arrays


def _by_index_arrays(c: Context) -> Sequence[Sequence[Term]]:
    """Type a call that has no rule by running it, if it does nothing but move the data of one tensor."""
    operands = {value: c.graph.type_of(value) for value in c.node.values}
    tensors = [t for t in operands.values() if isinstance(t, TensorType)]
    numbers = {v: t.value for v, t in operands.items() if isinstance(t, ScalarType)}
    if len(tensors) != 1 or None in numbers.values():
        raise Unknown("it has no axis rule")
    sizes = [*tensors[0].shape, *(n for n in numbers.values() if n is not None)]
    small = {name: _SMALL for size in sizes for name in symbols_of(size)}
    shape = [evaluate(size, small, floored=True) for size in tensors[0].shape]
    return data_movement(c, shape, {v: evaluate(n, small, floored=True) for v, n in numbers.items() if n is not None})


def _is_on_number(c: Context) -> bool:
    """Say whether a call such as `sum(x, dim=0)` is on a tensor without axes, where PyTorch takes it to have one."""
    x = c.node.arguments.get("self", c.node.arguments.get("input"))
    return isinstance(x, Value) and not c.axes_of(x)


def _collect(
    graph: Graph, axes: Mapping[int, Sequence[tuple[Term, ...] | None]]
) -> tuple[tuple[Width, ...], tuple[Width, ...]]:
    places: defaultdict[Atom, list[Place]] = defaultdict(list)
    for node in _by_first_use(graph):
        name = node.names[0] if node.names else ""
        (terms,) = axes[node.id]
        for axis, term in enumerate(map(resolve, terms or ())):
            place = Place(name, axis, node.id, term)
            if isinstance(term, Atom):
                places[term].append(place)
            else:
                for atom in dict.fromkeys(term.atoms):
                    places[atom].append(place)
    free: list[Width] = []
    frozen: list[Width] = []
    for atom, where in places.items():
        if atom.size < 2 and not (atom.reason and atom.reason != "size one"):
            continue
        if not atom.reason and all(graph.node(place.node).tensor_type().dtype in _COUNTING for place in where):
            freeze(atom, "it stands in index tensors only, which say what is picked and hold nothing of their own")
        group, letter = (frozen, "f") if atom.reason else (free, "w")
        group.append(Width(f"{letter}{len(group)}", atom.size, atom.roles, tuple(where), atom.reason, atom))
    return tuple(free), tuple(frozen)


def _by_first_use(graph: Graph) -> Iterator[Node]:
    stored = {node.id: node for node in graph.parameters}
    used = map(_node, chain.from_iterable(map(_values, graph.nodes)))
    return map(stored.__getitem__, dict.fromkeys([*filter(stored.__contains__, used), *stored]))


_node, _values = attrgetter("node"), attrgetter("values")
