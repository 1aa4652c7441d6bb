"""Convolutions."""

from __future__ import annotations

import math
from collections.abc import Mapping

from archir.ir.operators.operator import FACTORS, Kind, Layer, Operator, Sizes


def _convolution(call: Sizes) -> int:
    return math.prod(call.result) * math.prod(call.shape("weight")[1:])


def _transposed(call: Sizes) -> int:
    return math.prod(call.shape("input")) * math.prod(call.shape("weight")[1:])


def _either(call: Sizes) -> int:
    return _transposed(call) if call.argument("transposed") else _convolution(call)


def _layer(kind: Kind, axes: int) -> Operator:
    return Operator(
        multilinear=FACTORS,
        layer=Layer(kind, f"Conv{'Transpose' if kind is Kind.TRANSPOSED else ''}{axes}d", ("weight", "bias")),
        features=-1 - axes,
        multiply_adds=_transposed if kind is Kind.TRANSPOSED else _convolution,
    )


OPERATORS: Mapping[str, Operator] = {
    **{f"conv{n}d": _layer(Kind.CONVOLUTION, n) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _layer(Kind.TRANSPOSED, n) for n in (1, 2, 3)},
    **dict.fromkeys(("convolution", "_convolution"), Operator(multilinear=FACTORS, multiply_adds=_either)),
    "conv_tbc": Operator(),
}
