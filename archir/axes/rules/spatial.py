"""Axis rules of pooling, resampling and pixel shuffling: channels stay, spatial axes are fixed."""

from __future__ import annotations

from collections.abc import Sequence

from archir.axes.rules.context import Context, Rule
from archir.axes.terms import Atom, Product, Term, unify


def pooling(c: Context) -> Sequence[Sequence[Term]]:
    """Pools and interpolation over the last axes."""
    x = c.operand("self" if "self" in c.node.arguments else "input")
    spatial = next(int(d) for d in c.node.op.split(".")[1] if d in "123")
    c.freeze(x[-spatial:], "a spatial axis")
    return [[*x[:-spatial], *c.fresh("a spatial axis", i)[-spatial:]] for i in range(len(c.sizes))]


def pixel_shuffle(c: Context) -> Sequence[Sequence[Term]]:
    """`pixel_shuffle`: `C ~ c * r*r`."""
    x, factor = c.operand("self"), c.integer("upscale_factor")
    kept = Atom(x[-3].size // factor**2)
    unify(x[-3], Product((kept, Atom(factor**2, "the upscale factor"))))
    c.freeze(x[-2:], "a spatial axis")
    return [[*x[:-3], kept, *c.fresh("a spatial axis")[-2:]]]


def pixel_unshuffle(c: Context) -> Sequence[Sequence[Term]]:
    """`pixel_unshuffle`: the result's channels are `C * r*r`."""
    x, factor = c.operand("self"), c.integer("downscale_factor")
    c.freeze(x[-2:], "a spatial axis")
    channels = Product((x[-3], Atom(factor**2, "the downscale factor")))
    return [[*x[:-3], channels, *c.fresh("a spatial axis")[-2:]]]


POOLS = [
    f"aten.{op}{n}d.default"
    for op in ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
    for n in (1, 2, 3)
]
RESAMPLERS = [
    f"aten.upsample_{op}.{overload}"
    for op in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d", "trilinear3d")
    for overload in ("default", "vec")
]
RULES: dict[str, Rule] = {
    **dict.fromkeys([*POOLS, *RESAMPLERS, "aten.max_pool2d_with_indices.default"], pooling),
    "aten.pixel_shuffle.default": pixel_shuffle,
    "aten.pixel_unshuffle.default": pixel_unshuffle,
}
