"""The operators a graph may call: a closed list.

A file names operators, and analysing or running it calls them; so a name is looked up here, never in a Python module or
among all operators of torch. An operator of this list computes tensors or numbers from its arguments and does nothing
else: it writes into no argument, opens no file, changes no setting. Anything else is refused, whoever makes the graph.

- `_ATEN` names ATen operators by family; of each, the overloads whose schema is that of a function (`is_function`).
- `archir.ir.arithmetic` lists the arithmetic on run-time sizes.
- `admit` adds an operator of the user's own to those of this process, as `torch.library` did when it was defined.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from archir.errors import GraphError, suggest
from archir.ir.arithmetic import ARITHMETIC

_POINTWISE = """
    abs absolute acos acosh add addcdiv addcmul angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh
    atan atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil celu
    clamp clamp_max clamp_min clip complex conj conj_physical _conj copysign cos cosh deg2rad digamma div divide elu eq
    erf erfc erfinv exp exp2 expm1 fix float_power floor floor_divide fmax fmin fmod frac frexp gcd ge gelu glu greater
    greater_equal gt hardshrink hardsigmoid hardswish hardtanh heaviside hypot i0 igamma igammac imag isclose isfinite
    isinf isnan isneginf isposinf isreal lcm ldexp le leaky_relu lerp less less_equal lgamma log log10 log1p log2
    log_sigmoid logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit lt masked_fill maximum minimum
    mish mul multiply mvlgamma nan_to_num ne neg negative nextafter not_equal polar polygamma positive pow prelu
    _prelu_kernel rad2deg real reciprocal relu relu6 remainder round rsqrt rsub selu sgn sigmoid sign signbit silu sin
    sinc sinh softplus softshrink special_bessel_j0 special_bessel_j1 special_digamma special_entr special_erf
    special_erfc special_erfcx special_erfinv special_exp2 special_expit special_expm1 special_gammainc
    special_gammaincc special_gammaln special_i0 special_i0e special_i1 special_i1e special_log1p special_log_ndtr
    special_logit special_multigammaln special_ndtr special_ndtri special_polygamma special_psi special_round
    special_sinc special_xlog1py special_xlogy special_zeta special_airy_ai
    special_bessel_y0 special_bessel_y1 special_chebyshev_polynomial_t special_chebyshev_polynomial_u
    special_chebyshev_polynomial_v special_chebyshev_polynomial_w special_hermite_polynomial_h
    special_hermite_polynomial_he special_laguerre_polynomial_l special_legendre_polynomial_p special_modified_bessel_i0
    special_modified_bessel_i1 special_modified_bessel_k0 special_modified_bessel_k1 special_scaled_modified_bessel_k0
    special_scaled_modified_bessel_k1 special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u
    special_shifted_chebyshev_polynomial_v special_shifted_chebyshev_polynomial_w special_spherical_bessel_j0
    sqrt square sub subtract tan tanh threshold true_divide
    trunc where xlogy __and__ __lshift__ __or__ __rshift__ __xor__
"""
_PRODUCTS = """
    addbmm addmm addmv addr baddbmm bilinear bmm chain_matmul dot einsum inner kron linalg_matmul linalg_multi_dot
    linalg_vecdot linear matmul mm mv outer tensordot vdot _trilinear cdist _cdist_forward _euclidean_dist
    cosine_similarity pairwise_distance pdist cross linalg_cross ger _int_mm
    conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution
    scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
    gru gru_cell lstm lstm_cell rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell
    _pack_padded_sequence _pad_packed_sequence pad_sequence
"""
_NORMALISATION = """
    batch_norm native_batch_norm _native_batch_norm_legit_functional _native_batch_norm_legit_no_training
    _batch_norm_impl_index group_norm native_group_norm instance_norm layer_norm native_layer_norm rms_norm
    _fused_rms_norm renorm norm_except_dim _weight_norm _weight_norm_interface
    softmax _softmax _safe_softmax _masked_softmax log_softmax _log_softmax special_softmax special_log_softmax
    alpha_dropout dropout feature_alpha_dropout feature_dropout native_dropout _fused_dropout
"""
_REDUCTIONS = """
    all allclose amax amin aminmax _aminmax any argmax argmin argsort bincount count_nonzero cummax cummin cumprod
    cumsum cumulative_trapezoid diff dist equal frobenius_norm histc kthvalue linalg_matrix_norm linalg_norm
    linalg_vector_norm logcumsumexp logsumexp max mean median min mode msort nanmean nanmedian nanquantile nansum norm
    nuclear_norm prod quantile sort special_logsumexp std std_mean sum sum_to_size topk trace trapezoid trapz var
    var_mean histogram histogramdd segment_reduce corrcoef cov is_nonzero item _local_scalar_dense _is_all_true
    _is_any_true
"""
_LINEAR_ALGEBRA = """
    cholesky cholesky_inverse cholesky_solve det inverse linalg_cholesky linalg_cholesky_ex linalg_cond linalg_det
    linalg_diagonal linalg_eig linalg_eigh linalg_eigvals linalg_eigvalsh linalg_inv linalg_inv_ex linalg_lstsq
    linalg_matrix_exp linalg_matrix_power linalg_matrix_rank linalg_pinv linalg_qr linalg_slogdet linalg_solve
    linalg_solve_ex linalg_solve_triangular linalg_svd linalg_svdvals linalg_vander logdet matrix_exp matrix_power
    pinverse qr slogdet svd triangular_solve vander _linalg_det _linalg_eigh _linalg_slogdet _linalg_solve_ex
    _linalg_svd geqrf linalg_householder_product linalg_ldl_factor linalg_ldl_factor_ex linalg_ldl_solve linalg_lu
    linalg_lu_factor linalg_lu_factor_ex linalg_lu_solve linalg_tensorinv linalg_tensorsolve lu_solve lu_unpack orgqr
    ormqr
    fft_fft fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn
    fft_ifftshift fft_ihfft fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq
    fft_rfftn _fft_c2c _fft_c2r _fft_r2c stft istft
"""
_MOVEMENT = """
    adjoint alias alias_copy as_strided as_strided_copy as_strided_scatter atleast_1d atleast_2d atleast_3d block_diag
    broadcast_tensors broadcast_to cartesian_prod cat channel_shuffle native_channel_shuffle chunk clone col2im
    column_stack concat concatenate constant_pad_nd contiguous copy detach detach_copy diag diag_embed diagflat diagonal
    diagonal_copy diagonal_scatter dsplit dstack expand expand_as expand_copy flatten flip fliplr flipud hsplit hstack
    im2col lift lift_fresh lift_fresh_copy mH mT matrix_H meshgrid moveaxis movedim narrow narrow_copy numpy_T pad
    _pad_circular _pad_enum permute permute_copy pixel_shuffle pixel_unshuffle ravel reflection_pad1d reflection_pad2d
    reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape reshape_as
    _reshape_alias _reshape_copy resolve_conj resolve_neg roll rot90 row_stack split split_copy split_with_sizes
    split_with_sizes_copy squeeze squeeze_copy stack swapaxes swapdims t t_copy tensor_split tile transpose
    transpose_copy tril triu unbind unbind_copy unflatten unfold unfold_backward unfold_copy unsafe_chunk unsafe_split
    unsafe_split_with_sizes _unsafe_view unsqueeze unsqueeze_copy view view_as view_as_complex view_as_complex_copy
    view_as_real view_as_real_copy view_copy vsplit vstack _neg_view _neg_view_copy _conj_copy
    to _to_copy type_as _cast_Byte _cast_Char _cast_Double _cast_Float _cast_Half _cast_Int _cast_Long _cast_Short
"""
_INDEXING = """
    argwhere bucketize embedding embedding_bag _embedding_bag _embedding_bag_forward_only fill gather index index_add
    index_copy index_fill index_put index_reduce index_select isin masked_scatter masked_select nonzero nonzero_numpy
    nonzero_static one_hot put scatter scatter_add scatter_reduce searchsorted select select_copy select_scatter slice
    slice_copy slice_scatter take take_along_dim unique_consecutive unique_dim unique_dim_consecutive _unique _unique2
    _unsafe_index _unsafe_index_put _unsafe_masked_index
"""
_SPATIAL = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d affine_grid_generator avg_pool1d avg_pool2d avg_pool3d
    fractional_max_pool2d fractional_max_pool3d grid_sampler grid_sampler_2d grid_sampler_3d max_pool1d
    max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d
    max_unpool3d upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_trilinear3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d
"""
_SOURCES = """
    arange bartlett_window blackman_window empty empty_like empty_permuted empty_strided eye full full_like
    hamming_window hann_window kaiser_window linspace logspace new_empty new_empty_strided new_full new_ones new_zeros
    ones ones_like range scalar_tensor tril_indices triu_indices zero zeros zeros_like
    bernoulli binomial cauchy exponential geometric log_normal multinomial normal normal_functional poisson rand
    rand_like randint randint_like randn randn_like random randperm rrelu rrelu_with_noise_functional uniform
"""
_LOSSES = """
    binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy_loss ctc_loss
    hinge_embedding_loss huber_loss kl_div l1_loss margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss
    nll_loss nll_loss2d nll_loss2d_forward nll_loss_forward nll_loss_nd poisson_nll_loss smooth_l1_loss soft_margin_loss
    triplet_margin_loss
"""
_PROPERTIES = """
    can_cast dim is_complex is_floating_point is_same_size is_signed numel size stride sym_numel sym_size sym_stride
    sym_storage_offset _shape_as_tensor
"""

MOVEMENT = frozenset(_MOVEMENT.split())
"""ATen operators that put the elements of tensors in other places, or into another type."""

_ATEN = frozenset(
    name
    for family in (
        *(_POINTWISE, _PRODUCTS, _NORMALISATION, _REDUCTIONS, _LINEAR_ALGEBRA, _MOVEMENT, _INDEXING, _SPATIAL),
        *(_SOURCES, _LOSSES, _PROPERTIES),
    )
    for name in family.split()
)
_VISION = frozenset({"deform_conv2d", "nms", "ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool"})
_LIBRARIES = {"aten": _ATEN, "torchvision": _VISION}
"""Operators by the library that defines them; torchvision's are there once it has been imported."""

_admitted: set[str] = set()
"""What `admit` added. It is state of the process because what it names is: `torch.library` defines an operator in the
process, for every graph and thread of it, and a node is checked where it is made, by whoever makes it."""


@cache
def function(op: str) -> Callable[..., Any]:
    """Return the callable of an operator name.

    Args:
        op: `aten.relu.default`; the overload `default` may be left out.

    Raises:
        GraphError: it is not one of the operators a graph may call.
    """
    if op in ARITHMETIC:
        return ARITHMETIC[op]
    library, _, rest = op.partition(".")
    name, _, overload = rest.partition(".")
    if name in _LIBRARIES.get(library, ()) or f"{library}.{name}.{overload or 'default'}" in _admitted:
        found = _overload(op)
        if found is None:
            known = (f"{library}.{name}.{form}" for form in _forms(library, name))
            forms = ", ".join(form for form in known if is_function(_overload(form)))
            mend = f"there is {forms}" if forms else "import the package that defines it first"
            raise GraphError(f"there is no operator {op!r}", mend=mend)
        if is_function(found):
            return found
        raise GraphError(f"the operator {op!r} is no function of tensors", why=_IMPURE)
    raise _refusal(op)


def _refusal(op: str) -> GraphError:
    """Return why an operator that is not listed may not be called."""
    found = _overload(op)
    if found is not None and not is_function(found):
        return GraphError(f"the operator {op!r} is no function of tensors", why=_IMPURE)
    if found is not None:
        why = "it is not among the operators that archir knows to be safe on data of strangers"
        return GraphError(
            f"the operator {op!r} is not admitted", why=why, mend=f"if you vouch for it: archir.admit({op!r})"
        )
    library, _, rest = op.partition(".")
    known = {other for other in _known() if other.startswith(f"{library}.")}
    if known or not rest:
        return GraphError(f"there is no operator {op!r}", mend=suggest(op, known or _known()))
    mend = f"if it is yours: import the package that defines it, then archir.admit({op!r})"
    why = "a graph calls functions of ATen, and those that were admitted"
    return GraphError(f"there is no operator {op!r} among those a graph may call", why=why, mend=mend)


def admit(op: str) -> None:
    """Let graphs of this process call an operator of the user's own.

    Whoever calls it vouches that running the operator on data of strangers is safe.

    Args:
        op: name of an operator that was defined by `torch.library`, `mine.scale` or `mine.scale.default`.

    Raises:
        GraphError: there is no such operator, or it is no function: it writes into an argument or returns nothing.
    """
    found = _overload(op)
    if found is None:
        raise GraphError(f"there is no operator {op!r}", mend="import the package that defines it first")
    if not is_function(found):
        raise GraphError(f"the operator {op!r} is no function of tensors", why=_IMPURE)
    _admitted.add(str(found))


def is_admitted(op: str) -> bool:
    """Say whether an operator is the user's own, by its full name."""
    return op in _admitted


def is_function(overload: torch._ops.OpOverload | None) -> bool:
    """Say whether an operator says of itself that it computes results from tensors, numbers and text alone.

    Operators of TorchScript (`aten.pow.int_to_int`, `aten.save`) are none: the dispatcher does not know them.
    """
    if overload is None:
        return False
    schema = overload._schema
    stateful = any(kind in str(argument.type) for kind in _STATE for argument in schema.arguments)
    pure = bool(schema.returns) and not schema.is_mutable and not stateful
    return pure and torch._C._dispatch_has_kernel(str(schema.name) + f".{schema.overload_name}".rstrip("."))


_IMPURE = "it writes into an argument, returns nothing, or works on what is neither tensor nor number nor text"
_STATE = ("Storage", "Stream", "QScheme", "torch.classes")
"""Types of arguments that stand for something outside the graph."""


def _overload(op: str) -> torch._ops.OpOverload | None:
    """Return the operator of a name that torch's dispatcher knows, None if there is none.

    Names are looked up among those of the dispatcher before any attribute of torch is read.
    """
    library, _, rest = op.partition(".")
    name, _, overload = rest.partition(".")
    form = overload or "default"
    if form not in _forms(library, name):
        return None
    found = getattr(getattr(getattr(torch.ops, library), name), form)
    return found if isinstance(found, torch._ops.OpOverload) else None


def _forms(library: str, name: str) -> list[str]:
    """Return the overloads of an operator, by the list of the dispatcher."""
    known = torch._C._dispatch_get_all_op_names()
    whole = f"{library}::{name}"
    return sorted(n[len(whole) + 1 :] or "default" for n in known if n == whole or n.startswith(f"{whole}."))


def _known() -> set[str]:
    libraries = {f"{library}.{name}" for library, names in _LIBRARIES.items() for name in names}
    return libraries | set(ARITHMETIC) | _admitted
