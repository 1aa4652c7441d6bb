"""Convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from frontends.onnx.call import Call, Table
from frontends.onnx.operands import Known, Operand, Refusal
from frontends.onnx.operators.movement import constant_pad, cut


def same_pads(
    how: str, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return what stands on either side of each axis, so that there is a result for every stride."""
    before: list[int] = []
    after: list[int] = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if how == "SAME_UPPER" else large)
        after.append(large if how == "SAME_UPPER" else small)
    return before, after


def pads_of(
    c: Call, x: Operand, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the padding of a node in front of and behind each axis of space."""
    how, rank = c.text("auto_pad", "NOTSET"), len(kernel)
    if how in ("SAME_UPPER", "SAME_LOWER"):
        return same_pads(how, c.fixed(x, *range(2, 2 + rank)), kernel, strides, dilations)
    pads = [0] * (2 * rank) if how == "VALID" else c.integers("pads", [0] * (2 * rank))
    return pads[:rank], pads[rank:]


def layer_tensors(c: Call) -> list[Operand]:
    """Return the weight and the bias, if there is one, of a convolution."""
    bias = None if c.get(2) is None or _is_nothing(c[2]) else 2
    names = c.layer(1, bias)
    found = [c.graph.parameter(c[1], names[0])]
    return found if bias is None else [*found, c.graph.parameter(c[2], names[1])]


def _is_nothing(bias: Operand) -> bool:
    """Say whether a bias is zeros that the file computes, as exporters write where a layer has none."""
    return isinstance(bias, Known) and not bias.name and not bool(bias.tensor.any())


def _window(c: Call) -> tuple[list[int], list[int], list[int]]:
    """Return the sizes of the kernel, the strides and the dilations, one for each axis of space."""
    kernel = list(c.fixed(c[1], *range(2, c.rank(c[1]))))
    rank = len(kernel)
    if rank not in (1, 2, 3):
        raise Refusal(f"it has {rank} axes of space")
    return kernel, c.integers("strides", [1] * rank), c.integers("dilations", [1] * rank)


def _convolution(c: Call) -> Operand:
    kernel, strides, dilations = _window(c)
    rank = len(kernel)
    before, after = pads_of(c, c[0], kernel, strides, dilations)
    x = c[0]
    if before != after:
        x = constant_pad(c, x, [0, 0, *before], [0, 0, *after], 0)
        before = [0] * rank
    weight, *bias = layer_tensors(c)
    return c.call(
        f"conv{rank}d", x, weight, bias[0] if bias else None, strides, before, dilations, c.integer("group", 1)
    )


def _transposed(c: Call) -> Operand:
    kernel, strides, dilations = _window(c)
    rank = len(kernel)
    extra, how = c.integers("output_padding", [0] * rank), c.text("auto_pad", "NOTSET")
    pads = c.integers("pads", [0] * (2 * rank))
    before, after = pads[:rank], pads[rank:]
    if c.has("output_shape") or how in ("SAME_UPPER", "SAME_LOWER"):
        sizes = c.fixed(c[0], *range(2, 2 + rank))
        wanted = c.integers("output_shape", [size * stride for size, stride in zip(sizes, strides, strict=True)])
        before, after = [], []
        for i in range(rank):
            total = strides[i] * (sizes[i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1 - wanted[-rank:][i]
            if total < 0:
                extra[i], total = extra[i] - total, 0
            small, large = total // 2, total - total // 2
            before.append(large if how == "SAME_LOWER" else small if how == "SAME_UPPER" else large)
            after.append(total - before[-1])
    elif how == "VALID":
        before = after = [0] * rank
    weight, *bias = layer_tensors(c)
    form = {1: "conv_transpose1d", 2: "conv_transpose2d.input", 3: "conv_transpose3d.input"}[rank]
    even, group = before == after, c.integer("group", 1)
    room = all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True))
    padding, more = (before, extra) if even and room else ([0] * rank, [0] * rank)
    y = c.call(form, c[0], weight, bias[0] if bias else None, strides, padding, more, group, dilations)
    if even and room:
        return y
    if any(e > a for e, a in zip(extra, after, strict=True)) and bias:
        raise Refusal("its output padding is beyond what the kernel reaches")
    for i, (low, high) in enumerate(zip(before, after, strict=True)):
        (size,) = c.fixed(y, 2 + i)
        more_here = max(extra[i] - high, 0)
        y = constant_pad(c, y, [0] * (2 + rank), [more_here if a == 2 + i else 0 for a in range(2 + rank)], 0)
        y = cut(c, y, 2 + i, low, size - high + extra[i])
    return y


OPERATORS: Table = {"Conv": _convolution, "ConvTranspose": _transposed}
"""Convolutions."""
