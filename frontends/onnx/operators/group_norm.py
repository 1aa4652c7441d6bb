"""Group normalisation as exporters write it where ONNX has none: a reshape, instance normalisation, scale and shift.

Source: ours, after what `torch.onnx.export` makes of `torch.nn.GroupNorm`.
"""

from __future__ import annotations

import onnx_ir as ir

from archir.ir.types import Size
from frontends.onnx.call import Call, only_use
from frontends.onnx.operands import Known, Operand, Series, Sizes


def in_groups(c: Call) -> Operand | None:
    """Return what an instance normalisation between two reshapes makes, None if it is no group normalisation.

    The reshape behind it, and the scale and the shift of every channel, are done with it.
    """
    before, after = _producer(c.node.inputs[0], "Reshape"), _only_user(c.node, "Reshape")
    source = c.graph.values.get(before.inputs[0]) if before is not None and before.inputs[0] is not None else None
    if (
        source is None
        or isinstance(source, Series)
        or after is None
        or not isinstance(c[1], Known)
        or not isinstance(c[2], Known)
    ):
        return None
    shape, split = c.shape(source), c.shape(c[0])
    plain = bool((c[1].tensor == 1).all()) and not bool(c[2].tensor.any())
    if not plain or len(split) != 3 or len(shape) < 3 or split[0] != shape[0] or not isinstance(split[1], int):
        return None
    channels = shape[1]
    if not isinstance(channels, int) or channels % split[1] or not _is_shape(c, after, shape):
        return None
    scale = _affine(c, after, "Mul", channels)
    shift = None if scale is None else _affine(c, scale[0], "Add", channels)
    parts: list[Operand | None] = [None, None]
    last = after
    if scale is not None and shift is not None:
        names = c.layer_of(scale[1], shift[1])
        parts = [c.graph.parameter(part, name) for part, name in zip((scale[1], shift[1]), names, strict=True)]
        last = shift[0]
        c.graph.absorb(scale[0], c[0])
    y = c.call("group_norm", source, split[1], *parts, c.real("epsilon", 1e-5))
    c.graph.absorb(after, y)
    c.graph.absorb(last, y)
    return y


def _producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind and not node.domain else None


def _only_user(node: ir.Node, kind: str) -> ir.Node | None:
    """Return the one node that uses what a node makes, if it is of a kind."""
    use = only_use(node.outputs[0])
    if use is None or use[0].graph is not node.graph or use[0].op_type != kind or use[0].domain:
        return None
    return use[0]


def _is_shape(c: Call, node: ir.Node, shape: tuple[Size, ...]) -> bool:
    """Say whether a reshape goes back to a shape."""
    wanted = node.inputs[1]
    if _producer(wanted, "Shape") is not None:
        inner = _producer(wanted, "Shape")
        found = c.graph.values.get(inner.inputs[0]) if inner is not None and inner.inputs[0] is not None else None
        whole = found is not None and not isinstance(found, Series) and not _is_partial(inner)
        return whole and not isinstance(found, Series | None) and c.shape(found) == shape
    target = c.graph.values.get(wanted) if wanted is not None else None
    if isinstance(target, Sizes):
        return target.entries == tuple(shape)
    return isinstance(target, Known) and tuple(target.tensor.tolist()) == tuple(shape)


def _is_partial(node: ir.Node | None) -> bool:
    """Say whether a `Shape` is of some axes only."""
    start = None if node is None else node.attributes.get("start")
    return node is not None and ("end" in node.attributes or (start is not None and start.as_int() != 0))


def _is_behind(c: Call, node: ir.Node) -> bool:
    """Say whether all axes that an `Unsqueeze` adds are behind the first one."""
    if "axes" in node.attributes:
        return min(node.attributes["axes"].as_ints()) > 0
    axes = c.graph.values.get(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return isinstance(axes, Known) and int(axes.tensor.min()) > 0


def _affine(c: Call, node: ir.Node, kind: str, channels: int) -> tuple[ir.Node, Known] | None:
    """Return the node that scales or shifts every channel of what a node makes, and by what."""
    user = _only_user(node, kind)
    if user is None:
        return None
    other = next((v for v in user.inputs if v is not node.outputs[0]), None)
    trail = 0
    while (inner := _producer(other, "Unsqueeze")) is not None:
        if not _is_behind(c, inner):
            return None
        other, trail = inner.inputs[0], trail + 1
    found = c.graph.values.get(other) if other is not None else None
    if not isinstance(found, Known) or not found.tensor.is_floating_point() or found.tensor.numel() != channels:
        return None
    shape = tuple(found.tensor.shape)
    if shape == (channels,) and trail:
        return user, found
    if shape[:1] == (channels,) and len(shape) > 1 and not trail:
        return user, Known(found.tensor.reshape(-1), found.name)
    return None
