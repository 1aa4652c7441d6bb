"""Lowers a graph to a live nn.Module: the one place where graphs become modules.

The module is a tree of plain modules under the original names that holds the tensors; its `forward` is compiled from
the syntax tree that `archir.ir.lowering` writes. Operators that behave differently in training read the `training`
flag of the module they came from when they run.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from archir.ir.execute import mode_argument
from archir.ir.lowering import lower

if TYPE_CHECKING:
    from archir.ir.graph import Graph


LOWERED = "archir lowering of "
"""How the name of the file begins that the forward of a graph's module says it is from."""


def to_module(graph: Graph) -> nn.Module:
    """Return a live module that computes what the graph says.

    State-dict keys are the original ones; tied tensors are one `nn.Parameter` under all their names.
    The module owns copies of the graph's tensors, starts in training mode as every nn.Module does, and may be
    moved, cast, trained, compiled, copied and captured again. Tensors made from nothing (`zeros`, `arange`)
    follow the device of the first parameter, and element types equal to that of the first floating-point
    parameter follow its element type. Submodules hold tensors and flags only: forward hooks belong on the root.

    Raises:
        GraphError: an operator is not there in this process.
    """
    lowered = lower(graph)
    name = f"{LOWERED}{graph.name}"
    source = Source(ast.unparse(lowered.tree))
    scope: dict[str, Any] = {**lowered.scope, "__name__": f"archir.lowered.{graph.name}", "__loader__": source}
    exec(compile(lowered.tree, name, "exec"), scope)
    root: nn.Module = type(graph.name, (nn.Module,), {"forward": scope["forward"], "__module__": __name__})()
    _fill(root, graph)
    return root


@dataclass(frozen=True, slots=True)
class Source:
    """The generated source, where tracebacks and `inspect` look for it."""

    text: str

    def get_source(self, name: str) -> str:
        """Return it, as `linecache` and `inspect` ask for it."""
        return self.text


def _fill(root: nn.Module, graph: Graph) -> None:
    for node in graph.parameters:
        assert node.parameter is not None
        tensor = graph.tensors[node.id].detach().clone()
        trainable = node.parameter.kind == "parameter"
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
