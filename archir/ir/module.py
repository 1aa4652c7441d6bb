"""Lowers a graph to a live nn.Module: the one place where graphs become modules.

The module is a tree of layers of `torch.nn` and of modules that call them, under the original names. Their forwards are
compiled from the syntax trees that `archir.ir.forwards` writes. Operators that behave differently in training read the
`training` flag of the module they came from when they run.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from archir.errors import GraphError
from archir.ir.data import GraphData
from archir.ir.forwards import Forward
from archir.ir.function import place
from archir.ir.lowering import Lowered, lower
from archir.ir.module_tree import modes
from archir.ir.node import Node, Signature
from archir.ir.structure import structure_of

LOWERED = "archir lowering of "
"""How the name of the file begins that the forwards of a graph's module say they are from."""


def to_module(graph: GraphData) -> nn.Module:
    """Return a live module that computes what the graph says.

    State-dict keys are the original ones; tied tensors are one `nn.Parameter` under all their names. Calls that a layer
    of `torch.nn` makes are calls of such a layer; modules whose calls stand together have a forward of their own, and
    all others hold tensors and flags only. The module owns copies of the graph's tensors, is in the modes that the
    signature says (training mode if nothing), and may be moved, cast, trained, hooked, wrapped, compiled, copied,
    pickled and captured.
    Tensors made from nothing (`zeros`, `arange`) follow the device of the first parameter, and element types equal
    to that of the first floating-point parameter follow its element type: of those in the module they are made in.

    Raises:
        GraphError: an operator is not there in this process, or a parameter that is trained holds integers.
    """
    program = Program(graph.name, graph.nodes, graph.signature)
    modules = program.modules(lower(graph))
    _fill(modules, graph)
    for path, training in modes(modules, graph.signature.mode_changes).items():
        modules[path].training = training
    return modules[""]


class Program:
    """What the modules of a graph are made of, all its nodes; its modules share it, in copies and pickles too."""

    def __init__(self, name: str, nodes: tuple[Node, ...], signature: Signature) -> None:
        """Keep what a graph says, without its tensors."""
        self._name, self._nodes, self._signature = name, nodes, signature
        self._known: dict[str, type[nn.Module]] = {}

    def modules(self, lowered: Lowered) -> dict[str, nn.Module]:
        """Return new modules by their paths, each in the one it stands in; their tensors are yet to be set.

        Args:
            lowered: what they are made of.
        """
        found: dict[str, nn.Module] = {}
        for path in lowered.tree.children:
            if path in lowered.layers:
                found[path] = lowered.layers[path].layer()
            elif path in lowered.sequences:
                found[path] = nn.Sequential()
            elif path in lowered.forwards:
                found[path] = self._class(path, lowered)()
            else:
                found[path] = nn.ModuleList() if path in lowered.tree.lists else nn.Module()
        found |= {path: found[first] for path, first in lowered.shared.items()}
        for path, names in lowered.tree.children.items():
            for name in names:
                found[path].add_module(name, found[f"{path}.{name}" if path else name])
        return found

    def type_at(self, path: str) -> type[nn.Module]:
        """Return the class of the module with a forward at a path."""
        if path not in self._known:
            graph = GraphData(self._name, structure_of(self._nodes), {}, self._signature)
            lowered = lower(graph)
            for each in lowered.forwards:
                self._class(each, lowered)
        return self._known[path]

    def _class(self, path: str, lowered: Lowered) -> type[nn.Module]:
        forward = lowered.forwards[path]
        kind = forward.kind.rpartition(".")[2]
        base = nn.ModuleList if path in lowered.tree.lists else nn.Module
        name = self._name if not path else kind if kind.isidentifier() else base.__name__

        def reduce(module: nn.Module) -> tuple[Any, ...]:
            return _new, (self, path), module.__getstate__()  # type: ignore[no-untyped-call]

        members = {"forward": _compiled(forward, self._name, path), "__reduce__": reduce, "__module__": __name__}
        self._known[path] = type(name, (base,), members)
        return self._known[path]

    def __deepcopy__(self, memo: object) -> Program:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # What nodes keep beside their fields would be pickled, too.
        fields = (
            (n.id, n.op, dict(n.arguments), n.results, n.name, n.parameter, n.location, n.born) for n in self._nodes
        )
        return _read, (self._name, tuple(fields), self._signature)


def _read(name: str, nodes: tuple[tuple[Any, ...], ...], signature: Signature) -> Program:
    """Return a program that was pickled."""
    return Program(name, tuple(Node(*fields) for fields in nodes), signature)


def _new(program: Program, path: str) -> nn.Module:
    """Return a module of a program without anything in it, as pickle makes objects."""
    kind = program.type_at(path)
    return kind.__new__(kind)


def _compiled(forward: Forward, name: str, path: str) -> Callable[..., Any]:
    source = Source(forward.tree, path)
    file = f"{LOWERED}{name}" + (f", {path}" if path else "")
    scope: dict[str, Any] = {"__name__": __name__, "__loader__": source}
    exec(compile(_closed(forward), file, "exec"), scope)
    found: Callable[..., Any] = scope["make"](**forward.scope)
    return found


def _closed(forward: Forward) -> ast.Module:
    """Return a function that returns `forward`, with what its global names stand for as a closure.

    PyTorch looks for globals in the module a function says it is from, and finds none of these there.
    """
    known = ast.arguments([], [ast.arg(name) for name in forward.scope], None, [], [], None, [])
    returned = ast.Return(ast.Name("forward", ast.Load()))
    for part in (known, returned):
        place(part, 1)
    body = [*forward.tree.body, returned]
    maker = ast.FunctionDef("make", known, body, decorator_list=[], lineno=1, col_offset=0)
    return ast.Module([maker], type_ignores=[])


@dataclass(frozen=True, slots=True)
class Source:
    """The generated source, where tracebacks and `inspect` look for it; it is written when it is asked for.

    Attributes:
        tree: the module of the syntax tree.
        path: path of the module whose forward it is.
    """

    tree: ast.Module
    path: str

    @property
    def text(self) -> str:
        """The text, a statement a line."""
        return ast.unparse(self.tree)

    def line(self, number: int) -> str:
        """Return a line, with the path of the module."""
        return f"{self.path}: ".removeprefix(": ") + self.text.splitlines()[number - 1].strip()

    def get_source(self, name: str) -> str:
        """Return it, as `linecache` and `inspect` ask for it."""
        return self.text


def _fill(modules: Mapping[str, nn.Module], graph: GraphData) -> None:
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
            owner = modules[path]
            if field in owner._parameters or field in owner._buffers:
                setattr(owner, field, stored)  # so that layers that keep lists of their tensors notice
            elif isinstance(stored, nn.Parameter):
                owner.register_parameter(field, stored)
            else:
                owner.register_buffer(field, stored, persistent=node.parameter.persistent)
