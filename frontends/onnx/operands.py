"""What a value of an ONNX graph is while it is translated, and how an operator says that it cannot be read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from archir.ir.node import Value
from archir.ir.types import Size


class Refusal(Exception):
    """Why a node cannot be read; it is told with the name of the node, together with all others."""


@dataclass(frozen=True, eq=False)
class Known:
    """A tensor whose elements are known when the file is read.

    Attributes:
        tensor: the elements.
        name: what it is called in the file, empty where it has no name of its own.
        trains: whether it is a parameter, so that it is never folded into others.
        buffer: whether it is state that does not train.
    """

    tensor: torch.Tensor
    name: str = ""
    trains: bool = False
    buffer: bool = False


@dataclass(frozen=True, eq=False)
class Sizes:
    """A tensor of numbers that follow from the sizes of the inputs: shape arithmetic that is folded.

    Attributes:
        entries: the numbers, row-major.
        shape: its shape.
        dtype: its element type.
    """

    entries: tuple[Size, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.int64


@dataclass(frozen=True, eq=False)
class Series:
    """A sequence of tensors, which is taken apart while the file is read.

    Attributes:
        items: its tensors.
    """

    items: tuple[Known | Sizes | Value, ...]


Operand = Known | Sizes | Value
"""A tensor of elements that are known, one of sizes, or one that is computed when the graph runs."""
