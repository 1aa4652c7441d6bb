"""Tries out how a call is written: a short form that does not do what the operator does gives way to the full name."""

from __future__ import annotations

import builtins
import math
import operator
from types import CodeType, SimpleNamespace

import torch
import torch.nn.functional as F

from archir.emit.allowed_names import BUILTINS
from archir.emit.arguments import full_name
from archir.emit.code import Code, plain
from archir.emit.expressions import expression
from archir.emit.vocabulary import Vocabulary
from archir.ir.graph import Graph
from archir.ir.inputs import symbol_sizes
from archir.ir.node import Node, Value
from archir.ir.types import TensorType, Type, evaluate

BATCH = 12
"""Size of the first dynamic axis on trial: a multiple of what batches are commonly divided by."""


class Trial:
    """Knows which calls of a graph their short form says."""

    def __init__(self, graph: Graph) -> None:
        """Prepare for the calls of a graph."""
        self._graph = graph
        self._sizes = symbol_sizes(graph, BATCH)
        self._vocabulary = Vocabulary(graph)
        self._known: dict[tuple[object, ...], bool] = {}

    def holds(self, node: Node) -> bool:
        """Say whether the short form of a call does on tensors without data what its full name does.

        Both have to give results of the same types, or both none: an operator that cannot run on such tensors keeps
        its form.
        """
        say = _Operands()
        full, short = (plain(write(node, say).text) for write in (full_name, expression))
        if short == full:
            return True
        types = tuple(self._graph.type_of(v) for v in say.values)
        key = (short, full, types)
        if key not in self._known:
            self._known[key] = self._outcome(short, types) == self._outcome(full, types)
        return self._known[key]

    def _outcome(self, text: str, types: tuple[Type, ...]) -> object:
        names = {f"a{i}": self._made(type_) for i, type_ in enumerate(types)}
        try:
            tree = self._vocabulary.expression(text, names)
            found = _result(compile(tree, "<call>", "eval"), names)
        except Exception:  # whatever a form that does not fit raises, a syntax error included
            return None
        return found

    def _made(self, type_: Type) -> object:
        """Return an operand of a type, None where its size is not known."""
        try:
            if isinstance(type_, TensorType):
                shape = type_.at(self._sizes)
                return torch.empty(shape, dtype=type_.dtype, device="meta")
            return None if type_.value is None else evaluate(type_.value, self._sizes)
        except KeyError:
            return None


class _Operands:
    """Names the operands of one call `a0`, `a1`, ..."""

    def __init__(self) -> None:
        self.values: dict[Value, str] = {}

    def value(self, value: Value, near: Node) -> Code:
        return Code(self.values.setdefault(value, f"a{len(self.values)}"))

    def device(self, node: Node) -> str:
        return 'torch.device("meta")'

    def training(self, node: Node) -> str:
        return "self.training"


def _result(code: CodeType, names: dict[str, object]) -> object:
    scope = {"torch": torch, "F": F, "math": math, "operator": operator}
    scope |= {name: getattr(builtins, name) for name in BUILTINS}
    training = SimpleNamespace(training=False)
    with torch.no_grad():
        found = eval(code, {"__builtins__": {}, **scope, **names, "self": training})
    return _shape(found)


def _shape(found: object) -> object:
    if isinstance(found, torch.Tensor):
        return found.dtype, tuple(found.shape)
    return tuple(map(_shape, found)) if isinstance(found, tuple | list) else found
