"""Pointwise operators: arithmetic, comparisons, and non-linear functions, activations among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from archir.ir.operators.operator import SELF, SUMMANDS, Kind, Layer, Movement, Operator, alike


def _step(arguments: Mapping[str, Any], name: str) -> torch.Tensor:
    x: torch.Tensor = arguments[name]
    return (x > 0).to(x.dtype)


def _other_factor(arguments: Mapping[str, Any], name: str) -> torch.Tensor:
    like: torch.Tensor = arguments[name]
    return torch.as_tensor(arguments["other" if name == "self" else "self"], dtype=like.dtype, device=like.device)


def _activation(module: str, *options: str) -> Operator:
    return Operator(pointwise=True, layer=Layer(Kind.ACTIVATION, module, options=options))


_PRELU = Layer(Kind.ACTIVATION, "PReLU", ("weight",))
_POINTWISE = Operator(pointwise=True)

OPERATORS: Mapping[str, Operator] = {
    **alike("add sub subtract", Operator(pointwise=True, linear=SUMMANDS)),
    **alike("mul multiply", Operator(pointwise=True, multilinear=SUMMANDS, derivative=_other_factor)),
    **alike("neg negative", Operator(pointwise=True, linear=SELF)),
    "positive": Operator(pointwise=True, linear=SELF, moves=Movement.COPY),
    "relu": Operator(pointwise=True, layer=Layer(Kind.ACTIVATION, "ReLU"), derivative=_step),
    "relu6": _activation(""),
    "gelu": _activation("GELU", "approximate"),
    "silu": _activation("SiLU"),
    "mish": _activation("Mish"),
    "elu": _activation("ELU", "alpha"),
    "selu": _activation("SELU"),
    "celu": _activation("CELU", "alpha"),
    "leaky_relu": _activation("LeakyReLU", "negative_slope"),
    "sigmoid": _activation("Sigmoid"),
    "tanh": _activation("Tanh"),
    "log_sigmoid": _activation("LogSigmoid"),
    "hardsigmoid": _activation("Hardsigmoid"),
    "hardswish": _activation("Hardswish"),
    "hardtanh": _activation("Hardtanh", "min_val", "max_val"),
    "softplus": _activation("Softplus", "beta", "threshold"),
    "threshold": _activation("Threshold", "threshold", "value"),
    "prelu": Operator(layer=_PRELU),
    "_prelu_kernel": Operator(pointwise=True, layer=_PRELU),
    "where.default": Operator(),
    **alike(
        """
        abs absolute acos acosh addcdiv addcmul angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh
        atan atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil
        clamp clamp_max clamp_min clip complex conj conj_physical _conj copysign cos cosh deg2rad digamma div divide eq
        erf erfc erfinv exp exp2 expm1 fix float_power floor floor_divide fmax fmin fmod frac frexp gcd ge greater
        greater_equal gt hardshrink heaviside hypot i0 igamma igammac imag isclose isfinite isinf isnan isneginf
        isposinf isreal lcm ldexp le lerp less less_equal lgamma log log10 log1p log2 logaddexp logaddexp2 logical_and
        logical_not logical_or logical_xor logit lt masked_fill maximum minimum mvlgamma nan_to_num ne nextafter
        not_equal polar polygamma pow rad2deg real reciprocal remainder round rsqrt rsub sgn sign signbit sin sinc sinh
        softshrink special_bessel_j0 special_bessel_j1 special_digamma special_entr special_erf special_erfc
        special_erfcx special_erfinv special_exp2 special_expit special_expm1 special_gammainc special_gammaincc
        special_gammaln special_i0 special_i0e special_i1 special_i1e special_log1p special_log_ndtr special_logit
        special_multigammaln special_ndtr special_ndtri special_polygamma special_psi special_round special_sinc
        special_xlog1py special_xlogy special_zeta special_airy_ai special_bessel_y0 special_bessel_y1
        special_chebyshev_polynomial_t special_chebyshev_polynomial_u special_chebyshev_polynomial_v
        special_chebyshev_polynomial_w special_hermite_polynomial_h special_hermite_polynomial_he
        special_laguerre_polynomial_l special_legendre_polynomial_p special_modified_bessel_i0
        special_modified_bessel_i1 special_modified_bessel_k0 special_modified_bessel_k1
        special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1 special_shifted_chebyshev_polynomial_t
        special_shifted_chebyshev_polynomial_u special_shifted_chebyshev_polynomial_v
        special_shifted_chebyshev_polynomial_w special_spherical_bessel_j0 sqrt square tan true_divide trunc where xlogy
        __and__ __lshift__ __or__ __rshift__ __xor__
        """,
        _POINTWISE,
    ),
    "glu": Operator(),
}
