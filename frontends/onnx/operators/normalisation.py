"""Normalisation, softmax, dropout."""

from __future__ import annotations

import torch

from frontends.onnx.call import Call, Function, Results, Table
from frontends.onnx.operands import Known, Operand, Refusal
from frontends.onnx.operators.group_norm import in_groups
from frontends.onnx.operators.movement import constant_pad, reshaped


def _affine(c: Call, weight: int, bias: int | None) -> list[Operand]:
    """Return the scale and the shift of a normalisation, under names of its module."""
    names = _module_names(c, weight, bias)
    return [c.graph.parameter(c[i], n) for i, n in zip((weight, bias), names, strict=True) if i is not None]


def _module_names(c: Call, weight: int, bias: int | None) -> tuple[str, str]:
    """Return the names of scale and shift: those of the module the file names, or those they have."""
    if c.graph.location and c.graph.location.module:
        return f"{c.home}.weight", f"{c.home}.bias"
    return c.layer(weight, bias)


def _batch(c: Call) -> Operand:
    if c.integer("training_mode", 0):
        raise Refusal("it normalises by the statistics of the batch: export the model in evaluation mode")
    weight, bias = _affine(c, 1, 2)
    name = _module_names(c, 1, 2)[0]
    stem = name.removesuffix("weight") if name.endswith("weight") else f"{name}_"
    mean = c.graph.parameter(c[3], f"{stem}running_mean", buffer=True)
    variance = c.graph.parameter(c[4], f"{stem}running_var", buffer=True)
    momentum = round(1 - c.real("momentum", 0.9), 7)
    on = torch.backends.cudnn.enabled
    kind = c.type(c[0]).dtype
    same = all(c.type(part).dtype == kind for part in (weight, bias, mean, variance))
    tensors = (weight, bias, mean, variance) if same else tuple(c.same(p, kind) for p in (weight, bias, mean, variance))
    return c.call("batch_norm", c[0], *tensors, False, momentum, c.real("epsilon", 1e-5), on)


def _instance(c: Call) -> Operand:
    grouped = in_groups(c)
    if grouped is not None:
        return grouped
    weight, bias = _affine(c, 1, 2)
    eps, on = c.real("epsilon", 1e-5), torch.backends.cudnn.enabled
    return c.call("instance_norm", c[0], weight, bias, None, None, True, 0.1, eps, on)


def _layer(c: Call) -> Results:
    rank = c.rank(c[0])
    axis, eps = c.axis(rank, -1), c.real("epsilon", 1e-5)
    shape = c.fixed(c[0], *range(axis, rank))
    has_bias = c.get(2) is not None
    tensors = _affine(c, 1, 2 if has_bias else None)
    if all(c.shape(t) == shape for t in tensors):
        y = c.call("layer_norm", c[0], shape, *tensors, *([] if has_bias else [None]), eps)
    else:
        y = c.call("mul.Tensor", c.call("layer_norm", c[0], shape, None, None, eps), tensors[0])
        y = c.call("add.Tensor", y, tensors[1]) if has_bias else y
    if not c.uses(1) and not c.uses(2):
        return y
    axes = list(range(axis, rank))
    mean = c.call("mean.dim", c[0], axes, True)
    gap = c.call("sub.Tensor", c[0], mean)
    variance = c.call("mean.dim", c.call("mul.Tensor", gap, gap), axes, True)
    return [y, mean, c.call("rsqrt", c.call("add.Tensor", variance, eps))]


def _root_mean_square(c: Call) -> Operand:
    rank = c.rank(c[0])
    axis = c.axis(rank, -1)
    shape, eps = c.fixed(c[0], *range(axis, rank)), c.real("epsilon", 1e-5)
    weight = c.graph.parameter(c[1], _module_names(c, 1, None)[0])
    if c.shape(weight) == shape:
        return c.call("rms_norm", c[0], shape, weight, eps)
    return c.call("mul.Tensor", c.call("rms_norm", c[0], shape, None, eps), weight)


def _group(c: Call) -> Operand:
    groups, eps = c.integer("num_groups"), c.real("epsilon", 1e-5)
    (channels,) = c.fixed(c[0], 1)
    names = _module_names(c, 1, 2)
    parts = [c[i] if c.opset >= 21 else c.changed(i, "repeat_interleave.self_int", channels // groups) for i in (1, 2)]
    weight, bias = (c.graph.parameter(part, name) for part, name in zip(parts, names, strict=True))
    return c.call("group_norm", c[0], groups, weight, bias, eps)


def _unit_norm(c: Call) -> Operand:
    p, axis = c.integer("p", 2), c.axis(c.rank(c[0]), -1)
    size = c.call("linalg_vector_norm", c[0], p, [axis], True)
    zero = c.call("eq.Scalar", size, 0)
    return c.call("where.ScalarSelf", zero, 0.0, c.call("div.Tensor", c[0], size))


def _mean_variance(c: Call) -> Operand:
    axes = [a % c.rank(c[0]) for a in c.integers("axes", [0, 2, 3])]
    mean = c.call("mean.dim", c[0], axes, True)
    square = c.call("mean.dim", c.call("mul.Tensor", c[0], c[0]), axes, True)
    deviation = c.call("sqrt", c.call("sub.Tensor", square, c.call("mul.Tensor", mean, mean)))
    return c.call("div.Tensor", c.call("sub.Tensor", c[0], mean), c.call("add.Tensor", deviation, 1e-9))


def _local_response(c: Call) -> Operand:
    x, size, rank = c[0], c.integer("size"), c.rank(c[0])
    alpha, beta, bias = c.real("alpha", 1e-4), c.real("beta", 0.75), c.real("bias", 1.0)
    batch, channels, *space = c.shape(x)
    square = c.call("unsqueeze", c.call("mul.Tensor", x, x), 1)
    flat = square if rank == 4 else reshaped(c, square, [batch, 1, channels, -1, 1])
    low = (size - 1) // 2
    padded = constant_pad(c, flat, [0, 0, low, 0, 0], [0, 0, size - 1 - low, 0, 0], 0)
    mean = c.call("squeeze.dim", c.call("avg_pool3d", padded, [size, 1, 1], [1, 1, 1]), 1)
    mean = mean if rank == 4 else reshaped(c, mean, [batch, channels, *space])
    below = c.call("pow.Tensor_Scalar", c.call("add.Tensor", c.call("mul.Tensor", mean, alpha), bias), beta)
    return c.call("div.Tensor", x, below)


def _softmax(op: str) -> Function:
    def function(c: Call) -> Operand:
        rank = c.rank(c[0])
        axis = c.axis(rank, 1 if c.opset < 13 else -1)
        if c.opset >= 13 or axis == rank - 1:
            return c.call(f"{op}.int", c[0], axis)
        shape = c.shape(c[0])
        flat = c.call("flatten.using_ints", c[0], axis)
        return reshaped(c, c.call(f"{op}.int", flat, axis), list(shape))

    return function


def _dropout(c: Call) -> Results:
    if c.opset < 12:
        ratio = c.real("ratio", 0.5)
    else:
        ratio = 0.5 if c.get(1) is None else float(c.number(1, "ratio"))
        if c.get(2) is not None and c.number(2, "training_mode") and ratio:
            raise Refusal("it drops out at all times: export the model in evaluation mode")
    y = c.call("dropout", c[0], ratio, False) if ratio and not isinstance(c[0], Known) else c[0]
    return [y, c.call("ones_like", c[0], dtype=torch.bool)] if c.uses(1) else y


OPERATORS: Table = {
    "BatchNormalization": _batch,
    "InstanceNormalization": _instance,
    "LayerNormalization": _layer,
    "RMSNormalization": _root_mean_square,
    "GroupNormalization": _group,
    "LpNormalization": _unit_norm,
    "MeanVarianceNormalization": _mean_variance,
    "LRN": _local_response,
    "Softmax": _softmax("softmax"),
    "LogSoftmax": _softmax("log_softmax"),
    "Dropout": _dropout,
}
"""Normalisation, softmax, dropout."""
