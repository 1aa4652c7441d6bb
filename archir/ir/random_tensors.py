"""Tensors for graphs that are read from text alone."""

from __future__ import annotations

import math
import zlib

import torch

from archir.errors import ParseError
from archir.ir.room import too_large
from archir.ir.types import TensorType

LARGEST = 2**28
"""The most elements of the tensors of a graph that are made up."""

_WIDE = 16
"""Bytes an element takes while it is drawn: in double precision, and once more for what is made of it."""


def sample(name: str, type_: TensorType, kind: str = "parameter") -> torch.Tensor:
    """Return a tensor for one that has no value; it depends on the arguments alone.

    Floating-point parameters are normal with standard deviation 1/sqrt(fan-in), floating-point
    buffers and constants uniform in [0.5, 1.5), integers and truth values zero.

    Raises:
        ParseError: it has more than `LARGEST` elements, or there is no room for it.
    """
    shape = torch.Size(int(size) for size in type_.shape)
    if math.prod(shape) > LARGEST:
        raise ParseError(f"cannot make a tensor {type_}", why=f"it has more than {LARGEST:,} elements")
    if why := too_large(math.prod(shape) * (type_.dtype.itemsize + _WIDE)):
        raise ParseError(f"cannot make a tensor {type_}", why=why)
    if not (type_.dtype.is_floating_point or type_.dtype.is_complex):
        return torch.zeros(shape, dtype=type_.dtype)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode("utf-8", "surrogatepass")))
    if kind != "parameter" and type_.dtype.is_floating_point:
        return (0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)).to(type_.dtype)
    fan_in = max(1, shape[1:].numel())
    wide = torch.complex128 if type_.dtype.is_complex else torch.float64
    return torch.randn(shape, generator=generator, dtype=wide).div(fan_in**0.5).to(type_.dtype)
