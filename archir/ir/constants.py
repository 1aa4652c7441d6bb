"""What constants an operator may be called with, by the schema of each argument.

A constant goes into modules, emitted source and kernels as it is, and PyTorch converts what it is given: an integer
becomes an element type that crashes its kernels, a text a device. So every constant is checked where a node is made,
and before an operator is run to find its types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch

from archir.errors import GraphError
from archir.ir.registry import function, is_admitted
from archir.ir.types import DTYPES, RARE_DTYPES

PARTS = 2**16
"""The most parts of a list."""

_ELEMENTS = frozenset([*DTYPES.values(), *RARE_DTYPES.values()])
MEMORY_FORMATS = (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
LAYOUTS = (torch.strided,)
DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Kinds of devices a call may name; one that names none computes where its tensors are."""

_WORDS = """
    add amax amin area backward bicubic bilinear border circular complete constant floor fro gels gelsd gelss gelsy
    gesvd gesvda gesvdj higher ij ingroup inner_product ortho forward left linear lower max mean median midpoint min
    multiply nearest none nuc outer prod r reduced reflect reflection replicate right same set sum tanh trilinear trunc
    valid xy zeros L U l u
"""
_FORMULAS = frozenset(_WORDS.split())
"""What operators choose a formula by."""
_is_equation = re.compile(r"[A-Za-z.,>\- ]{1,1000}").fullmatch


@dataclass(frozen=True, slots=True)
class _Kind:
    """What an argument takes.

    Attributes:
        text: in words.
        accepts: whether a constant is of this kind.
        computed: whether what is known at run time only may stand for one.
    """

    text: str
    accepts: Callable[[object], bool]
    computed: bool = True


def check_constants(op: str, arguments: Mapping[str, object], computed: tuple[type, ...]) -> None:
    """Check the constants a call is given against the schema of its operator.

    Args:
        op: operator name.
        arguments: by name.
        computed: the classes of what stands for tensors and numbers known at run time only.

    Raises:
        GraphError: there is no such operator or argument, or one is given what its schema does not take.
    """
    kinds = _kinds(op)
    for name, argument in arguments.items():
        kind = kinds.get(name)
        if kind is None:
            raise GraphError(f"{op} has no argument {name!r}", hint=f"it has {', '.join(kinds)}")
        if isinstance(argument, computed):
            if not kind.computed:
                raise GraphError(
                    f"{op} was given a computed value for {name!r}", why=f"it takes {kind.text}, written out"
                )
            continue
        if isinstance(argument, tuple):
            plain: object = tuple(part for part in argument if not isinstance(part, computed))
        else:
            plain = argument
        if not kind.accepts(plain):
            raise GraphError(f"{op} was given {_shown(argument)} for {name!r}", why=f"it takes {kind.text}")


def _shown(argument: object) -> str:
    if isinstance(argument, tuple):
        text = f"[{', '.join(map(_shown, argument[:8]))}{', ...' if len(argument) > 8 else ''}]"
    else:
        text = f'"{argument}"' if isinstance(argument, str) else str(argument)
    return text if len(text) <= 60 else f"{text[:60]}..."


@cache
def _kinds(op: str) -> Mapping[str, _Kind]:
    """Return what each argument of an operator takes."""
    target = function(op)
    if not isinstance(target, torch._ops.OpOverload):
        return dict.fromkeys("abc", _NUMBER)
    return {
        argument.name: _kind(
            argument.real_type, getattr(argument, "N", None) is not None, argument.name, is_admitted(op)
        )
        for argument in target._schema.arguments
    }


def _kind(schema_type: torch._C.JitType, repeated: bool, name: str, admitted: bool) -> _Kind:
    if isinstance(schema_type, torch._C.OptionalType):
        inner = _kind(schema_type.getElementType(), repeated, name, admitted)
        return _Kind(f"{inner.text} or None", lambda v: v is None or inner.accepts(v), inner.computed)
    if isinstance(schema_type, torch._C.ListType):
        part = _PARTS.get(str(schema_type)) or _kind(schema_type.getElementType(), False, name, admitted)

        def accepts(value: object) -> bool:
            if isinstance(value, tuple):
                return len(value) <= PARTS and all(map(part.accepts, value))
            return repeated and part.accepts(value)

        return _Kind(
            f"a list of at most {PARTS:,} parts, each {part.text}", accepts, repeated or str(schema_type) in _PARTS
        )
    if str(schema_type) == "str":
        if admitted:
            return _Kind("text", lambda v: isinstance(v, str), computed=False)
        return _EINSUM if name == "equation" else _WORD
    return _KINDS.get(str(schema_type), _NOTHING)


def _is_integer(value: object) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_real(value: object) -> bool:
    return isinstance(value, float) or _is_integer(value)


def _is_number(value: object) -> bool:
    return isinstance(value, bool | complex) or _is_real(value)


def _is_place(value: object) -> bool:
    return isinstance(value, torch.device) and value.type in DEVICES


_TENSOR = _Kind("a tensor", _is_number)
_NUMBER = _Kind("an integer, a truth value or a float", lambda v: isinstance(v, bool) or _is_real(v))
_WORD = _Kind("the name of a formula, such as 'mean' or 'tanh'", lambda v: isinstance(v, str) and v in _FORMULAS, False)
_EINSUM = _Kind(
    "an equation, such as 'ij,jk->ik'", lambda v: isinstance(v, str) and bool(_is_equation(v)), computed=False
)
_NOTHING = _Kind("nothing that can be written", lambda v: False, computed=False)
_PARTS: Mapping[str, _Kind] = {
    "List[Tensor]": _Kind("a tensor", lambda v: False),
    "List[Optional[Tensor]]": _Kind("a tensor or None", lambda v: v is None),
}
"""What the parts of lists of tensors take: PyTorch makes no tensors of numbers there."""
_KINDS: Mapping[str, _Kind] = {
    "Tensor": _TENSOR,
    "int": _Kind("an integer", _is_integer),
    "float": _Kind("a float", _is_real),
    "bool": _Kind("a truth value", lambda v: isinstance(v, bool)),
    "number": _Kind("a number", _is_number),
    "ScalarType": _Kind("an element type", lambda v: isinstance(v, torch.dtype) and v in _ELEMENTS, computed=False),
    "Layout": _Kind("a layout, strided", lambda v: isinstance(v, torch.layout) and v in LAYOUTS, computed=False),
    "MemoryFormat": _Kind(
        "a memory format", lambda v: isinstance(v, torch.memory_format) and v in MEMORY_FORMATS, computed=False
    ),
    "Device": _Kind(f"a device, one of {', '.join(DEVICES)}", _is_place, computed=False),
    "Generator": _NOTHING,
}
