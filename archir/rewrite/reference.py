"""References: how specifications name the values of a graph, by their numbers in its text form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin, get_type_hints

from archir.axes.infer import infer_widths
from archir.axes.terms import leaves
from archir.errors import PassError, suggest
from archir.ir.graph import Graph
from archir.ir.node import INPUT, PARAMETER, Value

Reference = Annotated[str, "value"]
"""The name of a value in the text form of a graph: `%12`, `%12.1`, or that of an input."""

Options = TypeVar("Options")


def refer(graph: Graph, value: Value) -> Reference:
    """Return the name of a value in the text form of a graph.

    Raises:
        PassError: it is a stored tensor.
    """
    node = graph.node(value.node)
    if node.op == PARAMETER:
        raise PassError("a stored tensor is no value a pass can name")
    if node.op == INPUT:
        return node.name
    number = graph.structure.numbers[node.id]
    return f"%{number}" if len(node.results) == 1 else f"%{number}.{value.index}"


def find_value(graph: Graph, reference: Reference) -> Value:
    """Return the value a reference names.

    Raises:
        PassError: there is none.
    """
    numbered = re.fullmatch(r"%(\d{1,9})(?:\.(\d{1,9}))?", reference)
    if numbered:
        calls = graph.structure.calls
        number, index = int(numbered[1]), int(numbered[2] or 0)
        if number < len(calls) and index < len(calls[number].results):
            return Value(calls[number].id, index)
        raise PassError(f"there is no value {reference}", hint=f"the calls are numbered %0 to %{len(calls) - 1}")
    inputs = {n.name: n.id for n in graph.inputs}
    if reference in inputs:
        return Value(inputs[reference])
    raise PassError(f"there is no value {reference[:60]!r}", hint=suggest(reference, ["%0", *inputs]))


@dataclass(frozen=True)
class Later:
    """A graph, and one it has become by further rewrites.

    Attributes:
        before: the graph.
        after: what it has become.
        moved: ids of nodes that are others in the later graph; all others are the same.
    """

    before: Graph
    after: Graph
    moved: Mapping[int, int] = field(default_factory=dict)

    def node(self, before: int) -> int:
        """Return the id a node has in the later graph."""
        return self.moved.get(before, before)

    def value(self, reference: Reference) -> Reference:
        """Return the name of a value in the later graph.

        Raises:
            PassError: there is no such value, or it is no longer there.
        """
        value = find_value(self.before, reference)
        if self.node(value.node) not in self.after:
            raise PassError(f"the value {reference} was removed by another rewrite")
        return refer(self.after, Value(self.node(value.node), value.index))

    def width(self, name: str) -> str:
        """Return the name of a width in the later graph, found by the places in which it stands.

        Raises:
            PassError: there is no such width, it is gone, or it is no longer a width of its own that may change.
        """
        width, later = infer_widths(self.before)[name], infer_widths(self.after)
        for place in width.places:
            node = self.node(place.node)
            if node not in self.after:
                continue
            atoms, found = list(leaves(place.term)), list(leaves(later.axes[Value(node)][place.axis]))
            here = found[atoms.index(width.atom)] if len(found) == len(atoms) else None
            if here is None or here.size != width.size:
                raise PassError(f"width {name} is composed of others after another rewrite")
            if here.reason:
                raise PassError(f"width {name} may no longer change", why=here.reason)
            return later.names[here]
        raise PassError(f"width {name} is no longer there")

    def through(self, before: Graph, after: Graph) -> Later:
        """Return the same once one and the same rewrite has been done to both graphs, whose results are given."""
        new = [
            sorted(n.id for n in g.nodes if n.id not in old) for old, g in ((self.before, before), (self.after, after))
        ]
        if len(new[0]) != len(new[1]):
            raise PassError("a rewrite does something else after another one")
        return Later(before, after, {**self.moved, **dict(zip(*new, strict=True))})


def follow(options: Options, later: Later) -> Options:
    """Return a pass found in one graph as it is written in a later one, in which values have other numbers.

    Raises:
        PassError: a value it names is no longer there.
    """
    changed: dict[str, Any] = {}
    hints = get_type_hints(type(options), include_extras=True)
    for option in fields(cast(Any, options)):
        old = getattr(options, option.name)
        if _names_values(hints[option.name]) and old:
            changed[option.name] = tuple(map(later.value, old)) if isinstance(old, tuple) else later.value(old)
    return replace(cast(Any, options), **changed) if changed else options


def _names_values(hint: Any) -> bool:
    if hint is Reference:
        return True
    return get_origin(hint) is tuple and any(map(_names_values, get_args(hint)))
