"""Which operators are linear, and in which of their arguments: what forward mode can do by calling them again."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from archir.ir import ops
from archir.ir.node import Node

_FIRST = (
    *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "numpy_T", "mT", "T"),
    *("movedim", "moveaxis", "swapaxes", "squeeze", "unsqueeze", "expand", "expand_as", "view_as", "reshape_as"),
    *("repeat", "tile", "repeat_interleave", "slice", "select", "narrow", "index_select", "gather", "take_along_dim"),
    *("split", "split_with_sizes", "chunk", "unbind", "tensor_split", "index", "roll", "flip", "tril", "triu"),
    *("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "positive", "neg", "im2col", "col2im", "diagonal"),
    *("mean", "sum", "cumsum", "trace", "unfold", "rot90"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d"),
    *("upsample_bicubic2d", "upsample_trilinear3d"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
    *("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"),
)

LINEAR: Mapping[str, frozenset[str]] = MappingProxyType(
    {name: frozenset({"self", "input"}) for name in _FIRST}
    | {name: frozenset({"tensors"}) for name in ("cat", "concat", "stack", "hstack", "vstack")}
    | {name: frozenset({"self", "other"}) for name in ("add", "sub")}
)
"""For operators linear in some arguments taken together: these arguments; by name without overload."""

MULTILINEAR: Mapping[str, frozenset[str]] = MappingProxyType(
    {f"conv{kind}{n}d": frozenset({"input", "weight"}) for kind in ("", "_transpose") for n in (1, 2, 3)}
    | {name: frozenset({"self", "other", "mat2"}) for name in ("matmul", "mul", "bmm", "mm")}
    | {name: frozenset({"self", "vec", "tensor"}) for name in ("mv", "dot")}
    | {
        "linear": frozenset({"input", "weight"}),
        "convolution": frozenset({"input", "weight"}),
        "einsum": frozenset({"tensors"}),
        "embedding": frozenset({"weight"}),
    }
)
"""For operators linear in each of some arguments while the others stand still, once any bias is left out."""

IDENTITIES = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})
"""Operators that change nothing in evaluation mode."""

RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
"""Operators whose fast kernels have no forward mode."""


def short_name(node: Node) -> str:
    """Return the name of an ATen operator without its overload; empty for others."""
    space, _, rest = node.op.partition(".")
    return rest.partition(".")[0] if space == "aten" else ""


def is_linear(node: Node) -> bool:
    """Say whether a call is linear in the arguments that `LINEAR` names, its own constants considered."""
    name = short_name(node)
    if name == "pad" and node.argument("mode") != "constant":
        return True
    if name in ("pad", "constant_pad_nd"):
        return not node.argument("value")
    if name in ("to", "_to_copy", "type_as"):
        return True
    return name in LINEAR


def linear_arguments(node: Node) -> frozenset[str]:
    """Return the arguments a linear call is linear in."""
    return LINEAR.get(short_name(node), frozenset({"self", "input"}))


def is_pointwise(node: Node) -> bool:
    """Say whether a call works element by element and is not better called again on the tangent."""
    return ops.is_pointwise(node.op) and not is_linear(node)
