"""Recurrent nets and packed sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from archir.ir.operators.operator import Kind, Layer, Operator, Sizes, alike


def _layers(sequence: str) -> Callable[[Sizes], int]:
    """Return the rule of a recurrent net, given the name of its sequence, `[..., features]`."""

    def count(call: Sizes) -> int:
        steps = math.prod(call.shape(sequence)[:-1])
        return steps * sum(math.prod(w) for w in call.shapes("params") if len(w) == 2)

    return count


def _cell(call: Sizes) -> int:
    return math.prod(call.shape("input")[:-1]) * (math.prod(call.shape("w_ih")) + math.prod(call.shape("w_hh")))


_MODULES = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}
_PACKED = Operator(layer=Layer(Kind.RECURRENT), mode="train", multiply_adds=_layers("data"))
_LAYER = Operator(mode="train", multiply_adds=_layers("input"))

OPERATORS: Mapping[str, Operator] = {
    **{f"{n}.input": replace(_LAYER, layer=Layer(Kind.RECURRENT, m, ("params",))) for n, m in _MODULES.items()},
    **{f"{name}.data": _PACKED for name in _MODULES},
    **{f"{name}_cell": Operator(multiply_adds=_cell) for name in _MODULES},
    **alike("_pack_padded_sequence _pad_packed_sequence pad_sequence"),
}
