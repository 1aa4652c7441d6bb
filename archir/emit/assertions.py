"""Makes an ONNX file fail for sizes its graph is not right for; ONNX itself has no assertions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from archir.emit.neutral import value_names
from archir.emit.signature import requirements
from archir.errors import EmitError
from archir.ir.graph import Graph
from archir.ir.guards import fold
from archir.ir.input_checks import Source, sources
from archir.ir.node import Value
from archir.ir.types import Size

_STEM = "archir_check"
"""How the names of what is added begin."""

_OPERATORS = {"+": "Add", "*": "Mul", "%": "Mod", "max": "Max", "min": "Min"}
_RELATIONS = {"==": "Equal", "!=": "Equal", "<=": "LessOrEqual", ">=": "GreaterOrEqual", "<": "Less", ">": "Greater"}


def assert_sizes(graph: Graph, model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Let a model state what the sizes of its inputs have to satisfy, and fail where they do not.

    Each condition becomes a lookup in a table of one element, named after the condition, whose index is out of range
    where it does not hold; what is looked up is added to the shape one of the inputs is given.

    Args:
        graph: the graph the model was made from.
        model: the model; changed in place.
        names: the names of its inputs.

    Raises:
        EmitError: the model does not read any of its inputs that have axes.
    """
    types = [node.results[0] for node in graph.inputs]
    by_value = {Value(node.id): name for node, name in zip(graph.inputs, names, strict=True)}
    checks = requirements(graph, by_value, static=False)
    if not checks:
        return
    told = "; ".join(check.text for check in checks)
    model.metadata_props.append(onnx.StringStringEntryProto(key="requires", value=told))
    model.doc_string = f"The network is for inputs with {told}."
    present = {value.name for value in model.graph.input}
    carrier = next((n for n in names if n in present and any(n in node.input for node in model.graph.node)), None)
    if carrier is None:
        raise EmitError(
            f"{graph.name} cannot be written as ONNX", why=f"no input is read that could tell whether {told}"
        )
    stem = _stem(value_names(model.graph))
    made = _Assertions(names, sources(types), stem)
    shape = made.node("Shape", [carrier])
    for check in checks:
        left = made.read(check.left) if isinstance(check.left, Source) else made.size(check.left)
        relation = made.node(_RELATIONS[check.relation], [left, made.size(check.right)])
        relation = made.node("Not", [relation]) if check.relation == "!=" else relation
        wrong = made.node("Cast", [made.node("Not", [relation])], to=TensorProto.INT64)
        zeros = made.node("Gather", [made.number(0), wrong], name=f"requires {check.text}")
        shape = made.node("Add", [shape, zeros])
    asserted = f"{stem}_input"
    for node in model.graph.node:
        node.input[:] = [asserted if name == carrier else name for name in node.input]
    made.nodes.append(helper.make_node("Reshape", [carrier, shape], [asserted], name=asserted))
    # Its shape is that of the input; a runtime that does not know this fuses and lays out less behind it.
    known = model.graph.value_info.add()
    known.CopyFrom(next(value for value in model.graph.input if value.name == carrier))
    known.name = asserted
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*made.nodes, *rest])
    model.graph.initializer.extend(made.constants)


def _stem(names: Iterable[str]) -> str:
    """Return how the names of all that is added begin: longer than usual where a name of the model begins so."""
    stem, taken = _STEM, tuple(names)
    while any(name.startswith(stem) for name in taken):
        stem += "_"
    return stem


class _Assertions:
    """The nodes made so far; every size is a tensor of one element."""

    def __init__(self, names: Sequence[str], found: Mapping[str, Source], stem: str) -> None:
        self._names, self._found, self._stem = names, found, stem
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        output = f"{self._stem}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name or output, **attributes))
        return output

    def number(self, value: int) -> str:
        name = f"{self._stem}_number_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array([value], np.int64), name))
        return name

    def size(self, size: Size) -> str:
        return fold(size, self._symbol, self.number, self._apply)

    def _symbol(self, name: str) -> str:
        return self.read(self._found[name])

    def read(self, read: Source) -> str:
        found = self._names[read.input]
        if read.axis is not None:
            found = self.node("Gather", [self.node("Shape", [found]), self.number(read.axis)])
        if read.offset:
            found = self.node("Sub", [found, self.number(read.offset)])
        return self._apply("//", [found, self.number(read.factor)]) if read.factor != 1 else found

    def _apply(self, operation: str, parts: Sequence[str]) -> str:
        if operation == "//":
            above, under = parts
            # Division of integers rounds towards zero, and a size is rounded down.
            return self.node("Div", [self.node("Sub", [above, self.node("Mod", [above, under])]), under])
        return reduce(lambda a, b: self.node(_OPERATORS[operation], [a, b]), parts)
