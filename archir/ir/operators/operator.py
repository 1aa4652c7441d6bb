"""What is known of an operator: a row of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import torch

Shape = tuple[int, ...]


class Sizes(Protocol):
    """The sizes of a call, which its multiply-adds are counted from."""

    @property
    def result(self) -> Shape:
        """The shape of the first result."""

    def argument(self, name: str) -> object:
        """Return an argument."""

    def shape(self, name: str) -> Shape:
        """Return the shape of an operand."""

    def shapes(self, name: str) -> list[Shape]:
        """Return the shapes of an operand that is a list of tensors."""


class Movement(Enum):
    """How an operator moves data: every element of a result is one of an operand, or a constant, whatever the values.

    Attributes:
        COPY: the operand as it is; that of dropout in evaluation mode.
        CAST: the operand in another element type.
        RESHAPE: the elements in their order, in another shape.
        PERMUTE: the axes in another order.
        REPEAT: the elements more than once; the operand as it is where the result has its shape.
        JOIN: several operands in one; one operand as it is where the result has its shape.
        CUT: parts of the operand; the operand as it is where the only result has its shape.
        PAD: elements, or constants, around the operand.
        PICK: elements from places that sizes or indices say.
        WRITE: elements of an operand, or constants, in places of others; added up where the call says so.
        FILL: constants, which depend on no element.
    """

    COPY = "copy"
    CAST = "cast"
    RESHAPE = "reshape"
    PERMUTE = "permute"
    REPEAT = "repeat"
    JOIN = "join"
    CUT = "cut"
    PAD = "pad"
    PICK = "pick"
    WRITE = "write"
    FILL = "fill"


class Kind(Enum):
    """What a layer is for."""

    LINEAR = "linear"
    CONVOLUTION = "convolution"
    TRANSPOSED = "transposed convolution"
    EMBEDDING = "embedding"
    NORM = "norm"
    ACTIVATION = "activation"
    SOFTMAX = "softmax"
    POOL = "pool"
    DROPOUT = "dropout"
    RECURRENT = "recurrent"
    ATTENTION = "attention"
    SHAPE = "shape"


@dataclass(frozen=True, slots=True)
class Layer:
    """The layer an operator belongs to.

    Attributes:
        kind: what it is for.
        module: its class in `torch.nn`, without the number of axes where that is told by the operand (`BatchNorm`);
            empty if it has none, or one that makes other calls, too.
        tensors: the operands that are parameters and buffers of it.
        options: the arguments that are options of it under the same names, where its call has no other.
    """

    kind: Kind
    module: str = ""
    tensors: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operator:
    """What is known of an operator; what is not claimed is not known. Every claim is checked by running it.

    Attributes:
        pointwise: every element of a result depends on the elements of the operands it is aligned with by broadcasting.
        linear: the operands it is linear in, taken together, the others held; in evaluation mode.
        multilinear: the operands in each of which it is linear, the others held and a `bias` left out.
        unless: the argument that takes this away where it is given and not zero.
        preserves_zero: results are zero where the first operand is, in training too; said of those that are not linear
            in both modes.
        moves: how it moves data, if it does no more; in evaluation mode.
        layer: the layer it belongs to.
        features: the axis along which it makes features lie, counted from the end.
        mode: the argument that says what it does in training: a flag, or the probability of dropout.
        multiply_adds: how many multiply-adds a call takes, if it multiplies matrices.
        derivative: the elementwise derivative in one operand, given the arguments by name and the name of the operand,
            as it is broadcast against it; None where there is none. Autograd finds that of other pointwise operators.
        places: the operator of the same arguments that also returns which elements of the operand its results are,
            and the number of last axes along which these are counted.
    """

    pointwise: bool = False
    linear: frozenset[str] = frozenset()
    multilinear: frozenset[str] = frozenset()
    unless: str = ""
    preserves_zero: bool = False
    moves: Movement | None = None
    layer: Layer | None = None
    features: int | None = None
    mode: str = ""
    multiply_adds: Callable[[Sizes], int] | None = None
    derivative: Callable[[Mapping[str, Any], str], torch.Tensor | None] | None = None
    places: tuple[str, int] | None = None

    @property
    def kind(self) -> Kind | None:
        """What the layer it belongs to is for, None if it belongs to none."""
        return None if self.layer is None else self.layer.kind

    def linear_in(self, arguments: Mapping[str, object]) -> frozenset[str]:
        """Return the operands a call is linear in, taken together.

        Args:
            arguments: its arguments by name, those at their defaults left out.
        """
        return self.linear if not self.unless or arguments.get(self.unless) in (None, 0) else frozenset()


UNKNOWN = Operator()
SELF = frozenset({"self"})
TENSORS = frozenset({"tensors"})
FACTORS = frozenset({"input", "weight"})
SUMMANDS = frozenset({"self", "other"})


def alike(names: str, operator: Operator = UNKNOWN) -> dict[str, Operator]:
    """Return one row for each of some operators, named in one text."""
    return dict.fromkeys(names.split(), operator)
