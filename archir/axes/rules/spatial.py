"""Axis rules of pooling, resampling and pixel shuffling: channels stay, spatial axes are fixed."""

from __future__ import annotations

from collections.abc import Sequence

from archir.axes.rules.context import Context, Rule, Spelling
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


def channel_shuffle(c: Context) -> Sequence[Sequence[Term]]:
    """`channel_shuffle`: the channels `groups * c` become `c * groups`."""
    x, count = c.operand("self"), c.integer("groups")
    groups, own = Atom(count), Atom(x[1].size // count)
    unify(x[1], Product((groups, own)))
    c.spell(lambda size: Spelling({"groups": size(groups)}))
    return [[x[0], Product((own, groups)), *x[2:]]]


def grid_sampler(c: Context) -> Sequence[Sequence[Term]]:
    """`grid_sample`: the channels of `input` at the places `grid` says."""
    x, grid = c.operand("input"), c.operand("grid")
    unify(x[0], grid[0])
    c.freeze([*x[2:], *grid[1:]], "a spatial axis")
    return [[*x[:2], *grid[1:-1]]]


def unfold(c: Context) -> Sequence[Sequence[Term]]:
    """`im2col`: each column is a patch, `C * kernel` long."""
    x = c.operand("self")
    c.freeze(x[-2:], "a spatial axis")
    kernel = Atom(c.sizes[0][-2] // x[-3].size, "a kernel size")
    return [[*x[:-3], Product((x[-3], kernel)), *c.fresh("a spatial axis")[-1:]]]


def fold(c: Context) -> Sequence[Sequence[Term]]:
    """`col2im`: the sum of patches `C * kernel` long."""
    x = c.operand("self")
    channels = Atom(c.sizes[0][-3])
    unify(x[-2], Product((channels, Atom(x[-2].size // channels.size, "a kernel size"))))
    c.freeze(x[-1:], "a spatial axis")
    return [[*x[:-2], channels, *c.fresh("a spatial axis")[-2:]]]


POOLS = [
    *(f"{op}{n}d" for op in ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool") for n in (1, 2, 3)),
    *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
    *(f"_adaptive_avg_pool{n}d" for n in (2, 3)),
]
RESAMPLERS = [
    *(f"upsample_{op}" for op in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d")),
    *("upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
    *(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)),
]
RULES: dict[str, Rule] = {
    **{f"aten.{op}.default": pooling for op in (*POOLS, *RESAMPLERS)},
    **{f"aten.{op}.vec": pooling for op in RESAMPLERS},
    "aten.channel_shuffle.default": channel_shuffle,
    "aten.grid_sampler.default": grid_sampler,
    "aten.im2col.default": unfold,
    "aten.col2im.default": fold,
    "aten.pixel_shuffle.default": pixel_shuffle,
    "aten.pixel_unshuffle.default": pixel_unshuffle,
}
