"""Modules of `torch.nn` without parameters, for the numbered places of an `nn.Sequential`."""

from __future__ import annotations

from archir.emit.code import literal
from archir.ir.execute import mode_argument
from archir.ir.node import Node, Value
from archir.ir.operators.table import TABLE
from archir.ir.registry import operator_of

MODULES = frozenset(o.layer.module for o in TABLE.values() if o.layer and o.layer.module and not o.layer.tensors)
"""The modules without parameters that calls belong to."""

_USUAL: dict[tuple[str, str], object] = {("Flatten", "start_dim"): 1, ("Dropout2d", "p"): 0.5, ("Dropout", "p"): 0.5}


def layer(node: Node) -> str | None:
    """Return the source of the module that makes a call, None if no stock module does."""
    known = operator_of(node.op).layer
    if known is None or known.module not in MODULES:
        return None
    kind, names = known.module, known.options
    modes = {"train"} if mode_argument(node) else set()
    tensors = [n for n, a in node.arguments.items() if isinstance(a, Value)]
    if len(tensors) != 1 or set(node.arguments) - {*names, *tensors, *modes}:
        return None
    given: list[str] = []
    for at, name in enumerate(names):
        if name not in node.arguments and not (kind == "Flatten" and name == "start_dim"):
            continue
        value = node.argument(name)
        if isinstance(value, tuple) and any(isinstance(v, Value) for v in value):
            return None
        if (kind, name) in _USUAL and _USUAL[kind, name] == value:
            continue
        if name == "stride" and value == node.argument("kernel_size"):
            continue
        text = _short(value)
        given.append(text if at == 0 and len(given) == at else f"{name}={text}")
    return f"nn.{kind}({', '.join(given)})"


def _short(value: object) -> str:
    """Return the source of an argument, `2` for `[2, 2]`."""
    if isinstance(value, tuple):
        return literal(value[0]) if len(set(value)) == 1 else f"({', '.join(map(literal, value))})"
    return literal(value)
