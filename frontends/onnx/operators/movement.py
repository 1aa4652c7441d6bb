"""Operators that move data: reshapes, permutations, joins, cuts, padding."""

from __future__ import annotations

import math

import torch

from archir.ir.types import Size
from frontends.onnx.call import Call, Results, Table, axis_of
from frontends.onnx.operands import Known, Operand, Refusal, Sizes

_FAR = 2**62


def _reshape(c: Call) -> Operand:
    x, target = c[0], list(c.sizes(1, "shape"))
    shape = c.shape(x)
    if not c.integer("allowzero", 0):
        target = [shape[i] if size == 0 and i < len(shape) else size for i, size in enumerate(target)]
    return reshaped(c, x, target)


def reshaped(c: Call, x: Operand, target: list[Size]) -> Operand:
    """Return an operand in another shape; -1 stands for what is left."""
    shape = c.shape(x)
    if tuple(target) == tuple(shape):
        return x
    if len(shape) > 2 and len(target) == 2 and not isinstance(x, Known):
        rest = math.prod(shape[1:])
        if target in ([shape[0], rest], [shape[0], -1], [-1, rest]):
            return c.call("flatten.using_ints", x, 1)
    return c.call("reshape", x, [c.size(size) for size in target])


def _flatten(c: Call) -> Operand:
    shape = c.shape(c[0])
    at = c.integer("axis", 1)
    at = at if at == len(shape) else axis_of(at, len(shape))
    if at == 1 and len(shape) > 1:
        return c.call("flatten.using_ints", c[0], 1) if len(shape) > 2 else c[0]
    return reshaped(c, c[0], [math.prod(shape[:at]), math.prod(shape[at:])])


def _transpose(c: Call) -> Operand:
    rank = c.rank(c[0])
    order = c.integers("perm", list(reversed(range(rank))))
    return permuted(c, c[0], order)


def permuted(c: Call, x: Operand, order: list[int]) -> Operand:
    """Return an operand with its axes in another order; two that change places are a transposition."""
    moved = [i for i, axis in enumerate(order) if axis != i]
    if not moved:
        return x
    if len(moved) == 2:
        return c.call("transpose.int", x, *moved)
    return c.call("permute", x, order)


def _squeeze(c: Call) -> Operand:
    shape = c.shape(c[0])
    axes = c.axes(len(shape), 1, 13)
    if axes is None:
        axes = [i for i, size in enumerate(shape) if size == 1]
    if any(shape[axis] != 1 for axis in axes):
        raise Refusal(f"it removes axes of [{', '.join(map(str, shape))}] that are not 1")
    if len(axes) == 1:
        return c.call("squeeze.dim", c[0], axes[0])
    return c.call("squeeze.dims", c[0], axes) if axes else c[0]


def _unsqueeze(c: Call) -> Operand:
    given = c.integers("axes") if c.opset < 13 else c.numbers(1, "axes")
    found = c[0]
    for axis in sorted(axis_of(a, c.rank(c[0]) + len(given)) for a in given):
        found = c.call("unsqueeze", found, axis)
    return found


def _concat(c: Call) -> Operand:
    return c.given[0] if len(c.given) == 1 else c.call("cat", c.given, c.axis(c.rank(c[0])))


def _split(c: Call) -> Results:
    axis = c.axis(c.rank(c[0]), 0)
    count = len(c.node.outputs)
    parts: list[int] | None = None
    if c.opset < 13:
        parts = c.integers("split") if c.has("split") else None
    elif c.get(1) is not None:
        parts = c.numbers(1, "split")
    size = c.fixed(c[0], axis)[0]
    if parts is None:
        each = -(-size // c.integer("num_outputs", count))
        parts = [min(each, max(size - each * i, 0)) for i in range(count)]
    even = parts[0] > 0 and all(p == parts[0] for p in parts[:-1]) and parts[-1] <= parts[0]
    if len(parts) > 1 and even and -(-size // parts[0]) == count:
        return c.calls("split.Tensor", c[0], parts[0], axis)
    return c.calls("split_with_sizes", c[0], parts, axis)


def _slice(c: Call) -> Operand:
    if c.opset < 10:
        starts: tuple[Size, ...] = tuple(c.integers("starts"))
        ends: tuple[Size, ...] = tuple(c.integers("ends"))
        axes, steps = c.integers("axes", list(range(len(starts)))), [1] * len(starts)
    else:
        starts, ends = c.sizes(1, "starts"), c.sizes(2, "ends")
        axes = list(range(len(starts))) if c.get(3) is None else c.numbers(3, "axes")
        steps = [1] * len(starts) if c.get(4) is None else c.numbers(4, "steps")
    found = c[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        found = cut(c, found, axis_of(axis, c.rank(found)), start, end, step)
    return found


def cut(c: Call, x: Operand, axis: int, start: Size, end: Size, step: int = 1) -> Operand:
    """Return a part of an axis, as Python slices it."""
    if step < 0:
        (size,) = c.fixed(x, axis)
        if not isinstance(start, int) or not isinstance(end, int):
            raise Refusal("it goes backwards between places that depend on the sizes of the inputs")
        # ONNX clamps, and Python reads -1 as the last place where it would stand for the end in front of the first.
        first = min(max(start + size if start < 0 else start, 0), size - 1)
        last = min(max(end + size if end < 0 else end, -1), size - 1)
        turned = c.call("flip", x, [axis])
        return cut(c, turned, axis, size - 1 - first, size - 1 - last if last < first else size - 1 - first, -step)
    size = c.shape(x)[axis]
    ends = isinstance(end, int) and (end >= _FAR or (isinstance(size, int) and end >= size))
    if start == 0 and step == 1 and (ends or end == size):
        return x
    to = torch.iinfo(torch.int64).max if ends else c.size(end)
    return c.call("slice.Tensor", x, axis, c.size(start), to, step)


def _expand(c: Call) -> Operand:
    return expanded(c, c[0], list(c.sizes(1, "shape")))


def expanded(c: Call, x: Operand, target: list[Size]) -> Operand:
    """Return an operand broadcast together with a shape."""
    shape = list(c.shape(x))
    rank = max(len(shape), len(target))
    target = [1] * (rank - len(target)) + target
    shape = [1] * (rank - len(shape)) + shape
    missing = rank - c.rank(x)
    wanted: list[Size] = [
        -1 if i >= missing and (size in (1, own) or own not in (1, size)) else size
        for i, (own, size) in enumerate(zip(shape, target, strict=True))
    ]
    unlike = [(o, t) for o, t in zip(shape, target, strict=True) if 1 not in (o, t) and o != t]
    if unlike:
        raise Refusal(f"a size of {unlike[0][0]} is broadcast with one of {unlike[0][1]}")
    if all(size == -1 for size in wanted):
        return x
    return c.call("expand", x, [c.size(size) for size in wanted])


def _tile(c: Call) -> Operand:
    return c.call("repeat", c[0], [c.size(size) for size in c.sizes(1, "repeats")])


def _pad(c: Call) -> Operand:
    x, rank = c[0], c.rank(c[0])
    pads = c.integers("pads") if c.opset < 11 else c.numbers(1, "pads")
    mode = c.text("mode", "constant")
    axes = list(range(rank)) if c.get(3) is None else [axis_of(a, rank) for a in c.numbers(3, "axes")]
    before, after = [0] * rank, [0] * rank
    for axis, low, high in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        before[axis], after[axis] = low, high
    if mode == "constant":
        value = c.real("value", 0.0) if c.opset < 11 else 0 if c.get(2) is None else c.number(2, "constant_value")
        return constant_pad(c, x, before, after, value)
    kinds = {"edge": "replicate", "reflect": "reflect"}
    inner = [i for i in range(rank) if before[i] or after[i]]
    plain = mode in kinds and rank in (3, 4, 5) and min(inner, default=2) >= 2 and min(*before, *after) >= 0
    if plain and rank - 2 in (1, 2, 3):
        sides = [side for i in range(rank - 1, 1, -1) for side in (before[i], after[i])]
        return c.call("pad", x, sides, kinds[mode])
    for axis in inner:
        (size,) = c.fixed(x, axis)
        places = c.call("arange.start", -before[axis], size + after[axis])
        assert isinstance(places, Known)  # of numbers alone
        x = c.call("index_select", x, axis, Known(_inside(places.tensor, size, mode)))
    return x


def _inside(places: torch.Tensor, size: int, mode: str) -> torch.Tensor:
    """Return for places outside of an axis those whose elements stand there."""
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places.remainder(size)
    if mode != "reflect":
        raise Refusal(f"its mode is {mode!r}")
    around = places.remainder(max(2 * (size - 1), 1))
    return torch.where(around < size, around, 2 * (size - 1) - around)


def constant_pad(c: Call, x: Operand, before: list[int], after: list[int], value: float) -> Operand:
    """Return an operand with so many elements more on either side of each axis."""
    sides = [side for low, high in zip(reversed(before), reversed(after), strict=True) for side in (low, high)]
    while sides[-2:] == [0, 0]:
        del sides[-2:]
    if not sides:
        return x
    return c.call("constant_pad_nd", x, sides, value) if value else c.call("constant_pad_nd", x, sides)


def _depth_to_space(c: Call) -> Operand:
    block = c.integer("blocksize")
    if c.text("mode", "DCR") == "CRD":
        return c.call("pixel_shuffle", c[0], block)
    batch, channels, high, wide = c.shape(c[0])
    inner = channels // block**2
    split = reshaped(c, c[0], [batch, block, block, inner, high, wide])
    moved = c.call("permute", split, [0, 3, 4, 1, 5, 2])
    return reshaped(c, moved, [batch, inner, high * block, wide * block])


def _space_to_depth(c: Call) -> Operand:
    block = c.integer("blocksize")
    batch, channels, high, wide = c.shape(c[0])
    split = reshaped(c, c[0], [batch, channels, high // block, block, wide // block, block])
    moved = c.call("permute", split, [0, 3, 5, 1, 2, 4])
    return reshaped(c, moved, [batch, channels * block**2, high // block, wide // block])


def _triangle(c: Call) -> Operand:
    offset = 0 if c.get(1) is None else int(c.number(1, "k"))
    return c.call("triu" if c.integer("upper", 1) else "tril", c[0], offset)


def _reverse_sequence(c: Call) -> Operand:
    rank, batch, time = c.rank(c[0]), c.integer("batch_axis", 1), c.integer("time_axis", 0)
    steps, rows = c.fixed(c[0], time, batch)
    places = c.places(steps, time, rank)
    lengths = c.call("reshape", c[1], [rows if i == batch else 1 for i in range(rank)])
    turned = c.call("sub.Tensor", c.call("sub.Tensor", lengths, 1), places)
    index = c.call("where.self", c.call("lt.Tensor", places, lengths), turned, places)
    return c.call("gather", c[0], time, c.call("expand", index, list(c.fixed(c[0]))))


def _shape(c: Call) -> Operand:
    shape = c.shape(c[0])
    rank = len(shape)
    low, high = c.integer("start", 0), c.integer("end", rank)
    entries = shape[max(low + rank, 0) if low < 0 else low : max(high + rank, 0) if high < 0 else high]
    return sizes(tuple(entries), (len(entries),))


def _size(c: Call) -> Operand:
    return sizes((math.prod(c.shape(c[0])),), ())


def sizes(entries: tuple[Size, ...], shape: tuple[int, ...]) -> Operand:
    """Return sizes as an operand, whose elements are known where they are all numbers."""
    if all(isinstance(entry, int) for entry in entries):
        return Known(torch.tensor(entries, dtype=torch.int64).reshape(shape))
    return Sizes(entries, shape)


def _constant_of_shape(c: Call) -> Operand:
    value = c.tensor("value") if c.has("value") else torch.zeros(1)
    return c.call("full", [c.size(size) for size in c.sizes(0)], value.item(), dtype=value.dtype)


def _range(c: Call) -> Operand:
    kind = c.type(c[0]).dtype
    parts = [c[i] for i in range(3)]
    if any(isinstance(part, Sizes) for part in parts):
        start, end, step = (c.size(c.sizes(i)[0]) for i in range(3))
        return c.call("arange.start_step", start, end, step, dtype=kind)
    return c.call("arange.start_step", *(c.number(i) for i in range(3)), dtype=kind)


def _eye_like(c: Call) -> Operand:
    from_type = c.type(c[0]).dtype
    kind = c.dtype("dtype", from_type)
    rows, columns = c.fixed(c[0])
    offset = c.integer("k", 0)
    ones = c.call("ones", [rows, columns], dtype=kind)
    return c.call("tril", c.call("triu", ones, offset), offset)


OPERATORS: Table = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Trilu": _triangle,
    "ReverseSequence": _reverse_sequence,
    "Shape": _shape,
    "Size": _size,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "EyeLike": _eye_like,
}
"""Operators that move data, tell sizes, or make tensors of sizes."""
