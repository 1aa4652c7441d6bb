"""All operators of ONNX that can be read, by name."""

from __future__ import annotations

from frontends.onnx.call import Table
from frontends.onnx.operators import (
    attention,
    convolution,
    indexing,
    linear,
    movement,
    normalisation,
    pointwise,
    pooling,
    recurrent,
    reduction,
    sequences,
    spatial,
)

_FAMILIES = (
    attention,
    pointwise,
    movement,
    indexing,
    reduction,
    linear,
    convolution,
    pooling,
    normalisation,
    spatial,
    recurrent,
    sequences,
)

OPERATORS: Table = {name: function for family in _FAMILIES for name, function in family.OPERATORS.items()}
"""The operators of the domain `ai.onnx`."""
