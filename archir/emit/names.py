"""Chooses names of variables and the source of paths to tensors and submodules."""

from __future__ import annotations

import re
from collections.abc import Collection

import torch
from torch import nn

from archir.emit.code import identifier, is_name, is_number, quoted
from archir.emit.scopes import Program
from archir.ir.node import INPUT, PARAMETER, Node, Value
from archir.ir.types import TensorType

RESERVED = frozenset(
    {"self", "super", "torch", "nn", "F", "math", "operator", "range", "float", "complex", "len", "max", "min", "round"}
)
"""Names an emitted function uses itself."""

_LAYERS = re.compile(r"(conv|fc|linear|lin|norm|bn|ln|dense|proj|layer|block|body|net|features|stem|head)_?\d*$")
_FRESH = {
    "aten.scaled_dot_product_attention": "attended",
    "aten.matmul": "product",
    "aten.bmm": "product",
    "aten.einsum": "product",
    "aten.outer": "product",
    "aten.cat": "joined",
    "aten.stack": "stacked",
}
"""Operators whose result is a new thing rather than the next stage of their first operand."""

_SEVERAL = {
    **{"lstm": "y h c", "gru": "y h", "sort": "values index", "topk": "values index", "var_mean": "var mean"},
    **{"max": "values index", "min": "values index"},
}
"""What the results of operators that have several are called."""

_HINTS = {"aten.arange": "index", "aten.sym_size": "size", "aten.softmax": "weights"}


class Tree:
    """The modules of a program as an attribute path reaches them."""

    def __init__(self, paths: Collection[str], fields: Collection[str], classes: Collection[str]) -> None:
        """Take the paths of all modules, the names of all tensors, and the paths of modules with a forward function."""
        owners: dict[str, dict[str, None]] = {}
        for path in paths:
            names = path.split(".") if path else []
            for i, name in enumerate(names):
                owners.setdefault(".".join(names[:i]), {}).setdefault(name)
        self.children = {path: list(found) for path, found in owners.items()}
        self._classes = set(classes) | {""}
        self._lists: dict[str, bool] = {}
        self._parameter_lists: dict[str, bool] = {}
        self.fields: dict[str, list[str]] = {}
        for name in fields:
            path, _, field = name.rpartition(".")
            self.fields.setdefault(path, []).append(field)

    def _is_container(self, path: str) -> bool:
        return path not in self._classes and path not in self.fields and path in self.children

    def is_list(self, path: str) -> bool:
        """Say whether a module is a numbered container."""
        if path not in self._lists:
            children = self.children.get(path, [])
            numbered = self._is_container(path) and all(is_number(c) for c in children)
            self._lists[path] = numbered and self.length(path) <= 4 * len(children) + 8
        return self._lists[path]

    def is_dict(self, path: str) -> bool:
        """Say whether a module is a container of named modules and no more."""
        children = self.children.get(path, [])
        return (
            self._is_container(path) and not self.is_list(path) and not any(hasattr(nn.ModuleDict, c) for c in children)
        )

    def is_parameter_list(self, path: str) -> bool:
        """Say whether a module holds numbered tensors and no more."""
        if path not in self._parameter_lists:
            fields = self.fields.get(path, [])
            alone = path not in self._classes and path not in self.children
            self._parameter_lists[path] = alone and set(fields) == set(map(str, range(len(fields))))
        return self._parameter_lists[path]

    def length(self, path: str) -> int:
        """Return the number of submodules or tensors a numbered container has, gaps filled."""
        return max(map(int, self.children.get(path) or self.fields[path])) + 1

    def access(self, path: str, base: str = "", field: str = "", buffer: bool = False) -> str:
        """Return the source that reaches a submodule, or a tensor of it, from inside the module `base`."""
        text, at = "self", base
        for name in path[len(base) + 1 if base else 0 :].split(".") if path != base else []:
            if self.is_list(at):
                text += f"[{name}]"
            elif is_name(name):
                text += f".{name}"
            else:
                text += f"[{quoted(name)}]" if self.is_dict(at) else f".get_submodule({quoted(name)})"
            at = f"{at}.{name}" if at else name
        if not field:
            return text
        if is_name(field):
            return f"{text}.{field}"
        if self.is_parameter_list(at):
            return f"{text}[{field}]"
        return f"{text}.get_{'buffer' if buffer else 'parameter'}({quoted(field)})"


def input_hint(program: Program, value: Value, first: bool) -> str:
    """Return a name for a value handed to a module."""
    node = program.graph.node(value.node)
    if node.op == PARAMETER:
        return identifier(program.names[node.id][0].rpartition(".")[2])
    if first:
        return "x"
    if node.op == INPUT and node.name:
        return identifier(node.name)
    type_ = program.graph.type_of(value)
    if isinstance(type_, TensorType) and type_.dtype == torch.bool:
        return "mask"
    return "y" if isinstance(type_, TensorType) and type_.dtype.is_floating_point else "index"


def result_hint(program: Program, node: Node, called: str) -> str:
    """Return a name for the result of a call, `called` being the submodule that makes it."""
    if len(parts_of(program, node)) > 1:
        parts = parts_of(program, node)
        return ("q", "k", "v")[parts.index(node.id)] if len(parts) == 3 else "part"
    if called:
        leaf = next((p for p in reversed(called.split(".")) if not is_number(p)), "")
        numbered = is_number(called.rpartition(".")[2])
        return "y" if numbered or not leaf or _LAYERS.fullmatch(leaf) else identifier(leaf)
    name = node.op.rpartition(".")[0]
    for table in (_FRESH, _HINTS):
        if name in table:
            return table[name]
    type_ = node.results[0]
    if isinstance(type_, TensorType) and type_.dtype == torch.bool:
        return "mask"
    return "y" if isinstance(type_, TensorType) and type_.dtype.is_floating_point else "index"


def result_hints(op: str, count: int) -> list[str]:
    """Return names for the results of a call that has several, `op` being '' for that of a submodule."""
    name = op.split(".")[1] if "." in op else ""
    if name in _SEVERAL:
        return _SEVERAL[name].split()
    if count == 3 and name in ("chunk", "split", "split_with_sizes", "unbind"):
        return ["q", "k", "v"]
    return list("abcdefgh"[:count]) if 1 < count <= 8 else ["part"] * count


def parts_of(program: Program, node: Node) -> list[int]:
    """Return the calls that take one tensor apart, `x[0]`, `x[1]`, ..., if a call is one of them."""
    source = node.arguments.get("self")
    if node.op != "aten.select.int" or not isinstance(source, Value):
        return []
    users = [program.graph.node(i) for i in sorted(program.users.get(source.node, ()))]
    alike = [u for u in users if u.op == node.op and u.argument("dim") == node.argument("dim")]
    whole = [u.argument("index") for u in alike] == list(range(len(users)))
    return [u.id for u in alike] if whole else []


def is_fresh(program: Program, node: Node) -> bool:
    """Say whether the result of a call deserves a name of its own."""
    name = node.op.rpartition(".")[0]
    if len(parts_of(program, node)) > 1:
        return True
    activations = [v for v in program.operands(node.id) if program.graph.node(v.node).op != PARAMETER]
    return name in _FRESH and (len(activations) > 1 or name == "aten.cat")


def unique(hint: str, taken: Collection[str]) -> str:
    """Return the hint, numbered if it is taken."""
    name, number = hint, 1
    while name in taken or name in RESERVED:
        number += 1
        name = f"{hint}{number}"
    return name
