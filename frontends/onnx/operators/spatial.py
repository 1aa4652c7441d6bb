"""Resampling of images: resize, grids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from frontends.onnx.call import Call, Table, axis_of
from frontends.onnx.operands import Known, Operand, Refusal

_TORCH = {"nearest": "nearest", "linear": "linear", "cubic": "bicubic"}
_DIMENSIONS = {("linear", 1): "linear1d", ("linear", 2): "bilinear2d", ("linear", 3): "trilinear3d"}


_LARGEST, _LARGEST_MATRIX = 2**16, 2**26
"""The most places along an axis that is resampled, and the most elements of a matrix that does it."""


@dataclass(frozen=True)
class _Axis:
    """How one axis is resampled: sizes before and after, scale, and the part of it that is looked at."""

    size: int
    made: int
    scale: float
    start: float = 0.0
    end: float = 1.0


def _resize(c: Call) -> Operand:
    rank, mode = c.rank(c[0]), c.text("mode", "nearest")
    at = 1 if c.opset < 11 else 2
    how = "asymmetric" if c.opset < 11 else c.text("coordinate_transformation_mode", "half_pixel")
    nearest = "floor" if c.opset < 11 else c.text("nearest_mode", "round_prefer_floor")
    axes = [axis_of(a, rank) for a in c.integers("axes", list(range(rank)))]
    parts = dict(zip(axes, _axes(c, axes, at, how), strict=True))
    cropped = how == "tf_crop_and_resize"
    parts = {axis: p for axis, p in parts.items() if p.size != p.made or p.scale != 1.0 or cropped}
    large = [p for p in parts.values() if p.made > _LARGEST or p.made * p.size > _LARGEST_MATRIX]
    if large:
        raise Refusal(f"it is resized from {large[0].size:,} to {large[0].made:,} places along one axis")
    smooth = bool(c.integer("antialias", 0))
    fast = None if smooth else _by_torch(c, mode, how, nearest, parts, rank)
    if fast is not None:
        return fast
    x, kind = c[0], c.type(c[0]).dtype
    outside = c.real("extrapolation_value", 0.0) if cropped else None
    for axis, part in parts.items():
        if mode == "nearest":
            nearby = [_nearest(_source(i, part, how), nearest) for i in range(part.made)]
            index = torch.tensor(nearby).clamp(0, part.size - 1)
            x = c.call("index_select", x, axis, Known(index))
        else:
            exclude = bool(c.integer("exclude_outside", 0))
            matrix = _matrix(part, mode, how, c.real("cubic_coeff_a", -0.75), exclude=exclude, smooth=smooth)
            moved = x if axis == rank - 1 else c.call("transpose.int", x, axis, rank - 1)
            moved = c.call("matmul", moved, Known(torch.from_numpy(matrix.T.copy()).to(kind)))
            x = moved if axis == rank - 1 else c.call("transpose.int", moved, axis, rank - 1)
    if outside is not None:
        for axis, part in parts.items():
            places = [_source(i, part, how) for i in range(part.made)]
            beyond = torch.tensor([p < 0 or p > part.size - 1 for p in places])
            x = c.call("where.ScalarSelf", Known(beyond.reshape([-1] + [1] * (rank - 1 - axis))), outside, x)
    return x


def _axes(c: Call, axes: Sequence[int], at: int, how: str) -> list[_Axis]:
    """Return how each axis is resampled."""
    shape = c.shape(c[0])
    scales = c.get(at)
    if scales is not None and c.shape(scales) == (0,):
        scales = None
    if scales is None:
        wanted = c.sizes(at + 1, "sizes")
        made = [-1 if size == shape[a] else size for a, size in zip(axes, wanted, strict=True)]
        if not all(isinstance(size, int) for size in made):
            raise Refusal("it is resized to sizes that depend on those of the inputs")
        factors: list[float] | None = None
    else:
        made, factors = [-1] * len(axes), [float(s) for s in c.numbers(at, "scales")]
    sizes = [0 if not isinstance(shape[a], int) else int(shape[a]) for a in axes]
    found = []
    for i, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
        still = factors[i] == 1.0 if factors else made[i] == -1
        if still and how != "tf_crop_and_resize":
            found.append(_Axis(size, size, 1.0))
            continue
        (size,) = c.fixed(c[0], axis)
        if factors:
            found.append(_Axis(size, math.floor(size * factors[i]), factors[i]))
        else:
            result = size if made[i] == -1 else int(made[i])
            found.append(_Axis(size, result, result / size))
    policy = c.text("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch" and not factors:
        scale = (min if policy == "not_larger" else max)(p.scale for p in found)
        found = [_Axis(p.size, math.floor(scale * p.size + 0.5), scale) for p in found]
    if how == "tf_crop_and_resize":
        region = c.numbers(1, "roi")
        count = len(axes)
        found = [_Axis(p.size, p.made, p.scale, region[i], region[count + i]) for i, p in enumerate(found)]
    return found


def _by_torch(c: Call, mode: str, how: str, nearest: str, parts: dict[int, _Axis], rank: int) -> Operand | None:
    """Return the result of torch's own operator where it does the same, None elsewhere."""
    space = rank - 2
    if space not in (1, 2, 3) or not parts or min(parts) < 2 or not c.type(c[0]).dtype.is_floating_point:
        return None
    every = [parts.get(axis) for axis in range(2, rank)]
    sizes = [c.fixed(c[0], 2 + i)[0] if p is None else p.made for i, p in enumerate(every)]
    scales = [1.0 if p is None else p.scale for p in every]
    exact = all(s == int(s) for s in scales)
    if mode == "nearest" and exact and (how, nearest) == ("asymmetric", "floor"):
        return c.call(f"upsample_nearest{space}d.vec", c[0], None, scales)
    if any(p is not None and abs(p.made - p.size * p.scale) > 1e-6 for p in every):
        return None
    aligned = how == "align_corners"
    usual = aligned or how == "half_pixel" or (how == "pytorch_half_pixel" and min(sizes) > 1)
    if mode == "linear" and usual:
        return c.call(f"upsample_{_DIMENSIONS['linear', space]}.vec", c[0], sizes, aligned, None)
    plain = c.real("cubic_coeff_a", -0.75) == -0.75 and not c.integer("exclude_outside", 0)
    if mode == "cubic" and usual and space == 2 and plain:
        return c.call("upsample_bicubic2d.vec", c[0], sizes, aligned, None)
    return None


def _source(place: int, axis: _Axis, how: str) -> float:
    """Return where an element of the result lies in the operand.

    Source: the operator Resize of ONNX, attribute coordinate_transformation_mode.
    """
    if how == "half_pixel":
        return (place + 0.5) / axis.scale - 0.5
    if how == "half_pixel_symmetric":
        whole = axis.made / (axis.scale * axis.size)
        return axis.size / 2 * (1 - whole) + (place + 0.5) / axis.scale - 0.5
    if how == "pytorch_half_pixel":
        return (place + 0.5) / axis.scale - 0.5 if axis.made > 1 else 0.0
    if how == "align_corners":
        length = axis.scale * axis.size
        return 0.0 if length == 1 else place * (axis.size - 1) / (length - 1)
    if how == "asymmetric":
        return place / axis.scale
    if how == "tf_crop_and_resize":
        last = axis.size - 1
        if axis.made == 1:
            return 0.5 * (axis.start + axis.end) * last
        return axis.start * last + place * (axis.end - axis.start) * last / (axis.made - 1)
    raise Refusal(f"coordinate_transformation_mode is {how!r}")


def _nearest(place: float, how: str) -> int:
    if how == "floor":
        return math.floor(place)
    if how == "ceil":
        return math.ceil(place)
    if how == "round_prefer_floor":
        return math.ceil(place - 0.5)
    if how == "round_prefer_ceil":
        return math.floor(place + 0.5)
    raise Refusal(f"nearest_mode is {how!r}")


def _matrix(axis: _Axis, mode: str, how: str, steepness: float, *, exclude: bool, smooth: bool) -> np.ndarray:
    """Return the matrix that resamples an axis, `[made, size]`.

    Source: the reference implementation of Resize in ONNX; R. Keys, Cubic convolution interpolation, 1981.
    """
    stretch = max(1.0, 1 / axis.scale) if smooth else 1.0
    reach = (1 if mode == "linear" else 2) * stretch
    found = np.zeros((axis.made, axis.size))
    for row in range(axis.made):
        place = _source(row, axis, how)
        first, last = math.floor(place - reach), math.ceil(place + reach)
        near = [i for i in range(first, last + 1) if abs(place - i) < reach]
        weights = np.array([_kernel((place - i) / stretch, mode, steepness) for i in near])
        inside = np.array([0 <= i < axis.size for i in near])
        if exclude:
            weights = np.where(inside, weights, 0.0)
        weights = weights / weights.sum()
        for i, weight in zip(near, weights, strict=True):
            found[row, min(max(i, 0), axis.size - 1)] += weight
    return found


def _kernel(distance: float, mode: str, a: float) -> float:
    distance = abs(distance)
    if mode == "linear":
        return max(1 - distance, 0.0)
    if mode != "cubic":
        raise Refusal(f"mode is {mode!r}")
    if distance <= 1:
        return ((a + 2) * distance - (a + 3)) * distance * distance + 1
    return ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a if distance < 2 else 0.0


def _upsample(c: Call) -> Operand:
    if c.text("mode", "nearest") != "nearest":
        raise Refusal("Upsample in mode linear does not say where its corners are: use Resize")
    scales = [float(s) for s in c.numbers(1, "scales")]
    rank = c.rank(c[0])
    if rank in (3, 4, 5) and scales[:2] == [1.0, 1.0] and all(s == int(s) for s in scales):
        return c.call(f"upsample_nearest{rank - 2}d.vec", c[0], None, scales[2:])
    x = c[0]
    for axis, scale in enumerate(scales):
        if scale != 1.0:
            (size,) = c.fixed(x, axis)
            places = [min(math.floor(i / scale), size - 1) for i in range(math.floor(size * scale))]
            x = c.call("index_select", x, axis, Known(torch.tensor(places)))
    return x


def _grid_sample(c: Call) -> Operand:
    modes = {"bilinear": 0, "linear": 0, "nearest": 1, "bicubic": 2, "cubic": 2}
    edges = {"zeros": 0, "border": 1, "reflection": 2}
    mode = modes[c.text("mode", "bilinear" if c.opset < 20 else "linear")]
    edge = edges[c.text("padding_mode", "zeros")]
    return c.call("grid_sampler", c[0], c[1], mode, edge, bool(c.integer("align_corners", 0)))


def _affine_grid(c: Call) -> Operand:
    size = [c.size(s) for s in c.sizes(1, "size")]
    aligned = bool(c.integer("align_corners", 0))
    if len(size) == 4:
        return c.call("affine_grid_generator", c[0], size, aligned)
    raise Refusal("it makes a grid of three axes")


OPERATORS: Table = {
    "Resize": _resize,
    "Upsample": _upsample,
    "GridSample": _grid_sample,
    "AffineGrid": _affine_grid,
}
"""Resampling of images."""
