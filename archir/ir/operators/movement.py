"""Operators that move data: copies, reshapes, permutations, joins, cuts and pads."""

from __future__ import annotations

from collections.abc import Mapping

from archir.ir.operators.operator import SELF, TENSORS, Kind, Layer, Movement, Operator, alike


def _moves(how: Movement, linear: frozenset[str] = SELF, unless: str = "") -> Operator:
    return Operator(linear=linear, unless=unless, moves=how)


OPERATORS: Mapping[str, Operator] = {
    **alike(
        """
        alias alias_copy clone contiguous detach detach_copy lift lift_fresh lift_fresh_copy resolve_conj resolve_neg
        """,
        Operator(pointwise=True, linear=SELF, moves=Movement.COPY),
    ),
    **alike("to _to_copy type_as _cast_Double _cast_Float _cast_Half", _moves(Movement.CAST)),
    **alike("_cast_Byte _cast_Char _cast_Int _cast_Long _cast_Short", Operator(moves=Movement.CAST)),
    **alike(
        """
        ravel reshape reshape_as _reshape_alias _reshape_copy squeeze squeeze_copy unflatten _unsafe_view unsqueeze
        unsqueeze_copy view view_as view_copy
        """,
        _moves(Movement.RESHAPE),
    ),
    "flatten": Operator(
        linear=SELF,
        moves=Movement.RESHAPE,
        layer=Layer(Kind.SHAPE, "Flatten", options=("start_dim", "end_dim")),
    ),
    **alike("view.dtype view_copy.dtype"),
    **alike(
        """
        adjoint mH mT matrix_H moveaxis movedim numpy_T permute permute_copy swapaxes swapdims t t_copy transpose
        transpose_copy
        """,
        _moves(Movement.PERMUTE),
    ),
    **alike(
        "broadcast_to expand expand_as expand_copy repeat repeat_interleave tile",
        _moves(Movement.REPEAT),
    ),
    "repeat_interleave.Tensor": Operator(),
    **alike("broadcast_tensors meshgrid", _moves(Movement.REPEAT, TENSORS)),
    **alike(
        "cat concat concatenate column_stack dstack hstack row_stack stack vstack",
        _moves(Movement.JOIN, TENSORS),
    ),
    **alike(
        """
        chunk dsplit hsplit narrow narrow_copy split split_copy split_with_sizes split_with_sizes_copy tensor_split
        unsafe_chunk unsafe_split unsafe_split_with_sizes vsplit select select_copy slice slice_copy unbind unbind_copy
        diagonal diagonal_copy unfold unfold_copy
        """,
        _moves(Movement.CUT),
    ),
    **alike("constant_pad_nd pad _pad_enum", _moves(Movement.PAD, unless="value")),
    **alike(
        """
        _pad_circular reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
        replication_pad3d
        """,
        _moves(Movement.PAD),
    ),
    **alike(
        """
        channel_shuffle native_channel_shuffle flip fliplr flipud im2col pixel_unshuffle roll rot90 tril triu diag
        fft_fftshift fft_ifftshift as_strided as_strided_copy repeat_interleave.self_Tensor
        """,
        _moves(Movement.PICK),
    ),
    "pixel_shuffle": Operator(
        linear=SELF,
        moves=Movement.PICK,
        layer=Layer(Kind.SHAPE, "PixelShuffle", options=("upscale_factor",)),
    ),
    **alike(
        "as_strided_scatter diagonal_scatter select_scatter slice_scatter",
        _moves(Movement.WRITE, frozenset({"self", "src"})),
    ),
    "copy": Operator(pointwise=True, linear=frozenset({"src"}), moves=Movement.WRITE),
    **alike("diag_embed diagflat", _moves(Movement.WRITE)),
    "block_diag": _moves(Movement.WRITE, TENSORS),
    "cartesian_prod": _moves(Movement.JOIN, TENSORS),
    **alike("atleast_1d atleast_2d atleast_3d", _moves(Movement.RESHAPE)),
    **alike("atleast_1d.Sequence atleast_2d.Sequence atleast_3d.Sequence", _moves(Movement.REPEAT, TENSORS)),
    "col2im": Operator(linear=SELF),
    "unfold_backward": Operator(linear=frozenset({"grad_in"})),
    **alike(
        """
        view_as_complex view_as_complex_copy view_as_real view_as_real_copy _neg_view _neg_view_copy _conj_copy
        """
    ),
}
