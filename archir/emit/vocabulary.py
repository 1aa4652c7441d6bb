"""The closed vocabulary of emitted source: whatever else stands in a draft keeps it from being written or run.

Names and strings of a program come from files of strangers. They are quoted where they become source; that none of
them became code all the same is checked here, on the syntax tree. A node of it that is not listed is an error.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator

import torch

from archir.emit.expressions import FUNCTIONAL, INFIX, METHODS, TORCH
from archir.emit.layers import LAYERS
from archir.emit.stock import KINDS
from archir.errors import EmitError
from archir.ir.graph import Graph

IMPORTS = frozenset(
    {
        "import math",
        "import operator",
        "import torch",
        "import torch.nn.functional as F",
        "from pathlib import Path",
        "from safetensors.torch import load_file",
        "from torch import Tensor",
        "from torch import nn",
        "from torch import Tensor, nn",
    }
)
SIZES = frozenset(
    {name for name in INFIX if name.startswith("operator.")}
    | {f"operator.{name}" for name in ("neg", "pos", "abs", "and_", "or_", "xor", "not_", "invert")}
    | {f"math.{name}" for name in ("ceil", "floor", "trunc", "sqrt", "prod", "log", "log2", "exp", "fabs")}
    | {f"torch.sym_{name}" for name in ("float", "int", "ite", "max", "min", "not", "sum")}
    | {"torch._sym_sqrt"}
)
"""Functions for numbers that follow from shapes."""

_CONSTANTS = frozenset(
    name for name, v in vars(torch).items() if isinstance(v, torch.dtype | torch.layout | torch.memory_format)
)
_CONTAINERS = ("Identity", "Module", "ModuleDict", "ModuleList", "Parameter", "ParameterList", "Sequential")
_BUILTINS = frozenset({"complex", "float", "len", "range"})
_EXTREMES = frozenset({"max", "min"})
_TYPES = frozenset({"Tensor", "dict", "int", "list", "object", "tuple"})
_OWN = frozenset({"add_module", "get_buffer", "get_parameter", "get_submodule", "register_buffer"})
_MODULE = _OWN | {"register_parameter", "training"}
"""What is asked of modules, besides what the program stores in them."""

_LOADING = frozenset({"copy_", "eval", "get_buffer", "load_state_dict", "pop", "with_suffix"})
_LIBRARIES = frozenset({"torch", "nn", "F", "math", "operator"})
_RESERVED = _LIBRARIES | _BUILTINS | {"super"}
"""Names no variable takes."""

_FILE = _TYPES | {"Path", "load", "load_file"}
"""Names no class takes either."""

_WORDS = frozenset(
    {f"torch.{name}" for name in TORCH | _CONSTANTS}
    | {f"F.{name}" for name in FUNCTIONAL}
    | {f"nn.{name}" for name in (*_CONTAINERS, *KINDS, *(kind for kind, _ in LAYERS.values()))}
    | SIZES
)
"""What is taken from libraries, besides the operators of the program under their full names."""

_PLAIN = (
    *(ast.BinOp, ast.UnaryOp, ast.Compare, ast.IfExp, ast.Slice, ast.Tuple, ast.List, ast.Dict, ast.keyword),
    *(ast.operator, ast.unaryop, ast.cmpop, ast.expr_context, ast.Return, ast.If, ast.Assert, ast.Pass, ast.Expr),
)
"""What is allowed wherever all of its parts are."""


class Vocabulary:
    """What the source of one program may say."""

    def __init__(self, graph: Graph) -> None:
        """Collect the operators of a graph and the names in it.

        Args:
            graph: the program.
        """
        self._ops = {n.op for n in graph.calls}
        self._parts = {part for name in graph.by_name for part in name.split(".")}

    def expression(self, text: str, names: Collection[str]) -> ast.Expression:
        """Return the syntax tree of an expression in given variables.

        Raises:
            EmitError: it says something else.
            SyntaxError: it is not an expression.
        """
        tree = ast.parse(text, mode="eval")
        reader = _Reader(self._ops, set(), frozenset(), {*names, "self"})
        reader.read(tree.body)
        reader.finish()
        return tree

    def program(self, text: str) -> None:
        """Check the source of a program.

        Raises:
            EmitError: it says something else, or is no Python; all violations at once.
        """
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError) as error:
            raise EmitError("the source would not be Python", why=str(error)) from error
        classes = frozenset(c.name for c in tree.body if isinstance(c, ast.ClassDef))
        stored = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
        attributes = self._parts | {n.attr for n in stored}
        reader = _Reader(self._ops, attributes, classes, set())
        for at, node in enumerate(tree.body):
            if at or not _is_text(node):
                reader.top(node)
        reader.finish()


class _Reader:
    """Reads one syntax tree and collects what it should not say."""

    def __init__(self, ops: Collection[str], attributes: set[str], classes: frozenset[str], scope: set[str]) -> None:
        self._ops, self._attributes, self._classes, self._scope = ops, attributes, classes, scope
        self._modules: set[str] = {"self"}
        self._loading = False
        self._problems: list[str] = []

    def finish(self) -> None:
        """Raise what was found."""
        if self._problems:
            raise EmitError("the source would say what no network needs", where="; ".join(self._problems))

    def _refuse(self, node: ast.AST) -> None:
        shown = " ".join(ast.unparse(node).split())
        line = f"line {node.lineno}: " if hasattr(node, "lineno") else ""
        self._problems.append(f"{line}{type(node).__name__} {shown[:80]}")

    # statements

    def top(self, node: ast.stmt) -> None:
        """Read a statement of the file."""
        match node:
            case ast.Import() | ast.ImportFrom() if ast.unparse(node) in IMPORTS:
                return
            case ast.ClassDef(bases=[base], keywords=[], decorator_list=[]) if ast.unparse(base) in (
                "nn.Module",
                "nn.Sequential",
            ) and node.name not in _RESERVED | _TYPES | {"Path", "load", "load_file"}:
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and inner.name in ("__init__", "forward"):
                        self._function(inner)
                    elif not isinstance(inner, ast.Pass) and not _is_text(inner):
                        self._refuse(inner)
            case ast.FunctionDef(name="load"):
                self._loading = True
                self._function(node)
                self._loading = False
            case _:
                self._refuse(node)

    def _function(self, node: ast.FunctionDef) -> None:
        given = node.args
        arguments = [*given.args, *([given.kwarg] if given.kwarg else [])]
        if given.posonlyargs or given.kwonlyargs or given.vararg or node.decorator_list or _typed(node):
            self._refuse(node)
        names = [a.arg for a in arguments]
        bound = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        if (
            ({*names, *bound} & (_RESERVED | self._classes)) - {"_"}
            or "self" in bound
            or ((names[:1] == ["self"]) == self._loading)
        ):
            self._refuse(node)
        for annotation in [*(a.annotation for a in arguments), node.returns]:
            if annotation is not None:
                self._annotation(annotation)
        for default in given.defaults:
            self.read(default)
        self._scope, self._modules = {*names, *bound}, {"self"} - ({"self"} if self._loading else set())
        for at, inner in enumerate(node.body):
            if at or not _is_text(inner):
                self.read(inner)

    def _annotation(self, node: ast.expr) -> None:
        match node:
            case ast.Constant(value=None):
                return
            case ast.Name(id=name) if name in _TYPES | self._classes:
                return
            case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[ast.Name(id="Tensor"), rest])):
                if isinstance(rest, ast.Constant) and rest.value is ...:
                    return
            case ast.Subscript(value=ast.Name(id="list"), slice=ast.Name(id="Tensor")):
                return
        self._refuse(node)

    def read(self, node: ast.AST) -> None:
        """Read a statement or an expression of a function."""
        match node:
            case ast.Assign(targets=[target], value=value):
                self._target(target)
                self.read(value)
            case ast.For(target=ast.Name(id=name), iter=over, orelse=[]):
                self.read(over)
                if self._is_module(over):
                    self._modules.add(name)
                self._all(node.body)
            case ast.Constant(value=value):
                if not isinstance(value, str | int | float | complex | None):
                    self._refuse(node)
            case ast.Name(id=name):
                if name not in self._scope and not (self._loading and name == "__file__"):
                    self._refuse(node)
            case ast.Attribute():
                self._attribute(node)
            case ast.Subscript(value=value, slice=place):
                self._all([value, place])
            case ast.Call(func=func):
                self._called(node, func)
                self._all([*node.args, *node.keywords])
            case ast.Raise(
                exc=ast.Call(func=ast.Name(id="ValueError"), args=[ast.Constant()], keywords=[]), cause=None
            ):
                return
            case ast.Starred(value=ast.GeneratorExp()):
                self.read(node.value)
            case ast.GeneratorExp(elt=each, generators=[ast.comprehension(target=ast.Name(id="_"), iter=over, ifs=[])]):
                self._all([each, over])
            case _ if isinstance(node, _PLAIN) and not (isinstance(node, ast.keyword) and node.arg is None):
                self._all(ast.iter_child_nodes(node))
            case _:
                self._refuse(node)

    def _all(self, nodes: Collection[ast.AST] | Iterator[ast.AST]) -> None:
        for node in nodes:
            self.read(node)

    def _target(self, node: ast.expr) -> None:
        match node:
            case ast.Name():
                return
            case ast.Tuple(elts=parts):
                for part in parts:
                    self._target(part)
            case ast.Attribute(value=owner, attr=name) if self._is_module(owner) and not name.startswith("__"):
                self.read(owner)
            case ast.Subscript(value=ast.Name(id="state"), slice=ast.Constant()) if self._loading:
                return
            case _:
                self._refuse(node)

    # names

    def _is_module(self, node: ast.expr) -> bool:
        """Whether an expression is a module, or something stored in one."""
        match node:
            case ast.Name(id=name):
                return name in self._modules
            case ast.Attribute(value=owner) | ast.Subscript(value=owner):
                return self._is_module(owner)
            case ast.Call(func=ast.Attribute(value=owner, attr="get_submodule")):
                return self._is_module(owner)
        return False

    def _attribute(self, node: ast.Attribute) -> None:
        name = _dotted(node)
        if name is not None and name.partition(".")[0] in _LIBRARIES:
            if name not in _WORDS and not (name.startswith("torch.ops.") and name[10:] in self._ops):
                self._refuse(node)
            return
        allowed = METHODS | (_LOADING if self._loading else set())
        if self._is_module(node.value):
            allowed |= _MODULE | self._attributes
        if node.attr not in allowed or node.attr.startswith("__"):
            self._refuse(node)
        self.read(node.value)

    def _called(self, node: ast.Call, func: ast.expr) -> None:
        match func:
            case ast.Name(id=name):
                loading = {"Path", "load_file"} if self._loading else set()
                if name not in self._classes | _BUILTINS | _EXTREMES | loading and name not in self._modules - {"self"}:
                    self._refuse(node)
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super"), args=[], keywords=[]), attr="__init__"):
                return
            case ast.Attribute():
                self._attribute(func)
            case _ if self._is_module(func):
                self.read(func)
            case _:
                self._refuse(node)


def _dotted(node: ast.expr) -> str | None:
    """Return `torch.ops.aten.add.Tensor` for a chain of attributes of a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _typed(node: ast.FunctionDef) -> bool:
    return bool(getattr(node, "type_params", ()))
