"""Writes the arguments of calls."""

from __future__ import annotations

from collections.abc import Iterable
from keyword import iskeyword
from typing import Protocol

import torch

from archir.emit.code import ATOM, UNARY, Code, literal, size
from archir.ir import ops
from archir.ir.arithmetic import ARITHMETIC
from archir.ir.execute import is_factory, mode_argument
from archir.ir.node import Argument, Node, Value


class Speaker(Protocol):
    """What turns values into source, as the forward function being written names them."""

    def value(self, value: Value, near: Node) -> Code:
        """Return the source of a value used by a node."""

    def device(self, node: Node) -> str:
        """Return the source of the device new tensors are made on."""

    def training(self, node: Node) -> str:
        """Return the source of the mode a call follows."""


def operator_path(op: str) -> str:
    """Return where PyTorch keeps an operator, `torch.ops.aten.relu.default`.

    An overload that is called as a keyword of Python is (`aten.random.from`) is no name there: the path ends before
    it, and PyTorch chooses the overload by the arguments.
    """
    packet, _, overload = op.rpartition(".")
    return f"torch.ops.{packet if iskeyword(overload) else op}"


def full_name(node: Node, say: Speaker) -> Code:
    """Return the source of a call under the operator's full name."""
    schema = ops.schema(node.op)
    head = operator_path(node.op)
    if node.op in ARITHMETIC:
        head = node.op.removeprefix("builtins.")
        return Code(f"{head}({', '.join(argument(node, n, say) for n in node.arguments)})")
    values: dict[str, object] = {n: n for n in schema.names if _is_said(node, n)}
    given: list[str] = []
    names = schema.names[: schema.keyword_from]
    for name, value in zip(names, ops.positional(node.op, values), strict=False):
        given.append(argument(node, name, say, whole=True) if _is_said(node, name) else literal(value))
    keywords = [n for n in schema.names[schema.keyword_from :] if _is_said(node, n)]
    given += [f"{n}={argument(node, n, say, whole=True)}" for n in keywords]
    return Code(f"{head}({', '.join(given)})")


def _is_said(node: Node, name: str) -> bool:
    """Whether an argument has to be written; a tensor made from nothing always has a device, a mode is followed."""
    if name == mode_argument(node) or (name == "device" and is_factory(node.op)):
        return True
    value = node.arguments.get(name)
    idle = (name == "layout" and value == torch.strided) or (name == "pin_memory" and value is False)
    return name in node.arguments and not idle


_UNIFORM = frozenset({"kernel_size", "stride", "padding", "dilation", "output_padding", "output_size"})
"""Arguments for which one number stands for the same on every axis."""

_MARKED = {"size": "size", "shape": "size", "sizes": "size", "split_size": "size", "split_sizes": "size"}
_MARKED |= {"normalized_shape": "features", "groups": "groups", "num_groups": "groups", "end": "size", "start": "size"}


def argument(node: Node, name: str, say: Speaker, binds: int = 0, *, whole: bool = False) -> str:
    """Return the source of an argument.

    Args:
        node: the call.
        name: the argument.
        say: writes values.
        binds: put it in parentheses if it binds less tightly than this.
        whole: write lists as lists, even where one number would do for all axes.
    """
    if mode_argument(node) == name:
        probability = node.argument(name)
        mode = say.training(node)
        return f"{literal(probability)} if {mode} else 0.0" if probability else mode
    if name == "device":
        return say.device(node)

    def source(part: Argument) -> Code:
        if isinstance(part, Value):
            return say.value(part, node)
        if isinstance(part, tuple):
            return Code(f"[{', '.join(source(p).text for p in part)}]")
        if isinstance(part, int) and not isinstance(part, bool) and 1 < part < 2**31 and name in _MARKED:
            return Code(size(_MARKED[name], part))
        text = literal(part)
        return Code(text, UNARY if text.startswith("-") else ATOM)

    value = node.argument(name)
    if (
        isinstance(value, tuple)
        and not whole
        and (name in _UNIFORM or (name in ("dim", "dims") and len(value) == 1))
        and len(set(value)) == 1
    ):
        value = value[0]
    return source(value).within(binds)


def cumulative(node: Node, counter: str, say: Speaker) -> Code:
    """Return the source of a batch norm that records the average over all batches.

    Args:
        node: the call.
        counter: the source of the number of batches so far, this one included.
        say: writes values.
    """
    share = f"1.0 / {counter}.item() if {say.training(node)} else 0.0"
    names = ops.schema(node.op).names
    given = [share if name == "momentum" else argument(node, name, say, whole=True) for name in names]
    return Code(f"torch.ops.{node.op}({', '.join(given)})")


def first(node: Node) -> str:
    """Return the name of the first argument of an operator."""
    return next(iter(ops.schema(node.op).names))


def items(node: Node, name: str, say: Speaker) -> str:
    """Return the elements of a list argument, without brackets."""
    text = argument(node, name, say)
    return text[1:-1] if text.startswith("[") else text


def call(
    node: Node,
    head: str,
    say: Speaker,
    *,
    names: Iterable[str] | None = None,
    rename: dict[str, str] | None = None,
    bare: int = 2,
    extra: Iterable[str] = (),
) -> Code:
    """Return `head(a, b, name=c)`: the first `bare` arguments by position if the operator lets them, others by name."""
    schema = ops.schema(node.op)
    chosen = list(schema.names if names is None else names)
    given: list[str] = []
    by_position = True
    for at, name in enumerate(chosen):
        if not _is_said(node, name):
            by_position = False
            continue
        text = argument(node, name, say)
        by_position = by_position and at < bare and name in schema.names[: schema.keyword_from]
        given.append(text if by_position else f"{(rename or {}).get(name, name)}={text}")
    return Code(f"{head}({', '.join([*given, *extra])})")
