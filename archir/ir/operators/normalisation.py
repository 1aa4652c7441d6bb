"""Normalisations, softmax and dropout; batch normalisation by stored statistics as an affine map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from archir.ir.operators.operator import Kind, Layer, Movement, Operator, alike

BATCH_NORM = "aten.batch_norm.default"


def scale_of(variance: torch.Tensor, epsilon: float, weight: torch.Tensor | None) -> torch.Tensor:
    """Return the factor of every channel of a batch normalisation, `γ / √(σ² + ε)`.

    Args:
        variance: σ², `[channels]`.
        epsilon: ε.
        weight: γ, `[channels]`; one if there is none.
    """
    scale = torch.rsqrt(variance + epsilon)
    return scale if weight is None else scale * weight


def shift_of(scale: torch.Tensor, mean: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the summand of every channel of a batch normalisation, `β − μ γ / √(σ² + ε)`.

    Args:
        scale: the factor, `[channels]`.
        mean: μ, `[channels]`.
        bias: β, `[channels]`; zero if there is none.
    """
    return -mean * scale if bias is None else bias - mean * scale


def _derivative(arguments: Mapping[str, Any], name: str) -> torch.Tensor | None:
    """Return the factor of every channel, `[1, channels, 1, ...]`, where statistics are stored."""
    if name != "input" or arguments.get("training") or arguments["running_mean"] is None:
        return None
    scale = scale_of(arguments["running_var"], arguments["eps"], arguments["weight"])
    return scale.reshape([1, -1] + [1] * (arguments["input"].dim() - 2))


_AFFINE = ("weight", "bias")
_STATISTICS = (*_AFFINE, "running_mean", "running_var")


def _dropout(module: str, masks: bool) -> Operator:
    return Operator(
        linear=frozenset({"input"}),
        preserves_zero=masks,
        moves=Movement.COPY,
        layer=Layer(Kind.DROPOUT, module, options=("p",)),
        mode="train",
    )


def _softmax(module: str) -> Operator:
    return Operator(layer=Layer(Kind.SOFTMAX, module, options=("dim",)))


OPERATORS: Mapping[str, Operator] = {
    "batch_norm": Operator(layer=Layer(Kind.NORM, "BatchNorm", _STATISTICS), mode="training", derivative=_derivative),
    "_native_batch_norm_legit_no_training": Operator(layer=Layer(Kind.NORM, "", _STATISTICS), derivative=_derivative),
    "instance_norm": Operator(layer=Layer(Kind.NORM, "InstanceNorm", _STATISTICS), mode="use_input_stats"),
    "group_norm": Operator(layer=Layer(Kind.NORM, "GroupNorm", _AFFINE)),
    "layer_norm": Operator(layer=Layer(Kind.NORM, "LayerNorm", _AFFINE)),
    "rms_norm": Operator(layer=Layer(Kind.NORM, "RMSNorm", ("weight",))),
    "softmax": _softmax("Softmax"),
    "log_softmax": _softmax("LogSoftmax"),
    "dropout": _dropout("Dropout", masks=True),
    "feature_dropout": _dropout("Dropout2d", masks=True),
    "alpha_dropout": _dropout("AlphaDropout", masks=False),
    "feature_alpha_dropout": _dropout("FeatureAlphaDropout", masks=False),
    **alike(
        """
        native_batch_norm _native_batch_norm_legit_functional _batch_norm_impl_index native_group_norm
        native_layer_norm _fused_rms_norm renorm norm_except_dim _weight_norm _weight_norm_interface
        _softmax _safe_softmax _masked_softmax _log_softmax special_softmax special_log_softmax
        native_dropout _fused_dropout
        """
    ),
}
