"""Attention, which ONNX has as one operator since operator set 23."""

from __future__ import annotations

import math

import onnx_ir as ir
import torch

from frontends.onnx.call import Call, Results, Table
from frontends.onnx.operands import Operand, Refusal
from frontends.onnx.operators.movement import reshaped


def _attention(c: Call) -> Results:
    for side in ("left_window_size", "right_window_size"):
        c.only(side, -1, ir.Attr.as_int)
    if c.uses(3) and c.integer("qk_matmul_output_mode", 0) not in (0, 3):
        raise Refusal("it tells products of queries and keys that are neither bare nor a softmax")
    if c.get(6) is not None:
        raise Refusal("its keys have lengths of their own")
    flat = c.rank(c[0]) == 3
    query, key, value = (_heads(c, i, "q_num_heads" if i == 0 else "kv_num_heads") for i in range(3))
    (length,) = c.fixed(query, 2) if c.integer("is_causal", 0) else (0,)
    past = 0
    if c.get(4) is not None:
        (past,) = c.fixed(c[4], 2)
        key, value = c.call("cat", [c[4], key], 2), c.call("cat", [c[5], value], 2)
    scale = c.real("scale", 0.0) if c.has("scale") else None
    mask = _mask(c, query, key, length, past)
    cap = c.real("softcap", 0.0)
    products: Operand | None = None
    if cap or c.uses(3):
        y, products = _apart(c, query, key, value, mask, scale, cap)
    else:
        grouped = c.fixed(query, 1) != c.fixed(key, 1)
        causal = bool(c.integer("is_causal", 0)) and mask is None
        y = c.call(
            "scaled_dot_product_attention", query, key, value, mask, 0.0, causal, scale=scale, enable_gqa=grouped
        )
    if flat:
        batch, heads, rows, size = c.shape(y)
        y = reshaped(c, c.call("transpose.int", y, 1, 2), [batch, rows, heads * size])
    return [y, key, value, products]


def _heads(c: Call, index: int, name: str) -> Operand:
    """Return queries, keys or values as `[batch, heads, rows, features]`."""
    x = c[index]
    if c.rank(x) == 4:
        return x
    batch, rows, features = c.shape(x)
    heads = c.integer(name)
    return c.call("transpose.int", reshaped(c, x, [batch, rows, heads, features // heads]), 1, 2)


def _mask(c: Call, query: Operand, key: Operand, length: int, past: int) -> Operand | None:
    """Return what is masked, None if nothing is but what lies ahead."""
    given = c.get(3)
    if not c.integer("is_causal", 0) or (given is None and not past):
        return given
    (keys,) = c.fixed(key, 2)
    seen = c.call("tril", c.call("ones", [length, keys], dtype=torch.bool), past)
    if given is None:
        return seen
    if c.type(given).dtype == torch.bool:
        return c.call("logical_and", seen, given)
    return c.call("where.ScalarOther", seen, given, float("-inf"))


def _apart(
    c: Call, query: Operand, key: Operand, value: Operand, mask: Operand | None, scale: float | None, cap: float
) -> tuple[Operand, Operand]:
    """Return attention whose scores are told, or held within bounds by a hyperbolic tangent; and the scores."""
    heads, kept = c.fixed(query, 1)[0], c.fixed(key, 1)[0]
    if heads != kept:
        key, value = (c.call("repeat_interleave.self_int", part, heads // kept, 1) for part in (key, value))
    factor = 1 / math.sqrt(c.fixed(query, 3)[0]) if scale is None else scale
    bare = c.call("mul.Tensor", c.call("matmul", query, c.call("transpose.int", key, 2, 3)), factor)
    scores = c.call("mul.Tensor", c.call("tanh", c.call("div.Tensor", bare, cap)), cap) if cap else bare
    if mask is None and c.integer("is_causal", 0):
        mask = c.call("tril", c.call("ones", [c.fixed(query, 2)[0], c.fixed(key, 2)[0]], dtype=torch.bool))
    if mask is not None and c.type(mask).dtype == torch.bool:
        scores = c.call("masked_fill.Scalar", scores, c.call("logical_not", mask), float("-inf"))
    elif mask is not None:
        scores = c.call("add.Tensor", scores, mask)
    weights = c.call("_safe_softmax", scores, -1)  # a row with everything masked is zeros
    return c.call("matmul", weights, value), weights if c.integer("qk_matmul_output_mode", 0) == 3 else bare


OPERATORS: Table = {"Attention": _attention}
"""Attention."""
