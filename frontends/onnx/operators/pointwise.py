"""Elementwise operators: functions of one operand, arithmetic, comparisons, logic, bits, casts."""

from __future__ import annotations

from functools import reduce

import torch

from frontends.onnx.call import Call, Function, Table, torch_type
from frontends.onnx.operands import Known, Operand, Refusal


def _unary(op: str) -> Function:
    return lambda c: c.call(op, c[0])


def _binary(op: str, *, commutes: bool = False) -> Function:
    """Return the function of an operator whose second operand may be a number."""

    def function(c: Call) -> Operand:
        return binary(c, op, c[0], c[1], commutes=commutes)

    return function


def binary(c: Call, op: str, one: Operand, other: Operand, *, commutes: bool = False) -> Operand:
    """Call an operator of two tensors, the second of which is a number where it is known and broadcasts."""
    if commutes and _number(c, one, other) is not None and _number(c, other, one) is None:
        one, other = other, one
    number = _number(c, other, one)
    return c.call(f"{op}.Tensor", one, other if number is None or isinstance(one, Known) else number)


def _number(c: Call, operand: Operand, other: Operand) -> object:
    """Return a known operand as a number, None if it is none or gives the result its rank."""
    return c.scalar(operand) if c.rank(operand) <= c.rank(other) else None


def _subtract(c: Call) -> Operand:
    number = _number(c, c[0], c[1])
    if number is not None and not isinstance(c[1], Known) and c.type(c[1]).dtype != torch.bool:
        return c.call("rsub.Scalar", c[1], number)
    return binary(c, "sub", c[0], c[1])


def _divide(c: Call) -> Operand:
    if c.type(c[0]).dtype.is_floating_point:
        return binary(c, "div", c[0], c[1])
    return c.call("div.Tensor_mode", c[0], c[1], rounding_mode="trunc")


def _power(c: Call) -> Operand:
    kind = c.type(c[0]).dtype
    number = _number(c, c[1], c[0])
    if number is not None:
        number = int(number) if isinstance(number, float) and number.is_integer() else number
        return c.same(c.call("pow.Tensor_Scalar", c[0], number), kind)
    return c.same(c.call("pow.Tensor_Tensor", c[0], c[1]), kind)


def _modulo(c: Call) -> Operand:
    return binary(c, "fmod" if c.integer("fmod", 0) else "remainder", c[0], c[1])


def _comparison(op: str) -> Function:
    def function(c: Call) -> Operand:
        number = None if isinstance(c[0], Known) else _number(c, c[1], c[0])
        return c.call(f"{op}.Tensor", c[0], c[1]) if number is None else c.call(f"{op}.Scalar", c[0], number)

    return function


def _logical(op: str) -> Function:
    return lambda c: c.call(op, c[0], c[1])


def _variadic(op: str) -> Function:
    return lambda c: reduce(lambda one, other: c.call(op, one, other), c.given)


def _mean(c: Call) -> Operand:
    total = reduce(lambda one, other: c.call("add.Tensor", one, other), c.given)
    return c.call("div.Tensor", total, len(c.given)) if len(c.given) > 1 else total


def _shift(c: Call) -> Operand:
    way = c.text("direction")
    return c.call(f"bitwise_{'left' if way == 'LEFT' else 'right'}_shift.Tensor", c[0], c[1])


def _identity(c: Call) -> Operand:
    return c.graph.renamed(c[0], c.node.outputs[0].name or "")


def _cast(c: Call) -> Operand:
    return _as_type(c, c[0], torch_type(c.integer("to")))


def _cast_like(c: Call) -> Operand:
    return _as_type(c, c[0], c.type(c[1]).dtype)


def _as_type(c: Call, operand: Operand, dtype: torch.dtype) -> Operand:
    if isinstance(operand, Known) and operand.trains and c.type(operand).dtype == dtype:
        return operand
    return c.same(operand, dtype)


def _is_infinite(c: Call) -> Operand:
    below, above = c.integer("detect_negative", 1), c.integer("detect_positive", 1)
    if below and above:
        return c.call("isinf", c[0])
    if not below and not above:
        return c.call("zeros_like", c[0], dtype=torch.bool)
    return c.call("isneginf" if below else "isposinf", c[0])


def _clip(c: Call) -> Operand:
    if c.opset < 11:
        low = c.real("min", 0.0) if c.has("min") else None
        high = c.real("max", 0.0) if c.has("max") else None
        return _clamped(c, c[0], low, high)
    bounds = [c.get(1), c.get(2)]
    numbers = [None if b is None else c.scalar(b) for b in bounds]
    if any(b is not None and n is None for b, n in zip(bounds, numbers, strict=True)):
        return c.call("clamp.Tensor", c[0], *bounds)
    return _clamped(c, c[0], *numbers)


def _clamped(c: Call, x: Operand, low: float | None, high: float | None) -> Operand:
    if low is None and high is None:
        return x
    if c.type(x).dtype.is_floating_point and low is not None and high is not None and low <= high:
        return c.call("relu6", x) if (low, high) == (0.0, 6.0) else c.call("hardtanh", x, low, high)
    return c.call("clamp", x, low, high)


def _leaky_relu(c: Call) -> Operand:
    return c.call("leaky_relu", c[0], c.real("alpha", 0.01))


def _elu(c: Call) -> Operand:
    return c.call("elu", c[0], c.real("alpha", 1.0))


def _celu(c: Call) -> Operand:
    return c.call("celu", c[0], c.real("alpha", 1.0))


def _selu(c: Call) -> Operand:
    alpha, gamma = c.real("alpha", 1.6732632), c.real("gamma", 1.050701)
    if abs(alpha - 1.6732632) < 1e-6 and abs(gamma - 1.050701) < 1e-6:
        return c.call("selu", c[0])
    return c.call("elu", c[0], alpha, gamma)


def _thresholded_relu(c: Call) -> Operand:
    return c.call("threshold", c[0], c.real("alpha", 1.0), 0.0)


def _hard_sigmoid(c: Call) -> Operand:
    alpha, beta = c.real("alpha", 0.2), c.real("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return c.call("hardsigmoid", c[0])
    return c.call("hardtanh", c.call("add.Tensor", c.call("mul.Tensor", c[0], alpha), beta), 0.0, 1.0)


def _shrink(c: Call) -> Operand:
    bias, least = c.real("bias", 0.0), c.real("lambd", 0.5)
    kind = c.type(c[0]).dtype
    if kind.is_floating_point and bias in (0.0, least) and least >= 0:
        return c.call("softshrink" if bias else "hardshrink", c[0], least)
    zero = c.call("zeros_like", c[0])
    above = c.call("where.self", c.call("gt.Scalar", c[0], least), c.call("sub.Tensor", c[0], bias), zero)
    return c.same(
        c.call("where.self", c.call("lt.Scalar", c[0], -least), c.call("add.Tensor", c[0], bias), above), kind
    )


def _softsign(c: Call) -> Operand:
    return c.call("div.Tensor", c[0], c.call("add.Tensor", c.call("abs", c[0]), 1))


def _gelu(c: Call) -> Operand:
    how = c.text("approximate", "none")
    return c.call("gelu", c[0], approximate=how)


def _swish(c: Call) -> Operand:
    alpha = c.real("alpha", 1.0)
    if alpha == 1.0:
        return c.call("silu", c[0])
    return c.call("mul.Tensor", c[0], c.call("sigmoid", c.call("mul.Tensor", c[0], alpha)))


def _prelu(c: Call) -> Operand:
    x, slope = c[0], c[1]
    shape, rank = c.shape(slope), c.rank(x)
    ones = tuple(shape[1:]) == (1,) * (len(shape) - 1)
    per_channel = len(shape) == rank - 1 and rank > 1 and ones and shape[0] == c.shape(x)[1]
    if shape in ((), (1,)) or per_channel or (len(shape) == rank == 1):
        weight = c.trained(c.changed(1, "reshape", [-1]), "weight")
        if rank > 1 or shape in ((), (1,)):
            return c.call("prelu", x, weight)
    slope = c.trained(slope, "weight")
    return c.call("where.self", c.call("lt.Scalar", x, 0), c.call("mul.Tensor", x, slope), x)


def _where(c: Call) -> Operand:
    one, other = c[1], c[2]
    result = max(c.rank(c[0]), c.rank(one), c.rank(other))
    for form, tensor, number in (("ScalarOther", one, c.scalar(other)), ("ScalarSelf", other, c.scalar(one))):
        if number is not None and not isinstance(tensor, Known) and max(c.rank(c[0]), c.rank(tensor)) == result:
            pair = (tensor, number) if form == "ScalarOther" else (number, tensor)
            return c.same(c.call(f"where.{form}", c[0], *pair), c.type(tensor).dtype)
    return c.call("where.self", c[0], one, other)


def _constant(c: Call) -> Operand:
    for name, kind in (("value_float", torch.float32), ("value_floats", torch.float32)):
        if c.has(name):
            return Known(torch.tensor(c.real(name) if name == "value_float" else c.reals(name), dtype=kind))
    for name in ("value_int", "value_ints"):
        if c.has(name):
            return Known(torch.tensor(c.integer(name) if name == "value_int" else c.integers(name), dtype=torch.int64))
    if not c.has("value"):
        raise Refusal(f"it is given as {', '.join(c.node.attributes)}, which graphs do not have")
    return Known(c.tensor("value"), c.node.outputs[0].name or "constant")


_SAME_NAME = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "Log"),
    *(
        "Neg",
        "Reciprocal",
        "Relu",
        "Round",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Sqrt",
        "Tan",
        "Tanh",
        "Softplus",
        "Mish",
    ),
)

OPERATORS: Table = {
    **{name: _unary(name.lower()) for name in _SAME_NAME},
    "HardSwish": _unary("hardswish"),
    "IsNaN": _unary("isnan"),
    "IsInf": _is_infinite,
    "Not": _unary("logical_not"),
    "BitwiseNot": _unary("bitwise_not"),
    "Add": _binary("add", commutes=True),
    "Sub": _subtract,
    "Mul": _binary("mul", commutes=True),
    "Div": _divide,
    "Pow": _power,
    "Mod": _modulo,
    "Equal": _comparison("eq"),
    "Greater": _comparison("gt"),
    "GreaterOrEqual": _comparison("ge"),
    "Less": _comparison("lt"),
    "LessOrEqual": _comparison("le"),
    "And": _logical("logical_and"),
    "Or": _logical("logical_or"),
    "Xor": _logical("logical_xor"),
    "BitwiseAnd": _logical("bitwise_and.Tensor"),
    "BitwiseOr": _logical("bitwise_or.Tensor"),
    "BitwiseXor": _logical("bitwise_xor.Tensor"),
    "BitShift": _shift,
    "Max": _variadic("maximum"),
    "Min": _variadic("minimum"),
    "Sum": _variadic("add.Tensor"),
    "Mean": _mean,
    "Identity": _identity,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "Celu": _celu,
    "Selu": _selu,
    "ThresholdedRelu": _thresholded_relu,
    "HardSigmoid": _hard_sigmoid,
    "Shrink": _shrink,
    "Softsign": _softsign,
    "Gelu": _gelu,
    "Swish": _swish,
    "PRelu": _prelu,
    "Where": _where,
    "Constant": _constant,
}
"""Elementwise operators, and constants."""
