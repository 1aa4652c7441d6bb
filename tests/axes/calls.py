"""One call or more of every operator that has an axis rule: `"f64[2, 3]"` stands for a stored tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

Call = tuple[str, Sequence[Any], Mapping[str, Any]]


def _call(op: str, *args: Any, **kwargs: Any) -> Call:
    return f"aten.{op}" if op.count(".") else f"aten.{op}.default", args, kwargs


X, Y, MASK, INDEX = "f64[4, 6]", "f64[6]", "bool[4, 6]", "i64[3]"
IMAGE, SEQUENCE, VOLUME = "f64[2, 6, 4, 4]", "f64[2, 6, 8]", "f64[2, 6, 4, 4, 4]"
LSTM, GRU, RNN = ((f"f64[{n}, 4]", f"f64[{n}, 5]", f"f64[{n}]", f"f64[{n}]") for n in (20, 15, 5))
STATE = "f64[1, 3, 5]"

CALLS: list[Call] = [
    # pointwise
    _call("relu", X),
    _call("add.Tensor", X, Y),
    _call("add.Tensor", "f64[4, 1]", Y),
    _call("add.Tensor", X, 2.0),
    _call("sub.Tensor", X, X, alpha=2),
    _call("mul.Tensor", X, Y),
    _call("mul.Tensor", X, 2.0),
    _call("div.Tensor", X, Y),
    _call("div.Tensor_mode", X, 2.0, rounding_mode="floor"),
    _call("where.self", MASK, X, Y),
    _call("lerp.Tensor", X, X, Y),
    _call("prelu", X, Y),
    _call("prelu", X, "f64[1]"),
    _call("broadcast_tensors", (X, Y)),
    *(_call(op, X) for op in ("absolute", "arctan", "conj", "hardswish", "log_sigmoid", "negative", "gelu", "neg")),
    *(_call(op, X, Y) for op in ("copy", "floor_divide", "isclose", "where.ScalarSelf") if "." not in op),
    *(_call(f"{op}.Tensor", X, Y) for op in ("divide", "greater", "greater_equal", "less", "less_equal", "multiply")),
    *(_call(f"{op}.Tensor", X, Y) for op in ("not_equal", "rsub", "subtract")),
    *(_call(f"{op}.Scalar", X, 2.0) for op in ("divide", "fill", "floor_divide", "greater", "greater_equal", "less")),
    *(_call(f"{op}.Scalar", X, 2.0) for op in ("less_equal", "multiply", "not_equal", "subtract", "true_divide")),
    _call("masked_fill.Tensor", X, MASK, "f64[]"),
    _call("clip", X, 0.0, 1.0),
    _call("bernoulli", "f64[4, 6]"),
    _call("bernoulli.p", X, 0.0),
    _call("where.Scalar", MASK, 1.0, 2.0),
    _call("where.ScalarSelf", MASK, 1.0, X),
    _call("where.ScalarOther", MASK, X, 1.0),
    *(_call(op, X) for op in ("empty_like", "ones_like", "rand_like", "randn_like", "zeros_like")),
    _call("full_like", X, 2.0),
    # products
    _call("linear", SEQUENCE, "f64[3, 8]", "f64[3]"),
    _call("linear", X, Y),
    _call("matmul", "f64[5, 4, 6]", "f64[6, 3]"),
    _call("matmul", "f64[6]", "f64[5, 6, 3]"),
    _call("mm", X, "f64[6, 3]"),
    _call("bmm", "f64[5, 4, 6]", "f64[5, 6, 3]"),
    _call("mv", X, Y),
    _call("dot", Y, Y),
    _call("addmm", "f64[3]", X, "f64[6, 3]", beta=2),
    _call("baddbmm", "f64[5, 4, 3]", "f64[5, 4, 6]", "f64[5, 6, 3]"),
    _call("bilinear", X, "f64[4, 5]", "f64[3, 6, 5]", "f64[3]"),
    _call("einsum", "bhd,hde->bhe", ("f64[4, 2, 3]", "f64[2, 3, 5]")),
    _call("einsum", "...ij,...j->...i", ("f64[5, 4, 6]", "f64[6]")),
    _call("einsum", "ij,jk", (X, "f64[6, 3]")),
    _call("einsum", "ij->j", (X,)),
    # convolutions
    *(
        _call(f"conv{n}d", x, f"f64[5, 6, {', '.join('3' * n)}]", "f64[5]")
        for n, x in ((1, SEQUENCE), (2, IMAGE), (3, VOLUME))
    ),
    *(
        _call(f"conv{n}d.padding", x, f"f64[6, 2, {', '.join('3' * n)}]", "f64[6]", padding="same", groups=3)
        for n, x in ((1, SEQUENCE), (2, IMAGE), (3, VOLUME))
    ),
    *(
        _call(f"conv_transpose{n}d.{o}", x, f"f64[6, 5, {', '.join('3' * n)}]", "f64[5]")
        for n, o, x in ((1, "default", SEQUENCE), (2, "input", IMAGE), (3, "input", VOLUME))
    ),
    _call("conv2d", IMAGE, "f64[6, 1, 3, 3]", None, (1, 1), (1, 1), (1, 1), 6),
    _call("conv2d", IMAGE, "f64[4, 3, 1, 1]", None, (1, 1), (0, 0), (1, 1), 2),
    _call("conv2d", "f64[6, 4, 4]", "f64[5, 6, 3, 3]"),
    _call("conv_transpose2d.input", IMAGE, "f64[6, 2, 3, 3]", "f64[6]", groups=3),
    _call("conv_transpose2d.input", IMAGE, "f64[6, 1, 3, 3]", "f64[6]", groups=6),
    _call("convolution", IMAGE, "f64[5, 6, 3, 3]", None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1),
    _call("convolution", IMAGE, "f64[6, 5, 3, 3]", "f64[5]", (1, 1), (0, 0), (1, 1), True, (0, 0), 1),
    # normalisations
    _call("batch_norm", IMAGE, Y, Y, Y, "f64[6]", False, 0.1, 1e-5, True),
    _call("batch_norm", SEQUENCE, None, None, None, None, True, 0.1, 1e-5, True),
    _call("_native_batch_norm_legit_no_training", IMAGE, Y, Y, Y, "f64[6]", 0.1, 1e-5),
    _call("instance_norm", IMAGE, Y, Y, None, None, True, 0.1, 1e-5, True),
    _call("group_norm", IMAGE, 3, Y, Y),
    _call("layer_norm", X, (6,), Y, Y),
    _call("layer_norm", X, (4, 6)),
    _call("rms_norm", X, (6,), Y),
    _call("softmax.int", X, -1),
    _call("log_softmax.int", X, 0),
    # attention
    _call("scaled_dot_product_attention", *["f64[2, 3, 4, 5]"] * 2, "f64[2, 3, 4, 6]", "f64[4, 4]"),
    _call("scaled_dot_product_attention", *["f64[2, 3, 4, 5]"] * 3, scale=0.5),
    _call("scaled_dot_product_attention", "f64[2, 6, 4, 5]", *["f64[2, 3, 4, 5]"] * 2, enable_gqa=True),
    # joins
    _call("cat", (X, "f64[4, 3]"), 1),
    _call("concat", (X, "f64[2, 6]")),
    _call("concatenate", (X, "f64[2, 6]"), -2),
    _call("stack", (X, X), 1),
    _call("split.Tensor", X, 4, 1),
    _call("split.sizes", X, (2, 4), -1),
    _call("split_with_sizes", X, (2, 4), 1),
    _call("chunk", X, 2, 1),
    _call("unsafe_split.Tensor", X, 4, 1),
    _call("unsafe_chunk", X, 2, 1),
    _call("tensor_split.sections", X, 2, 1),
    _call("tensor_split.indices", X, (2, 3), 1),
    _call("glu", X),
    _call("unbind.int", "f64[4, 2]", 1),
    _call("select.int", X, 0, 1),
    _call("slice.Tensor", X, 1, 2, 5),
    _call("slice.Tensor", X, 1, -3),
    _call("slice.Tensor", X, 1, 0, 6),
    _call("slice.Tensor", X, 1, 0, 6, 2),
    _call("narrow", X, 1, 2, 3),
    _call("narrow", X, 1, 0, 6),
    _call("index_select", X, 1, INDEX),
    _call("pad", X, (1, 2), "constant", 1.0),
    _call("pad", X, (1, 2, 0, 0)),
    _call("pad", IMAGE, (1, 2, 0, 0), "reflect"),
    _call("pad", IMAGE, (-1, 0)),
    _call("constant_pad_nd", X, (0, 0, 1, 0)),
    *(
        _call(f"{kind}_pad{n}d", x, (1, 1) * n)
        for kind in ("reflection", "replication")
        for n, x in ((1, SEQUENCE), (2, IMAGE), (3, VOLUME))
    ),
    # reshapes
    *(_call(op, SEQUENCE, (2, 48)) for op in ("view", "reshape", "_unsafe_view")),
    _call("view", X, (4, 2, 3)),
    _call("view", "f64[6, 4]", (4, 6)),
    _call("view", "f64[6, 6]", (4, 9)),
    _call("ravel", X),
    _call("view_as", X, "f64[24]"),
    _call("reshape_as", X, "f64[4, 2, 3]"),
    _call("flatten.using_ints", SEQUENCE, 1),
    _call("unflatten.int", X, 1, (2, -1)),
    _call("expand", "f64[4, 1]", (5, -1, 6)),
    _call("broadcast_to", "f64[4, 1]", (4, 6)),
    _call("expand_as", "f64[4, 1]", X),
    _call("permute", SEQUENCE, (2, 0, 1)),
    *(_call(op, SEQUENCE, 0, -1) for op in ("transpose.int", "swapaxes", "swapdims", "movedim.int", "moveaxis.int")),
    *(_call(op, SEQUENCE, (0, 1), (-1, 0)) for op in ("movedim.intlist", "moveaxis.intlist")),
    *(_call(op, X) for op in ("t", "mT", "numpy_T")),
    _call("squeeze", "f64[1, 4, 1, 6]"),
    _call("squeeze.dim", "f64[4, 1, 6]", 1),
    _call("squeeze.dim", X, 1),
    _call("squeeze.dims", "f64[1, 4, 1]", (0, 2)),
    _call("unsqueeze", X, -1),
    _call("repeat_interleave.self_int", X, 2, 1, output_size=12),
    _call("repeat_interleave.self_int", X, 2, -1),
    _call("repeat", X, (2, 1, 3)),
    _call("tile", X, (3,)),
    *(_call(op, X) for op in ("contiguous", "clone", "detach", "alias", "lift_fresh", "lift_fresh_copy", "_to_copy")),
    _call("to.dtype", X, torch.float64),
    _call("to.dtype", X, torch.int64),
    _call("to.dtype_layout", X, dtype=torch.float64),
    _call("to.other", X, Y),
    _call("type_as", X, Y),
    *(_call(op, X, 0.5, False) for op in ("dropout", "alpha_dropout")),
    *(_call(op, IMAGE, 0.5, False) for op in ("feature_dropout", "feature_alpha_dropout")),
    _call("roll", X, (1,), (1,)),
    _call("roll", X, (1,)),
    _call("flip", X, (0,)),
    *(_call(op, X, 1) for op in ("cumsum", "cumprod", "logcumsumexp")),
    _call("sort", X),
    *(_call(op, X) for op in ("tril", "triu")),
    # reductions
    *(_call(op, X, (1,)) for op in ("mean.dim", "sum.dim_IntList", "nansum", "amax", "amin", "logsumexp", "any.dims")),
    *(_call(op, X, (1,), True) for op in ("mean.dim", "sum.dim_IntList", "var.dim", "std.dim", "all.dims")),
    *(_call(op, X, 1) for op in ("max.dim", "min.dim", "any.dim", "all.dim", "prod.dim_int", "argmax", "argmin")),
    *(_call(op, X) for op in ("mean", "sum", "max", "min", "any", "all", "prod", "var", "std", "var_mean", "std_mean")),
    *(_call(op, X, (0,)) for op in ("var.correction", "std.correction", "var_mean.correction", "std_mean.correction")),
    *(_call(op, X, (-1,), True) for op in ("var_mean.dim", "std_mean.dim")),
    _call("linalg_vector_norm", X, 2, (1,), True),
    _call("norm.Scalar", X),
    _call("norm.ScalarOpt_dim", X, 2, (1,)),
    # spatial
    *(
        _call(f"{kind}_pool{n}d", x, (2,) * n)
        for kind in ("avg", "max")
        for n, x in ((1, SEQUENCE), (2, IMAGE), (3, VOLUME))
    ),
    *(
        _call(f"adaptive_{kind}_pool{n}d", x, (2,) * n)
        for kind in ("avg", "max")
        for n, x in ((1, SEQUENCE), (2, IMAGE), (3, VOLUME))
    ),
    *(_call(f"max_pool{n}d_with_indices", x, (2,) * n) for n, x in ((1, SEQUENCE), (2, IMAGE), (3, VOLUME))),
    *(_call(f"_adaptive_avg_pool{n}d", x, (2,) * n) for n, x in ((2, IMAGE), (3, VOLUME))),
    *(
        _call(f"{prefix}{n}d", x, (8,) * n)
        for prefix in ("upsample_nearest", "_upsample_nearest_exact")
        for n, x in ((1, SEQUENCE), (2, IMAGE), (3, VOLUME))
    ),
    *(
        _call(f"{prefix}{n}d.vec", x, (8,) * n, None)
        for prefix in ("upsample_nearest", "_upsample_nearest_exact")
        for n, x in ((1, SEQUENCE), (2, IMAGE), (3, VOLUME))
    ),
    *(
        _call(f"{kind}{o}", x, size, False, *([None] if o else []))
        for kind, x, size in (
            ("upsample_linear1d", SEQUENCE, (4,)),
            ("upsample_bilinear2d", IMAGE, (8, 8)),
            ("upsample_bicubic2d", IMAGE, (8, 8)),
            ("upsample_trilinear3d", VOLUME, (2, 2, 2)),
            ("_upsample_bilinear2d_aa", IMAGE, (8, 8)),
            ("_upsample_bicubic2d_aa", IMAGE, (8, 8)),
        )
        for o in ("", ".vec")
    ),
    _call("pixel_shuffle", "f64[2, 8, 3, 3]", 2),
    _call("pixel_unshuffle", IMAGE, 2),
    _call("channel_shuffle", IMAGE, 3),
    _call("grid_sampler", IMAGE, "f64[2, 3, 3, 2]", 0, 0, False),
    _call("im2col", IMAGE, (2, 2), (1, 1), (0, 0), (1, 1)),
    _call("col2im", "f64[2, 24, 9]", (4, 4), (2, 2), (1, 1), (0, 0), (1, 1)),
    # sources
    _call("embedding", X, "i64[2, 3]"),
    _call("add.Tensor", X, Y),
    *(_call(op, (4, 6), dtype=torch.float64) for op in ("zeros", "ones", "empty.memory_format", "rand", "randn")),
    _call("full", (4, 6), 1.0, dtype=torch.float64),
    *(_call(op, X, (3, 2)) for op in ("new_zeros", "new_ones", "new_empty")),
    _call("new_full", X, (3, 2), 2.0),
    _call("arange", 6),
    _call("arange.start", 1, 6),
    _call("arange.start_step", 1, 6, 2),
    _call("linspace", 0, 1, 6),
    _call("eye", 4),
    _call("eye.m", 4, 3),
    *(_call(op, 3, 3) for op in ("tril_indices", "triu_indices")),
    # indexing
    _call("index.Tensor", SEQUENCE, (None, INDEX)),
    _call("index.Tensor", SEQUENCE, (INDEX, None, INDEX)),
    _call("index_put", X, (None, INDEX), "f64[4, 3]"),
    _call("index_put", X, (INDEX,), "f64[3, 6]", True),
    _call("index_put", X, (MASK,), "f64[]"),
    _call("gather", X, 1, "i64[4, 3]"),
    _call("take_along_dim", X, "i64[4, 3]", 1),
    _call("scatter.src", X, 1, "i64[4, 3]", "f64[4, 3]"),
    _call("scatter.value", X, 1, "i64[4, 3]", 2.0),
    _call("scatter.reduce", X, 1, "i64[4, 3]", "f64[4, 3]", reduce="add"),
    _call("scatter.value_reduce", X, 1, "i64[4, 3]", 2.0, reduce="multiply"),
    _call("scatter_add", X, 1, "i64[4, 3]", "f64[4, 3]"),
    _call("scatter_reduce.two", X, 1, "i64[4, 3]", "f64[4, 3]", "sum"),
    *(_call(op, X, 0, INDEX, "f64[3, 6]") for op in ("index_add", "index_copy")),
    _call("index_reduce", X, 0, INDEX, "f64[3, 6]", "mean"),
    _call("select_scatter", X, Y, 0, 1),
    _call("slice_scatter", X, "f64[4, 3]", 1, 2, 5),
    _call("slice_scatter", X, X, 1, 0, 6),
    _call("embedding_bag.padding_idx", X, INDEX, "i64[2]", False, 0, False, None, False, None),
    _call("one_hot", INDEX, 4),
    _call("unfold", X, 1, 3, 1),
    # recurrent nets
    _call("lstm.input", "f64[2, 3, 4]", (STATE, STATE), LSTM, True, 1, 0.0, False, False, False),
    _call("gru.input", "f64[2, 3, 4]", STATE, GRU, True, 1, 0.0, False, False, False),
    _call("rnn_tanh.input", "f64[2, 3, 4]", STATE, RNN, True, 1, 0.0, False, False, False),
    _call("rnn_relu.input", "f64[2, 3, 4]", STATE, RNN, True, 1, 0.0, False, False, False),
]
