"""Calls the operator of a node, and knows which operators behave differently in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from archir.ir import ops
from archir.ir.node import Argument, Node, Value
from archir.ir.registry import operator_of


def mode_argument(node: Node) -> str | None:
    """Return the name of the argument that follows the train/eval mode, None if the call does not depend on it.

    A flag is `True` in training and `False` in evaluation; one that is `True` in the graph (dropout that is always
    on, normalisation without running statistics) does not depend on the mode. The `dropout_p` of attention
    is the probability in training; it is 0 in evaluation.
    """
    name = operator_of(node.op).mode
    value = node.argument(name) if name else None
    return name if value is False or (isinstance(value, float) and value > 0) else None


def is_factory(op: str) -> bool:
    """Say whether an operator makes a tensor out of no other tensor, so that it has to be told the device."""
    schema = ops.schema(op)
    return "device" in schema.names and not schema.tensors


@cache
def returns_sequence(op: str) -> bool:
    """Say whether a call of the operator returns a tuple or list rather than one tensor or number."""
    target = ops.function(op)
    if not isinstance(target, torch._ops.OpOverload):
        return False
    returns = target._schema.returns
    return len(returns) > 1 or any(isinstance(r.type, torch.ListType) for r in returns)


@dataclass(frozen=True, slots=True)
class Call:
    """A node made ready to be executed many times; made by `compile_call`.

    Attributes:
        function: the callable of the operator.
        positional: positional arguments; those in `positional_values` hold values to be looked up.
        keyword: keyword arguments; those in `keyword_values` hold values to be looked up.
        positional_values: index and argument of the positional arguments that hold values.
        keyword_values: name and argument of the keyword arguments that hold values.
        sequence: whether the operator returns a tuple or list.
    """

    function: Callable[..., Any]
    positional: tuple[Any, ...]
    keyword: Mapping[str, Any]
    positional_values: tuple[tuple[int, Argument], ...]
    keyword_values: tuple[tuple[str, Argument], ...]
    sequence: bool

    def __call__(self, argument_values: Callable[[Value], object]) -> tuple[Any, ...]:
        """Execute the operator.

        Args:
            argument_values: gives the tensor or number of each value the node uses.

        Returns:
            Its results.
        """
        args, kwargs = list(self.positional), self.keyword
        for index, argument in self.positional_values:
            args[index] = _resolve(argument, argument_values)
        if self.keyword_values:
            kwargs = {**kwargs, **{name: _resolve(a, argument_values) for name, a in self.keyword_values}}
        out = self.function(*args, **kwargs)
        return tuple(out) if self.sequence else (out,)


def compile_call(node: Node, *, training: bool = False, device: torch.device | None = None) -> Call:
    """Make a call node ready to be executed many times.

    Args:
        node: a node that calls an operator.
        training: whether operators such as dropout run in training mode; batch normalisation then
            writes into the running statistics it is given.
        device: where operators without tensor operands (`zeros`, `arange`) put their result.

    Raises:
        GraphError: there is no such operator.
    """
    arguments: dict[str, Any] = dict(node.arguments)
    mode = mode_argument(node)
    if mode is not None:
        value = arguments.get(mode, False)
        arguments[mode] = training if value is False else value * training
    if device is not None and is_factory(node.op):
        arguments["device"] = device
    schema = ops.schema(node.op)
    positional: tuple[Any, ...] = tuple(ops.positional(node.op, arguments))
    keyword = {n: arguments[n] for n in schema.names[schema.keyword_from :] if n in arguments}
    return Call(
        function=ops.function(node.op),
        positional=tuple(map(_thaw, positional)),
        keyword={n: _thaw(a) for n, a in keyword.items()},
        positional_values=tuple((i, a) for i, a in enumerate(positional) if _holds_value(a)),
        keyword_values=tuple((n, a) for n, a in keyword.items() if _holds_value(a)),
        sequence=returns_sequence(node.op),
    )


def call(
    node: Node,
    argument_values: Callable[[Value], object],
    *,
    training: bool = False,
    device: torch.device | None = None,
) -> tuple[Any, ...]:
    """Execute one call node and return its results.

    Args:
        node: a node that calls an operator.
        argument_values: gives the tensor or number of each value the node uses.
        training: as in `compile_call`.
        device: as in `compile_call`.

    Raises:
        GraphError: there is no such operator.
    """
    return compile_call(node, training=training, device=device)(argument_values)


def _holds_value(argument: object) -> bool:
    return any(map(_holds_value, argument)) if isinstance(argument, tuple) else isinstance(argument, Value)


def _thaw(argument: object) -> object:
    return list(map(_thaw, argument)) if isinstance(argument, tuple) else argument


def _resolve(argument: Argument, argument_values: Callable[[Value], object]) -> object:
    if isinstance(argument, Value):
        return argument_values(argument)
    if isinstance(argument, tuple):
        return [_resolve(part, argument_values) for part in argument]
    return argument
