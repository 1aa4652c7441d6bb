"""Calls of the operators in the table that have no axis rule, beside those of `tests.axes.calls`."""

from __future__ import annotations

import torch

from tests.axes.calls import CALLS, GRU, IMAGE, INDEX, LSTM, MASK, RNN, SEQUENCE, Call, X, Y


def _call(op: str, *args: object, **kwargs: object) -> Call:
    return f"aten.{op}" if "." in op else f"aten.{op}.default", args, kwargs


SQUARE, FLAT, BATCHES = "f64[4, 4]", "f64[24]", torch.tensor([5, 4])

MORE: list[Call] = [
    # products
    _call("_convolution", IMAGE, "f64[5, 6, 3, 3]", "f64[5]", (1, 1), (0, 0), (1, 1), False, (0, 0), 1, *[False] * 4),
    _call("inner", X, "f64[3, 6]"),
    _call("kron", X, "f64[2, 3]"),
    _call("linalg_matmul", X, "f64[6, 3]"),
    *(_call(op, Y, "f64[3]") for op in ("outer", "ger")),
    _call("addbmm", "f64[4, 3]", "f64[5, 4, 6]", "f64[5, 6, 3]"),
    _call("addmv", "f64[4]", X, Y),
    # recurrent nets
    _call("lstm_cell", "f64[3, 4]", ("f64[3, 5]", "f64[3, 5]"), "f64[20, 4]", "f64[20, 5]"),
    _call("gru_cell", "f64[3, 4]", "f64[3, 5]", "f64[15, 4]", "f64[15, 5]"),
    *(_call(f"rnn_{kind}_cell", "f64[3, 4]", "f64[3, 5]", "f64[5, 4]", "f64[5, 5]") for kind in ("tanh", "relu")),
    _call("lstm.data", "f64[9, 4]", BATCHES, ("f64[1, 5, 5]", "f64[1, 5, 5]"), LSTM, True, 1, 0.0, False, False),
    *(
        _call(f"{net}.data", "f64[9, 4]", BATCHES, "f64[1, 5, 5]", weights, True, 1, 0.0, False, False)
        for net, weights in (("gru", GRU), ("rnn_tanh", RNN), ("rnn_relu", RNN))
    ),
    # copies and casts
    *(_call(op, X) for op in ("alias_copy", "detach_copy", "lift", "resolve_conj", "resolve_neg", "positive", "zero")),
    *(_call(f"_cast_{kind}", X) for kind in ("Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")),
    _call("to.dtype", X, torch.float32),
    # reshapes and permutations
    _call("_reshape_alias", X, (3, 8), (8, 1)),
    *(_call(op, X, (3, 8)) for op in ("_reshape_copy", "view_copy")),
    _call("squeeze_copy", "f64[4, 1, 6]"),
    _call("unsqueeze_copy", X, 1),
    *(_call(op, X) for op in ("adjoint", "mH", "matrix_H", "t_copy")),
    _call("permute_copy", SEQUENCE, (2, 0, 1)),
    _call("transpose_copy.int", SEQUENCE, 0, -1),
    *(_call(f"atleast_{n}d", Y) for n in (1, 2, 3)),
    *(_call(f"atleast_{n}d.Sequence", (X, Y)) for n in (1, 2, 3)),
    # repeats, joins and cuts
    _call("expand_copy", "f64[4, 1]", (4, 6)),
    _call("expand", X, (4, 6)),
    _call("repeat", X, (1, 1)),
    _call("repeat_interleave.self_Tensor", Y, "i64[6]"),
    _call("meshgrid", (Y, "f64[3]")),
    _call("cartesian_prod", (Y, "f64[3]")),
    _call("cat", (X,)),
    *(_call(op, (X, X)) for op in ("column_stack", "dstack", "hstack", "row_stack", "vstack", "block_diag")),
    _call("column_stack", (X,)),
    *(_call(f"{op}.int", SEQUENCE, 2) for op in ("hsplit", "dsplit", "vsplit")),
    _call("narrow_copy", X, 1, 2, 3),
    _call("split_copy.Tensor", X, 4, 1),
    _call("split.Tensor", X, 9, 1),
    *(_call(op, X, (2, 4), 1) for op in ("split_with_sizes_copy", "unsafe_split_with_sizes")),
    _call("select_copy.int", X, 0, 1),
    _call("slice_copy.Tensor", X, 1, 2, 5),
    _call("unbind_copy.int", X, 1),
    *(_call(op, SEQUENCE, 0, 1, 2) for op in ("diagonal", "diagonal_copy")),
    _call("unfold_copy", X, 1, 3, 2),
    # pads and picks
    _call("_pad_enum", IMAGE, (1, 2, 1, 0), 1),
    _call("_pad_circular", IMAGE, (1, 2, 0, 1)),
    _call("native_channel_shuffle", IMAGE, 3),
    *(_call(op, X) for op in ("fliplr", "flipud", "rot90", "fft_fftshift", "fft_ifftshift", "diagflat", "diag_embed")),
    _call("diag", SQUARE),
    *(_call(op, X, (2, 3), (1, 4)) for op in ("as_strided", "as_strided_copy")),
    _call("masked_select", X, MASK),
    _call("take", X, INDEX),
    _call("_unsafe_index.Tensor", X, (None, INDEX)),
    # writes
    _call("as_strided_scatter", X, "f64[2, 3]", (2, 3), (1, 4)),
    _call("diagonal_scatter", SQUARE, "f64[4]"),
    _call("_unsafe_index_put", X, (None, INDEX), "f64[4, 3]"),
    _call("masked_scatter", X, MASK, FLAT),
    _call("put", X, INDEX, "f64[3]"),
    _call("index_fill.int_Scalar", X, 1, INDEX, 2.0),
    _call("index_fill.int_Tensor", X, 1, INDEX, "f64[]"),
    _call("fill.Tensor", X, "f64[]"),
    _call("copy", X, X),
    *(_call(op, X, (3, 2), (2, 1)) for op in ("new_empty_strided",)),
    _call("rrelu", X, 0.1, 0.3, False),
    # sums
    *(_call(op, SQUARE) for op in ("trace", "diff")),
    _call("sum_to_size", X, (1, 6)),
    _call("unfold_backward", "f64[4, 2, 3]", (4, 6), 1, 3, 3),
    _call("max_pool2d", IMAGE, (3, 3), (2, 2), (1, 1)),
    _call("max_pool3d", "f64[6, 4, 4, 4]", (2, 2, 2), (1, 1, 1)),
]

EVERY = [*(c for c in CALLS if c[1][1:] != ((INDEX, None, INDEX),)), *MORE]
"""All calls but the one whose index is, for numbers drawn here, beyond the end."""
