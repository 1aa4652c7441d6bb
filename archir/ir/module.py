"""Lowers a graph to a live nn.Module: the one place where graphs become modules.

The module is a tree of plain modules under the original names that holds the tensors; its `forward` is compiled from
the syntax tree that `archir.ir.lowering` writes. Operators that behave differently in training read the `training`
flag of the module they came from when they run.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from torch import nn

from archir.errors import GraphError
from archir.ir.data import GraphData
from archir.ir.execute import mode_argument
from archir.ir.lowering import Lowered, lower, place

LOWERED = "archir lowering of "
"""How the name of the file begins that the forward of a graph's module says it is from."""


def to_module(graph: GraphData) -> nn.Module:
    """Return a live module that computes what the graph says.

    State-dict keys are the original ones; tied tensors are one `nn.Parameter` under all their names.
    The module owns copies of the graph's tensors, starts in training mode as every nn.Module does, and may be
    moved, cast, trained, compiled, copied and captured again. Tensors made from nothing (`zeros`, `arange`)
    follow the device of the first parameter, and element types equal to that of the first floating-point
    parameter follow its element type. Submodules hold tensors and flags only: forward hooks belong on the root.

    Raises:
        GraphError: an operator is not there in this process, or a parameter that is trained holds integers.
    """
    lowered = lower(graph)
    name = f"{LOWERED}{graph.name}"
    source = Source(lowered.tree)
    scope: dict[str, Any] = {"__name__": __name__, "__loader__": source}
    exec(compile(_closed(lowered), name, "exec"), scope)
    root: nn.Module = type(
        graph.name, (nn.Module,), {"forward": scope["make"](**lowered.scope), "__module__": __name__}
    )()
    _fill(root, graph)
    return root


def _closed(lowered: Lowered) -> ast.Module:
    """Return a function that returns `forward`, with what its global names stand for as a closure.

    PyTorch looks for globals in the module a function says it is from, and finds none of these there.
    """
    known = ast.arguments([], [ast.arg(name) for name in lowered.scope], None, [], [], None, [])
    returned = ast.Return(ast.Name("forward", ast.Load()))
    for part in (known, returned):
        place(part, 1)
    body = [*lowered.tree.body, returned]
    maker = ast.FunctionDef("make", known, body, decorator_list=[], lineno=1, col_offset=0)
    return ast.Module([maker], type_ignores=[])


@dataclass(frozen=True, slots=True)
class Source:
    """The generated source, where tracebacks and `inspect` look for it; it is written when it is asked for."""

    tree: ast.Module

    @property
    def text(self) -> str:
        """The text, a statement a line."""
        return ast.unparse(self.tree)

    def get_source(self, name: str) -> str:
        """Return it, as `linecache` and `inspect` ask for it."""
        return self.text


def _fill(root: nn.Module, graph: GraphData) -> None:
    for node in graph.parameters:
        assert node.parameter is not None
        tensor = graph.tensors[node.id].detach().clone()
        trainable = node.parameter.kind == "parameter"
        if trainable and node.parameter.trainable and not (tensor.is_floating_point() or tensor.is_complex()):
            what = f"@{node.parameter.names[0]} cannot be trained"
            raise GraphError(what, why=f"it holds {tensor.dtype}, and gradients are real", hint="write frozen param")
        stored = nn.Parameter(tensor, requires_grad=node.parameter.trainable) if trainable else tensor
        for name in node.parameter.names:
            path, _, field = name.rpartition(".")
            owner = _container(root, path)
            if isinstance(stored, nn.Parameter):
                owner.register_parameter(field, stored)
            else:
                owner.register_buffer(field, stored, persistent=node.parameter.persistent)
    for node in graph.calls:
        if mode_argument(node) is not None:
            _container(root, node.location.module if node.location else "")


def _container(root: nn.Module, path: str) -> nn.Module:
    for field in filter(None, path.split(".")):
        if field not in root._modules:
            root.add_module(field, nn.Module())
        root = root.get_submodule(field)
    return root
