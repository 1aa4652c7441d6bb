"""Reads the syntax tree of a draft and collects what is not in the vocabulary of its program."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from archir.emit.allowed_names import (
    BUILTINS,
    CALLED,
    CONSTANTS,
    IMPORTS,
    LIBRARIES,
    REGISTERS,
    REPEATING,
    RESERVED,
    TEXTS,
    TYPES,
    text_arguments,
)
from archir.emit.code import LABEL
from archir.emit.expressions import METHODS
from archir.emit.places import Places
from archir.emit.syntax_forms import dotted, has_type_parameters, is_range, is_text
from archir.errors import EmitError

_PLAIN = (
    *(ast.BinOp, ast.UnaryOp, ast.Compare, ast.IfExp, ast.Slice, ast.operator, ast.unaryop, ast.cmpop),
    *(ast.expr_context, ast.If, ast.Pass, ast.Expr),
)
"""What is allowed wherever all of its parts are."""


@dataclass(frozen=True)
class Known:
    """What the source of one program may say besides the words of every program.

    Attributes:
        ops: its operators, as `torch.ops.aten.relu.default`.
        places: its modules and stored tensors.
        tensors: the names of the latter.
        texts: its texts.
    """

    ops: frozenset[str]
    places: Places
    tensors: frozenset[str]
    texts: frozenset[str]


class Reader:
    """Reads one syntax tree and collects what it should not say."""

    def __init__(self, known: Known, classes: frozenset[str], scope: Iterable[str]) -> None:
        """Begin outside of any function, with given variables."""
        self._known, self._places, self._classes = known, known.places, classes
        self._scope = set(scope)
        self._modules: dict[str, str | None] = {"self": ""}
        self._making = False
        self._problems: list[str] = []

    def finish(self) -> None:
        """Raise what was found."""
        if self._problems:
            raise EmitError("the source would say what no network needs", where="; ".join(self._problems))

    def _refuse(self, node: ast.AST) -> None:
        shown = " ".join(ast.unparse(node).split())
        line = f"line {node.lineno}: " if hasattr(node, "lineno") else ""
        self._problems.append(f"{line}{type(node).__name__} {shown[:80]}")

    # statements of the file

    def top(self, node: ast.stmt) -> None:
        """Read a statement of the file."""
        match node:
            case ast.Import() | ast.ImportFrom() if ast.unparse(node) in IMPORTS:
                return
            case ast.ClassDef(name=name, bases=[base], keywords=[], decorator_list=[], body=body) if (
                ast.unparse(base) in ("nn.Module", "nn.Sequential") and _is_free(name) and not has_type_parameters(node)
            ):
                for inner in body:
                    if isinstance(inner, ast.FunctionDef) and inner.name in ("__init__", "forward"):
                        self._function(inner)
                    elif not isinstance(inner, ast.Pass):
                        self._refuse(inner)
            case ast.FunctionDef(name="load", decorator_list=[], returns=ast.Name(id=root)) if (
                root in self._classes and ast.unparse(node.args) == "" and not has_type_parameters(node)
            ):
                for at, inner in enumerate(node.body):
                    if at or not is_text(inner):
                        self._load(inner)
            case _:
                self._refuse(node)

    def _load(self, node: ast.stmt) -> None:
        """Read a statement of the function that loads."""
        stored = self._known.tensors
        match node:
            case ast.Assign(targets=[ast.Name(id="net")], value=ast.Call(func=ast.Name(id=name), args=[], keywords=[])):
                fits = name in self._classes
            case ast.Assign(
                targets=[ast.Subscript(value=ast.Name(id="state"), slice=ast.Constant(value=one))],
                value=ast.Subscript(value=ast.Name(id="state"), slice=ast.Constant(value=other)),
            ):
                fits = {one, other} <= stored
            case ast.For(target=ast.Name(id="name"), iter=ast.List(elts=names), body=[inner], orelse=[]):
                fits = all(isinstance(n, ast.Constant) and n.value in stored for n in names)
                fits &= ast.unparse(inner) == "net.get_buffer(name).copy_(state.pop(name))"
            case _:
                fits = ast.unparse(node) in (
                    "state = load_file(Path(__file__).with_suffix('.safetensors'))",
                    "net.load_state_dict(state)",
                    "return net.eval()",
                )
        if not fits:
            self._refuse(node)

    def _function(self, node: ast.FunctionDef) -> None:
        given = node.args
        arguments = [*given.args, *([given.kwarg] if given.kwarg else [])]
        if given.posonlyargs or given.kwonlyargs or given.vararg or node.decorator_list or has_type_parameters(node):
            self._refuse(node)
        names = [a.arg for a in arguments]
        bound = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        taken = {n for n in {*names[1:], *bound} if n in RESERVED | self._classes | {"self"} or n.startswith("__")}
        if taken or names[:1] != ["self"]:
            self._refuse(node)
        for annotation in [*(a.annotation for a in arguments), node.returns]:
            if annotation is not None:
                self._annotation(annotation)
        for default in given.defaults:
            self._default(default)
        targets = (t for n in ast.walk(node) if isinstance(n, ast.Assign) for t in n.targets)
        assigned = {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        self._scope, self._making = {*names[1:], *(assigned & bound)}, node.name == "__init__"
        self._modules = {"self": ""}
        for inner in node.body:
            self.read(inner)

    def _annotation(self, node: ast.expr) -> None:
        match node:
            case ast.Constant(value=None):
                return
            case ast.Name(id=name) if name in TYPES:
                return
            case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[ast.Name(id="Tensor"), rest])):
                if isinstance(rest, ast.Constant) and rest.value is ...:
                    return
            case ast.Subscript(value=ast.Name(id="list"), slice=ast.Name(id="Tensor")):
                return
        self._refuse(node)

    def _default(self, node: ast.expr) -> None:
        """Read a default, which is evaluated when the file is loaded."""
        match node:
            case ast.Constant():
                self._constant(node, text=True)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() | complex())):
                return
            case _ if ast.unparse(node) in ("float('inf')", "float('-inf')", "float('nan')"):
                return
            case _:
                self._refuse(node)

    # statements of a function

    def read(self, node: ast.AST, *, text: bool = False) -> None:
        """Read a statement or an expression of a function; `text` says that it may be a text of the program."""
        match node:
            case ast.Assign(targets=[target], value=value):
                self._target(target, value)
                self.read(value)
            case ast.For(target=ast.Name(id=name), iter=over, body=body, orelse=[]) if name not in self._scope:
                self._loop(name, over)
                self._all(body)
                self._modules.pop(name, None)
                self._scope.discard(name)
            case ast.Raise(
                exc=ast.Call(func=ast.Name(id="ValueError"), args=[ast.Constant()], keywords=[]), cause=None
            ):
                return
            case ast.Assert(test=ast.Compare(left=left, ops=[_], comparators=[right]), msg=None):
                self.read(left)
                self.read(right, text=True)
            case ast.Return(value=ast.expr() as value):
                self.read(value, text=True)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                for part in parts:
                    self.read(part, text=text)
            case ast.Dict(keys=keys, values=values) if text and None not in keys:
                for entry in (*keys, *values):
                    assert entry is not None
                    self.read(entry, text=True)
            case ast.Constant():
                self._constant(node, text=text)
            case ast.Name(id=name):
                if name not in self._scope:
                    self._refuse(node)
            case ast.Attribute():
                self._attribute(node)
            case ast.Subscript():
                self._subscript(node)
            case ast.Call():
                self._call(node)
            case _ if isinstance(node, _PLAIN):
                self._all(ast.iter_child_nodes(node))
            case _:
                self._refuse(node)

    def _all(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self.read(node)

    def _constant(self, node: ast.Constant, *, text: bool) -> None:
        known = text and node.value in self._known.texts if isinstance(node.value, str) else False
        if not known and (isinstance(node.value, str) or not isinstance(node.value, int | float | complex | None)):
            self._refuse(node)

    def _loop(self, name: str, over: ast.expr) -> None:
        if is_range(over):
            self._scope.add(name)
            return
        place = self._place(over)
        part = self._places.below(place, "0") if place else None
        if part is None:
            self._refuse(over)
        self._modules[name] = part

    def _target(self, node: ast.expr, value: ast.expr) -> None:
        match node:
            case ast.Name():
                return
            case ast.Tuple(elts=parts):
                for part in parts:
                    self._target(part, value)
            case ast.Attribute(value=ast.Name(id="self"), attr=name) if self._making and LABEL.fullmatch(name):
                if not isinstance(value, ast.Name) and self._place(node) is None:
                    self._refuse(node)
            case ast.Attribute() if self._making and self._place(node) is not None:
                return
            case _:
                self._refuse(node)

    # names

    def _place(self, node: ast.expr) -> str | None:
        """Return where an expression stands among the modules and tensors of the program, None if nowhere."""
        match node:
            case ast.Name(id=name):
                return self._modules.get(name)
            case ast.Attribute(value=owner, attr=name):
                return self._places.below(self._place(owner), name)
            case ast.Subscript(value=owner, slice=ast.Constant(value=int())):
                return self._places.below(self._place(owner), "0")
            case ast.Subscript(value=owner, slice=ast.Name(id=name)) if name in self._scope:
                return self._places.below(self._place(owner), "0")
            case ast.Subscript(value=owner, slice=ast.Constant(value=str(name))) if "." not in name:
                return self._places.below(self._place(owner), name)
            case ast.Subscript(value=owner, slice=ast.Slice(lower=None, upper=ast.Constant(), step=None)):
                return found if self._places.is_module(found := self._place(owner)) else None
            case ast.Call(
                func=ast.Attribute(value=owner, attr="get_submodule"), args=[ast.Constant(value=str(path))], keywords=[]
            ):
                found = self._places.below(self._place(owner), path)
                return found if self._places.is_module(found) else None
            case ast.Call(
                func=ast.Attribute(value=owner, attr="get_parameter" | "get_buffer"),
                args=[ast.Constant(value=str(path))],
                keywords=[],
            ):
                found = self._places.below(self._place(owner), path)
                return found if self._places.is_tensor(found) else None
        return None

    def _attribute(self, node: ast.Attribute) -> None:
        name = dotted(node)
        if name in CONSTANTS or self._places.is_tensor(self._place(node)):
            return
        owner = self._place(node.value)
        if owner is None or self._places.is_tensor(owner):
            if node.attr not in METHODS:
                self._refuse(node)
            elif owner is None:
                self.read(node.value)
        elif node.attr != "training" and not (owner == "" and LABEL.fullmatch(node.attr)):
            self._refuse(node)

    def _subscript(self, node: ast.Subscript) -> None:
        place = self._place(node)
        if place is not None and self._places.is_tensor(place):
            return
        self.read(node.value)
        self.read(node.slice, text=True)

    # calls

    def _call(self, node: ast.Call) -> None:
        func, place = node.func, self._place(node)
        if place is not None:  # get_parameter, get_buffer
            if not self._places.is_tensor(place):
                self._refuse(node)
            return
        name = dotted(func) or ""
        match func:
            case ast.Name():
                if name in self._classes or (name in BUILTINS and name not in self._scope):
                    self._arguments(node, TEXTS.get(name, ()))
                elif self._places.is_module(self._modules.get(name)) and name != "self":
                    self._arguments(node)
                else:
                    self._refuse(node)
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super"), args=[], keywords=[]), attr="__init__"):
                self._arguments(node) if self._making else self._refuse(node)
            case ast.Attribute() if name.partition(".")[0] in LIBRARIES:
                if name == "nn.ModuleDict":
                    self._dict(node)
                elif name in CALLED:
                    self._arguments(node, TEXTS.get(name, ()), repeating=name in REPEATING)
                elif name in self._known.ops:
                    self._arguments(node, text_arguments(name))
                else:
                    self._refuse(node)
            case _ if self._places.is_module(self._place(func)):
                self._arguments(node)
            case _ if self._place(func) is not None:
                self._refuse(node)
            case ast.Attribute(value=owner, attr=called) if called in REGISTERS:
                first, rest = node.args[:1], node.args[1:]
                path = first[0].value if first and isinstance(first[0], ast.Constant) else None
                inside = isinstance(path, str) and self._places.below(self._place(owner), path) is not None
                if not inside or not self._making:
                    self._refuse(node)
                self._all([*rest, *(k.value for k in node.keywords)])
            case ast.Attribute(attr=called):
                self._attribute(func)
                self._arguments(node, TEXTS.get(f".{called}", ()))
            case _:
                self._refuse(node)

    def _arguments(self, node: ast.Call, texts: Collection[int | str] = (), *, repeating: bool = False) -> None:
        for at, part in enumerate(node.args):
            inner = part.value if isinstance(part, ast.Starred) else part
            if repeating and isinstance(inner, ast.GeneratorExp) and len(node.args) == 1:
                self._repeated(inner)
            else:
                self.read(part, text=at in texts)
        for keyword in node.keywords:
            if keyword.arg is None:
                self._refuse(node)
            self.read(keyword.value, text=keyword.arg in texts)

    def _repeated(self, node: ast.GeneratorExp) -> None:
        match node:
            case ast.GeneratorExp(
                elt=each, generators=[ast.comprehension(target=ast.Name(id="_"), iter=over, ifs=[], is_async=0)]
            ) if is_range(over):
                self.read(each)
            case _:
                self._refuse(node)

    def _dict(self, node: ast.Call) -> None:
        match node:
            case ast.Call(args=[ast.Dict(keys=keys, values=values)], keywords=[]):
                for key, value in zip(keys, values, strict=True):
                    name = key.value if isinstance(key, ast.Constant) else None
                    if not isinstance(name, str) or self._places.below("", name) is None:
                        self._refuse(node)
                    self.read(value)
            case _:
                self._refuse(node)


def _is_free(name: str) -> bool:
    """Say whether a class may have a name: until it is made, the name stands for what Python or the file has."""
    taken = RESERVED | TYPES | {"Path", "load", "load_file", "self"}
    return name not in taken and not hasattr(builtins, name) and not name.startswith("__")
