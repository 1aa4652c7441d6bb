"""Pools and resampling over spatial axes."""

from __future__ import annotations

from collections.abc import Mapping

from archir.ir.operators.operator import SELF, Kind, Layer, Movement, Operator, alike

_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "count_include_pad", "divisor_override")
_POOL = Layer(Kind.POOL)
_EITHER = frozenset({"self", "input"})
"""The operand is `self` in one overload, `input` in the other."""


def _max_pool(axes: int) -> Operator:
    layer = Layer(Kind.POOL, f"MaxPool{axes}d", options=_OPTIONS)
    return Operator(preserves_zero=True, layer=layer, places=(f"max_pool{axes}d_with_indices", axes))


OPERATORS: Mapping[str, Operator] = {
    **{f"max_pool{n}d": _max_pool(n) for n in (1, 2, 3)},
    **{
        f"avg_pool{n}d": Operator(linear=SELF, layer=Layer(Kind.POOL, f"AvgPool{n}d", options=_OPTIONS))
        for n in (1, 2, 3)
    },
    **{
        f"adaptive_avg_pool{n}d": Operator(
            linear=SELF, layer=Layer(Kind.POOL, f"AdaptiveAvgPool{n}d", options=("output_size",))
        )
        for n in (1, 2, 3)
    },
    **{f"adaptive_max_pool{n}d": Operator(preserves_zero=True, layer=_POOL) for n in (1, 2, 3)},
    **alike("_adaptive_avg_pool2d _adaptive_avg_pool3d", Operator(linear=SELF)),
    **alike(
        """
        upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
        _upsample_nearest_exact3d
        """,
        Operator(linear=_EITHER, moves=Movement.PICK),
    ),
    **alike(
        """
        upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bicubic2d_aa
        _upsample_bilinear2d_aa
        """,
        Operator(linear=_EITHER),
    ),
    **alike(
        """
        affine_grid_generator fractional_max_pool2d fractional_max_pool3d grid_sampler grid_sampler_2d grid_sampler_3d
        max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d
        """
    ),
}
