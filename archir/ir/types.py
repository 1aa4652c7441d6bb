"""Types of values: element type and shape, where a size is an integer or an expression in the batch size.

`f32[B, 3, 32, 32]` is a tensor,
`int(B)` a number known at run time only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

import torch

from archir.errors import GraphError, ParseError
from archir.ir.sizes import Size as Size
from archir.ir.sizes import as_size as as_size
from archir.ir.sizes import canonical
from archir.ir.sizes import evaluate as evaluate
from archir.ir.sizes import parse_size as parse_size
from archir.ir.sizes import symbol as symbol
from archir.ir.sizes import symbols_of as symbols_of

DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
    "c64": torch.complex64,
    "c128": torch.complex128,
}
_LONG_NAMES = {
    name: found for name, found in vars(torch).items() if isinstance(found, torch.dtype) and found in DTYPES.values()
}
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
RARE_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("complex32", "uint16", "uint32", "uint64"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
}
"""Element types that go by torch's own names; quantised ones, and those of less than a byte, are none of a graph's."""


def dtype_name(dtype: torch.dtype) -> str:
    """Return the short name of an element type (`f32`), or torch's own for the rare ones."""
    return DTYPE_NAMES.get(dtype, str(dtype).removeprefix("torch."))


def parse_dtype(name: str) -> torch.dtype:
    """Return the element type of a short name.

    Raises:
        ParseError: the name is not an element type.
    """
    dtype = DTYPES.get(name, RARE_DTYPES.get(name) or _LONG_NAMES.get(name))
    if dtype is None:
        raise ParseError(f"{name!r} is not an element type", hint=f"known: {', '.join(DTYPES)}")
    return dtype


RANK = 64
"""The most axes of a tensor."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """The type of a tensor.

    Attributes:
        dtype: element type.
        shape: one size an axis, as it is when it is read back.

    Raises:
        GraphError: it has more than `RANK` axes, or one of them is no size, or one that is too large.
    """

    dtype: torch.dtype
    shape: tuple[Size, ...]

    def __post_init__(self) -> None:
        if len(self.shape) > RANK:
            raise GraphError(f"a tensor of {len(self.shape)} axes", why=f"PyTorch's have {RANK} at the most")
        if any(type(size) is not int for size in self.shape):
            object.__setattr__(self, "shape", tuple(map(canonical, self.shape)))

    def at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape for given values of the symbols.

        Raises:
            KeyError: a symbol is not in `sizes`.
            GraphError: a size has no value, or is negative.
        """
        found = tuple(evaluate(size, sizes) for size in self.shape)
        negative = [str(size) for size, value in zip(self.shape, found, strict=True) if value < 0]
        if negative:
            told = ", ".join(f"{name} = {value}" for name, value in sizes.items())
            raise GraphError(f"the size {negative[0]} is negative for {told}")
        return found

    def __str__(self) -> str:
        return f"{dtype_name(self.dtype)}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class ScalarType:
    """The type of a number computed at run time, such as the batch size.

    Attributes:
        kind: `int`, `float` or `bool`.
        value: its value as an expression in the symbols, where that is known.

    Raises:
        GraphError: that is no size, or one that is too large.
    """

    kind: str
    value: Size | None = None

    def __post_init__(self) -> None:
        if self.value is not None and type(self.value) is not int:
            object.__setattr__(self, "value", canonical(self.value))

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}({self.value})"


Type = TensorType | ScalarType


def is_float(type_: Type) -> TypeGuard[TensorType]:
    """Say whether a type is a tensor of real floating-point numbers."""
    return isinstance(type_, TensorType) and type_.dtype.is_floating_point
