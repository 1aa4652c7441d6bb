"""What a graph is made of: values, arguments, nodes, and the signature of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from archir.errors import GraphError
from archir.ir import ops
from archir.ir.constants import check_constants
from archir.ir.guards import Guard
from archir.ir.names import check_argument, check_keyword, check_path, check_text
from archir.ir.types import TensorType, Type

INPUT, PARAMETER, OUTPUT = "input", "parameter", "output"
STORED = ("parameter", "buffer", "constant")
"""Kinds of stored tensors."""


MOST_GUARDS = 128
"""The most guards of a graph."""


@dataclass(frozen=True, slots=True, order=True)
class Value:
    """Result number `index` of a node."""

    node: int
    index: int = 0


Scalar = int | float | bool | complex | str | None | torch.dtype | torch.device | torch.layout | torch.memory_format
Argument = Scalar | Value | tuple["Argument", ...]
"""What a node is called with: a value, a constant, or a tuple of these."""


@dataclass(frozen=True, slots=True)
class Use:
    """One place where a value is used: the argument of a node, and the position inside it if it is a tuple."""

    node: int
    argument: str
    position: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Location:
    """Where a node comes from in the user's program.

    Attributes:
        module: path of the module whose `forward` made it (`layers.0.conv`; empty for the root).
        kind: class name of that module, with its package.
        file: source file, empty if unknown.
        line: line in that file.

    Raises:
        GraphError: no module can be called that.
    """

    module: str = ""
    kind: str = ""
    file: str = ""
    line: int = 0

    def __post_init__(self) -> None:
        if self.module:
            check_path(self.module, "the path of a module")

    def __str__(self) -> str:
        module = f"{self.module or '<root>'} ({self.kind.rpartition('.')[2]})" if self.kind else self.module
        return f"{module} {self.file}:{self.line}".strip() if self.file else module


@dataclass(frozen=True, slots=True)
class Parameter:
    """What is known of a stored tensor besides its value.

    Attributes:
        names: every name it has in the state dict; several if it is tied.
        kind: `parameter`, `buffer`, or `constant` (a tensor literal of the program).
        trainable: whether it has gradients.
        persistent: whether it is part of the state dict.

    Raises:
        GraphError: no tensor of a module can be called that, or there is no such kind.
    """

    names: tuple[str, ...]
    kind: str = "parameter"
    trainable: bool = True
    persistent: bool = True

    def __post_init__(self) -> None:
        for name in self.names:
            check_path(name)
        if self.kind not in STORED:
            raise GraphError(f"a stored tensor is one of {', '.join(STORED)}, not {self.kind!r}")


@dataclass(frozen=True)
class Node:
    """One node of a graph.

    Attributes:
        id: its identity, kept by every edit.
        op: operator name (`aten.relu.default`), or `input`, `parameter`, `output`.
        arguments: by schema name, in schema order; arguments equal to their defaults are left out.
        results: the type of each result.
        name: name of an input; a hint elsewhere.
        parameter: for a parameter node, what is known of the tensor.
        location: where it comes from.
        born: the pass that made it, empty for the original program.

    Raises:
        GraphError: it calls no operator of the registry, or one that takes no such constants, or is an input that no
            argument can be called like.
    """

    id: int
    op: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    results: tuple[Type, ...] = ()
    name: str = ""
    parameter: Parameter | None = None
    location: Location | None = None
    born: str = ""

    def __post_init__(self) -> None:
        if self.op == INPUT:
            check_argument(self.name)
        elif self.is_call:
            check_constants(self.op, self.arguments, (Value,))

    @property
    def is_call(self) -> bool:
        """Whether it calls an operator."""
        return self.op not in (INPUT, PARAMETER, OUTPUT)

    @property
    def is_trainable(self) -> bool:
        """Whether it is a stored tensor that has gradients."""
        return self.parameter is not None and self.parameter.trainable

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the tensor it stores; none if it stores none."""
        return self.parameter.names if self.parameter else ()

    def argument(self, name: str) -> Argument:
        """Return an argument by schema name, its default if it is not given.

        Raises:
            GraphError: the operator has no such argument.
        """
        if name in self.arguments:
            return self.arguments[name]
        schema = ops.schema(self.op)
        if name in schema.defaults:
            return schema.defaults[name]  # type: ignore[return-value]
        raise GraphError(f"{self.op} has no argument {name!r}", hint=f"it has {', '.join(schema.names)}")

    def operand(self, name: str) -> Value:
        """Return an argument that is a value.

        Raises:
            GraphError: it is none, or the operator has no such argument.
        """
        found = self.argument(name)
        if not isinstance(found, Value):
            raise GraphError(f"{name} of {self.op} is no value", where=self.place)
        return found

    @property
    def place(self) -> str:
        """Its id and where it comes from, for errors."""
        return f"node {self.id} {self.location or ''}".strip()

    def to(self, dtype: torch.dtype) -> Node:
        """Return the node with every floating-point type and element type in another precision."""

        def type_(old: Type) -> Type:
            if isinstance(old, TensorType) and old.dtype.is_floating_point:
                return TensorType(dtype, old.shape)
            return old

        def argument(old: Argument) -> Argument:
            return dtype if isinstance(old, torch.dtype) and old.is_floating_point else old

        arguments = {name: argument(value) for name, value in self.arguments.items()}
        return replace(self, results=tuple(map(type_, self.results)), arguments=arguments)

    def operands(self) -> tuple[tuple[Use, Value], ...]:
        """Return every value it uses, with the place."""
        return self._operands

    @cached_property
    def _operands(self) -> tuple[tuple[Use, Value], ...]:
        return tuple(found for name, argument in self.arguments.items() for found in _values(self.id, name, argument))

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """Every value it uses, one that it uses twice twice."""
        return tuple(value for _, value in self._operands)

    @property
    def made(self) -> tuple[Value, ...]:
        """The values it makes: its results, in order."""
        return tuple(Value(self.id, i) for i in range(len(self.results)))

    def tensor_type(self, index: int = 0) -> TensorType:
        """Return the type of a result that is a tensor.

        Raises:
            GraphError: that result is a number.
        """
        found = self.results[index]
        if not isinstance(found, TensorType):
            raise GraphError(f"result {index} of {self.op} is a number, not a tensor")
        return found


def _values(node: int, name: str, argument: Argument, position: tuple[int, ...] = ()) -> Iterator[tuple[Use, Value]]:
    if isinstance(argument, Value):
        yield Use(node, name, position), argument
    elif isinstance(argument, tuple):
        for i, part in enumerate(argument):
            yield from _values(node, name, part, (*position, i))


def map_values(argument: Argument, to: Callable[[Value], Argument]) -> Argument:
    """Return the argument with every value in it replaced by what `to` makes of it."""
    if isinstance(argument, Value):
        return to(argument)
    if isinstance(argument, tuple):
        return tuple(map_values(part, to) for part in argument)
    return argument


@dataclass(frozen=True, slots=True)
class Tree:
    """The nesting of a model's inputs or outputs.

    Attributes:
        kind: `tuple`, `list` or `dict`.
        children: subtrees; a leaf is the number of an input or output, or `Constant`.
        keys: the keys of a dict.

    Raises:
        GraphError: it is of another kind, or has not a key of its own for each child.
    """

    kind: str
    children: tuple[Leaf, ...] = ()
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("tuple", "list", "dict"):
            raise GraphError(f"inputs and outputs nest as tuple, list or dict, not {self.kind!r}")
        if len(set(self.keys)) != (len(self.children) if self.kind == "dict" else 0):
            raise GraphError(f"a {self.kind} of {len(self.children)} has the keys {list(self.keys)}")

    def items(self) -> tuple[tuple[str | int, Leaf], ...]:
        """Return the subtrees with their keys, or with their numbers where it is no dict."""
        return tuple(zip(self.keys if self.kind == "dict" else range(len(self.children)), self.children, strict=True))


@dataclass(frozen=True, slots=True)
class Constant:
    """A leaf that is a constant: `None`, a number or a string."""

    value: int | float | bool | str | None


Leaf = Tree | Constant | int

_T = TypeVar("_T")


def fold(leaf: Leaf, end: Callable[[int | Constant], _T], join: Callable[[Tree, list[_T]], _T]) -> _T:
    """Return what `join` makes of each tree and of what was made of its subtrees, which end in what `end` makes."""
    if isinstance(leaf, Tree):
        return join(leaf, [fold(child, end, join) for child in leaf.children])
    return end(leaf)


def leaves(leaf: Leaf) -> list[int | Constant]:
    """Return what a nesting ends in, in order."""
    return fold(leaf, lambda end: [end], lambda _, ends: [end for part in ends for end in part])


def build(leaf: Leaf, parts: Sequence[Any]) -> Any:
    """Return tuples, lists and dicts that are nested so, with the parts where their numbers are."""

    def join(tree: Tree, children: list[Any]) -> Any:
        if tree.kind == "dict":
            return dict(zip(tree.keys, children, strict=True))
        return tuple(children) if tree.kind == "tuple" else children

    return fold(leaf, lambda end: end.value if isinstance(end, Constant) else parts[end], join)


def texts(leaf: Leaf) -> list[str]:
    """Return the keys of a nesting and the constants in it that are texts."""

    def end(found: int | Constant) -> list[str]:
        return [found.value] if isinstance(found, Constant) and isinstance(found.value, str) else []

    return fold(leaf, end, lambda tree, parts: [*tree.keys, *(text for part in parts for text in part)])


def flatten(leaf: Leaf, value: Any) -> list[tuple[int | Constant, Any]]:
    """Return each end of a nesting with what is there in a value that is nested so, as `build` nests it.

    Raises:
        GraphError: the value is nested otherwise.
    """
    if not isinstance(leaf, Tree):
        return [(leaf, value)]
    try:
        parts = [value[key] for key, _ in leaf.items()]
        if len(value) != len(parts):
            raise IndexError(len(value))
    except (KeyError, IndexError, TypeError) as error:
        raise GraphError(f"a {type(value).__name__} is not nested as a {leaf.kind} of {len(leaf.children)}") from error
    return [found for child, part in zip(leaf.children, parts, strict=True) for found in flatten(child, part)]


@dataclass(frozen=True, slots=True)
class Signature:
    """How a model is called and what it returns; leaves number the graph's inputs and outputs.

    Attributes:
        args: tuple of positional arguments.
        kwargs: dict of keyword arguments.
        result: what is returned.
        guards: what the sizes of the inputs have to satisfy.
        mode_changes: paths of the modules that are not in the mode of the one they stand in, when a module is made of
            the graph; the outermost one, `""`, is among them where it is in evaluation mode.
        sizes: what the dynamic sizes besides the batch usually are, by symbol: those of the example the graph was
            captured on. Costs are told for them.

    Raises:
        GraphError: no keyword argument or module can be called that, a key or a constant among the arguments is no
            plain text, there are too many guards, or a size is none, or is given twice.
    """

    args: Tree
    kwargs: Tree
    result: Leaf
    guards: tuple[Guard, ...] = ()
    mode_changes: frozenset[str] = frozenset()
    sizes: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        for path in filter(None, self.mode_changes):
            check_path(path, "the path of a module")
        wrong = [f"{name} = {size}" for name, size in self.sizes if type(size) is not int or not 0 < size < 2**63]
        if wrong or len(dict(self.sizes)) < len(self.sizes):
            told = ", ".join(wrong) or "one of them is given twice"
            raise GraphError("the sizes a graph was captured for are positive, one each", where=told[:200])
        for name in self.kwargs.keys:
            check_keyword(name)
        if len(self.guards) > MOST_GUARDS:
            raise GraphError(f"a graph has {len(self.guards)} guards", why=f"more than {MOST_GUARDS} are refused")
        for leaf in (*self.args.children, *self.kwargs.children):
            for text in texts(leaf):
                check_text(text)
