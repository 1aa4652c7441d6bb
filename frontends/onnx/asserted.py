"""What an ONNX file checks of the sizes of its inputs, which it does in arithmetic, as ONNX has no assertions.

A check is a lookup in a table of one zero, whose index is out of range where a relation between sizes does not hold;
what is looked up is added to the shape that an input is given anew. It is known by what it computes, not by its name:
where a file runs, such an input comes out as it was, and the relation holds.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from archir.errors import ArchirError
from archir.ir.guards import Guard, fault, fold, whole
from archir.ir.types import TensorType, parse_size

_RELATIONS = {"Equal": "==", "LessOrEqual": "<=", "GreaterOrEqual": ">=", "Less": "<", "Greater": ">"}
_OPERATIONS: Mapping[str, Callable[[str, str], str]] = {
    "Add": lambda a, b: f"({a} + {b})",
    "Sub": lambda a, b: f"({a} - {b})",
    "Mul": lambda a, b: f"({a} * {b})",
    "Mod": lambda a, b: f"Mod({a}, {b})",
    "Max": lambda a, b: f"Max({a}, {b})",
    "Min": lambda a, b: f"Min({a}, {b})",
}
_DEEPEST, _LONGEST, _MOST = 200, 10_000, 1000
"""The most nodes that stand one in the other in a check, characters of a size, and checks of one input."""


class _Unlike(Exception):
    """Nodes that are no check."""


@dataclass
class Asserted:
    """What was found in a file.

    Attributes:
        inputs: reshapes that give an input its own shape, and that input.
        nodes: nodes that are there for checks alone.
        guards: what is checked, once each.
        wrong: checks that fail for all sizes, since what they are about is fixed: their names, or what they check.
    """

    inputs: dict[ir.Node, ir.Value] = field(default_factory=dict)
    nodes: set[ir.Node] = field(default_factory=set)
    guards: list[Guard] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def asserted(graph: ir.Graph, types: Mapping[ir.Value, TensorType], noted: Sequence[Guard]) -> Asserted:
    """Return what a graph checks of the sizes of its inputs; what the types of these say already is left out.

    Args:
        graph: the graph.
        types: the types of its inputs.
        noted: guards as they were written: one that the graph checks is told so.
    """
    found, spelled = Asserted(), {_key(guard): guard for guard in noted}
    read: set[ir.Node] = set()
    for node in graph:
        if node.op_type != "Reshape" or len(node.inputs) != 2 or node.inputs[0] not in types:
            continue
        reader = _Reader(types)
        try:
            conditions = reader.conditions(node.inputs[0], node.inputs[1])
        except (_Unlike, ArchirError):
            continue
        found.inputs[node] = node.inputs[0]  # type: ignore[assignment]
        read |= reader.read
        for name, condition in conditions:
            guard = spelled.get(_key(condition), condition)
            if not guard.symbols:
                found.wrong += [] if guard.holds({}) else [name or str(guard)]
            elif guard not in found.guards and not _is_same(guard):
                found.guards.append(guard)
    for node in reversed(list(graph)):
        users = {use.node for output in node.outputs for use in output.uses()}
        alone = users <= found.nodes | found.inputs.keys() and not any(o.is_graph_output() for o in node.outputs)
        if node in read and alone:
            found.nodes.add(node)
    return found


def _is_same(guard: Guard) -> bool:
    return guard.relation == "==" and guard.left == guard.right


def _key(guard: Guard) -> object:
    """Return what guards have in common that say the same in the same terms."""

    def apply(name: str, parts: Sequence[object]) -> object:
        if name in ("//", "%"):
            return name, *parts
        flat = [p for part in parts for p in (part[1:] if isinstance(part, tuple) and part[0] == name else (part,))]
        return name, *sorted(flat, key=repr)

    return guard.relation, *(fold(side, str, int, apply) for side in whole(guard))


class _Reader:
    """Reads one check.

    Attributes:
        read: the nodes it is made of.
    """

    def __init__(self, types: Mapping[ir.Value, TensorType]) -> None:
        self.read: set[ir.Node] = set()
        self._types = types
        self._spelled: dict[ir.Value, str] = {}

    def conditions(self, given: ir.Value | None, shape: ir.Value | None) -> list[tuple[str, Guard]]:
        """Return what is checked on the way from the shape of an input to one that it is given, and its name.

        Raises:
            _Unlike: it may be given another shape.
        """
        found: list[tuple[str, Guard]] = []
        node = self._made(shape)
        while not _is(node, "Shape"):
            shape, looked_up = self._operands(node, "Add", 2)
            lookup = self._made(looked_up)
            table, wrong = self._operands(lookup, "Gather", 2)
            if _number(table) != 0 or len(found) > _MOST:
                raise _Unlike
            found.append((lookup.name or "", self._condition(wrong)))
            node = self._made(shape)
        if not found or self._operands(node, "Shape", 1) != [given]:
            raise _Unlike
        return found[::-1]

    def _condition(self, wrong: ir.Value) -> Guard:
        (negated,) = self._operands(self._made(wrong), "Cast", 1)
        (relation,) = self._operands(self._made(negated), "Not", 1)
        node, turned = self._made(relation), False
        if _is(node, "Not"):
            turned, node = True, self._made(node.inputs[0])
        kind = _RELATIONS.get(str(node.op_type), "")
        if not kind or (turned and kind != "=="):
            raise _Unlike
        left, right = (parse_size(self._size(part, 0)) for part in self._operands(node, str(node.op_type), 2))
        guard = Guard(left, "!=" if turned else kind, right)
        if fault(guard):
            raise _Unlike
        return guard

    def _size(self, value: ir.Value, depth: int) -> str:
        """Return the text of a size, which is a tensor of one element."""
        if value not in self._spelled:
            self._spelled[value] = self._spell(value, depth)
        if len(self._spelled[value]) > _LONGEST:
            raise _Unlike
        return self._spelled[value]

    def _spell(self, value: ir.Value, depth: int) -> str:
        number = _number(value)
        if number is not None:
            return str(number) if number >= 0 else f"({number})"
        node = self._made(value)
        if depth > _DEEPEST:
            raise _Unlike
        if _is(node, "Gather"):
            shape, axis = self._operands(node, "Gather", 2)
            (source,) = self._operands(self._made(shape), "Shape", 1)
            number, type_ = _number(axis), self._types.get(source)
            if type_ is None or number is None or not 0 <= number < len(type_.shape):
                raise _Unlike
            return f"({type_.shape[number]})"
        one, other = self._operands(node, str(node.op_type), 2)
        if _is(node, "Div"):  # of what is left without the rest, so that it is rounded down
            made = self._made(one)
            above, rest = self._operands(made, "Sub", 2)
            if [id(v) for v in self._operands(self._made(rest), "Mod", 2)] != [id(above), id(other)]:
                raise _Unlike
            return f"floor(({self._size(above, depth + 1)})/({self._size(other, depth + 1)}))"
        write = _OPERATIONS.get(str(node.op_type))
        if write is None:
            raise _Unlike
        return write(self._size(one, depth + 1), self._size(other, depth + 1))

    def _made(self, value: ir.Value | None) -> ir.Node:
        node = None if value is None else value.producer()
        if node is None:
            raise _Unlike
        self.read.add(node)
        return node

    def _operands(self, node: ir.Node, op: str, count: int) -> list[ir.Value]:
        """Return the operands of a node of an operator, which has no attributes but the type it casts to."""
        given = [value for value in node.inputs if value is not None]
        if not _is(node, op) or len(given) != len(node.inputs) or len(given) != count:
            raise _Unlike
        if op == "Cast":
            if node.attributes["to"].as_int() != ir.DataType.INT64:
                raise _Unlike
        elif node.attributes:
            raise _Unlike
        return given


def _is(node: ir.Node, op: str) -> bool:
    return node.op_type == op and node.domain in ("", "ai.onnx")


def _number(value: ir.Value) -> int | None:
    """Return the element of a constant tensor of one integer, None if it is none."""
    known = value.const_value
    if known is None or not value.is_initializer() or known.dtype != ir.DataType.INT64 or list(known.shape) != [1]:
        return None
    return int(known.numpy()[0])
