"""Fused attention."""

from __future__ import annotations

import math
from collections.abc import Mapping

from archir.ir.operators.operator import Kind, Layer, Operator, Sizes, alike

ATTENTION = "aten.scaled_dot_product_attention.default"


def _attention(call: Sizes) -> int:
    query, key, value = call.shape("query"), call.shape("key"), call.shape("value")
    return math.prod(call.result[:-1]) * key[-2] * (query[-1] + value[-1])


OPERATORS: Mapping[str, Operator] = {
    "scaled_dot_product_attention": Operator(
        layer=Layer(Kind.ATTENTION),
        features=-1,
        mode="dropout_p",
        multiply_adds=_attention,
    ),
    **alike(
        """
        _scaled_dot_product_attention_math _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
        """
    ),
}
