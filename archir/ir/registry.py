"""The operators a graph may call: a closed list.

A file names operators, and analysing or running it calls them; so a name is looked up here, never in a Python module or
among all operators of torch. An operator of this list computes tensors or numbers from its arguments and does nothing
else: it writes into no argument, opens no file, changes no setting. Anything else is refused, whoever makes the graph.

- The table of operators (`archir.ir.operators`) names those of ATen; of each, the overloads whose schema is that of a
  function (`is_function`).
- `archir.ir.arithmetic` lists the arithmetic on run-time sizes.
- `admit` adds an operator of the user's own to those of this process, as `torch.library` did when it was defined.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from archir.errors import GraphError, suggest
from archir.ir.arithmetic import ARITHMETIC
from archir.ir.operators.operator import UNKNOWN, Operator
from archir.ir.operators.table import NAMES, row

_VISION = frozenset({"deform_conv2d", "nms", "ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool"})
_LIBRARIES = {"aten": NAMES, "torchvision": _VISION}
"""Operators by the library that defines them; torchvision's are there once it has been imported."""

_admitted: set[str] = set()
"""What `admit` added. It is state of the process because what it names is: `torch.library` defines an operator in the
process, for every graph and thread of it, and a node is checked where it is made, by whoever makes it."""


@cache
def function(op: str) -> Callable[..., Any]:
    """Return the callable of an operator name.

    Args:
        op: `aten.relu.default`; the overload `default` may be left out.

    Raises:
        GraphError: it is not one of the operators a graph may call.
    """
    if op in ARITHMETIC:
        return ARITHMETIC[op]
    library, _, rest = op.partition(".")
    name, _, overload = rest.partition(".")
    if name in _LIBRARIES.get(library, ()) or f"{library}.{name}.{overload or 'default'}" in _admitted:
        found = _overload(op)
        if found is None:
            known = (f"{library}.{name}.{form}" for form in _forms(library, name))
            forms = ", ".join(form for form in known if is_function(_overload(form)))
            hint = f"there is {forms}" if forms else "import the package that defines it first"
            raise GraphError(f"there is no operator {op!r}", hint=hint)
        if is_function(found):
            return found
        raise GraphError(f"the operator {op!r} is no function of tensors", why=_IMPURE)
    raise _refusal(op)


def operator_of(op: str) -> Operator:
    """Return what is known of an operator: its row of the table; of one of the user's own, what its tags say.

    Args:
        op: its full name, `aten.relu.default`; that of a node that is no call, too.
    """
    library, _, rest = op.partition(".")
    name, _, overload = rest.partition(".")
    if library == "aten":
        return row(name, overload) or UNKNOWN
    found = _overload(op) if library in _LIBRARIES or op in _admitted else None
    return Operator(pointwise=True) if found is not None and torch.Tag.pointwise in found.tags else UNKNOWN


def _refusal(op: str) -> GraphError:
    """Return why an operator that is not listed may not be called."""
    found = _overload(op)
    if found is not None and not is_function(found):
        return GraphError(f"the operator {op!r} is no function of tensors", why=_IMPURE)
    if found is not None:
        why = "it is not among the operators that archir knows to be safe on data of strangers"
        return GraphError(
            f"the operator {op!r} is not admitted", why=why, hint=f"if you vouch for it: archir.admit({op!r})"
        )
    library, _, rest = op.partition(".")
    known = {other for other in _known() if other.startswith(f"{library}.")}
    if known or not rest:
        return GraphError(f"there is no operator {op!r}", hint=suggest(op, known or _known()))
    hint = f"if it is yours: import the package that defines it, then archir.admit({op!r})"
    why = "a graph calls functions of ATen, and those that were admitted"
    return GraphError(f"there is no operator {op!r} among those a graph may call", why=why, hint=hint)


def admit(op: str) -> None:
    """Let graphs of this process call an operator of the user's own.

    Whoever calls it vouches that running the operator on data of strangers is safe.

    Args:
        op: name of an operator that was defined by `torch.library`, `mine.scale` or `mine.scale.default`.

    Raises:
        GraphError: there is no such operator, or it is no function: it writes into an argument or returns nothing.
    """
    found = _overload(op)
    if found is None:
        raise GraphError(f"there is no operator {op!r}", hint="import the package that defines it first")
    if not is_function(found):
        raise GraphError(f"the operator {op!r} is no function of tensors", why=_IMPURE)
    _admitted.add(str(found))


def is_admitted(op: str) -> bool:
    """Say whether an operator is the user's own, by its full name."""
    return op in _admitted


def is_function(overload: torch._ops.OpOverload | None) -> bool:
    """Say whether an operator says of itself that it computes results from tensors, numbers and text alone.

    Operators of TorchScript (`aten.pow.int_to_int`, `aten.save`) are none: the dispatcher does not know them.
    """
    if overload is None:
        return False
    schema = overload._schema
    stateful = any(kind in str(argument.type) for kind in _STATE for argument in schema.arguments)
    pure = bool(schema.returns) and not schema.is_mutable and not stateful
    return pure and torch._C._dispatch_has_kernel(str(schema.name) + f".{schema.overload_name}".rstrip("."))


_IMPURE = "it writes into an argument, returns nothing, or works on what is neither tensor nor number nor text"
_STATE = ("Storage", "Stream", "QScheme", "torch.classes")
"""Types of arguments that stand for something outside the graph."""


def _overload(op: str) -> torch._ops.OpOverload | None:
    """Return the operator of a name that torch's dispatcher knows, None if there is none.

    Names are looked up among those of the dispatcher before any attribute of torch is read.
    """
    library, _, rest = op.partition(".")
    name, _, overload = rest.partition(".")
    form = overload or "default"
    if form not in _forms(library, name):
        return None
    found = getattr(getattr(getattr(torch.ops, library), name), form)
    return found if isinstance(found, torch._ops.OpOverload) else None


def _forms(library: str, name: str) -> list[str]:
    """Return the overloads of an operator, by the list of the dispatcher."""
    known = torch._C._dispatch_get_all_op_names()
    whole = f"{library}::{name}"
    return sorted(n[len(whole) + 1 :] or "default" for n in known if n == whole or n.startswith(f"{whole}."))


def _known() -> set[str]:
    libraries = {f"{library}.{name}" for library, names in _LIBRARIES.items() for name in names}
    return libraries | set(ARITHMETIC) | _admitted
