"""Modules of `torch.nn` without parameters, for the numbered places of an `nn.Sequential`."""

from __future__ import annotations

from archir.emit.code import literal
from archir.ir.execute import mode_argument
from archir.ir.node import Node, Value

LAYERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "aten.relu.default": ("ReLU", ()),
    "aten.relu6.default": ("ReLU6", ()),
    "aten.gelu.default": ("GELU", ("approximate",)),
    "aten.silu.default": ("SiLU", ()),
    "aten.mish.default": ("Mish", ()),
    "aten.selu.default": ("SELU", ()),
    "aten.celu.default": ("CELU", ("alpha",)),
    "aten.leaky_relu.default": ("LeakyReLU", ("negative_slope",)),
    "aten.sigmoid.default": ("Sigmoid", ()),
    "aten.tanh.default": ("Tanh", ()),
    "aten.hardswish.default": ("Hardswish", ()),
    "aten.hardsigmoid.default": ("Hardsigmoid", ()),
    "aten.hardtanh.default": ("Hardtanh", ("min_val", "max_val")),
    "aten.softplus.default": ("Softplus", ("beta", "threshold")),
    "aten.softmax.int": ("Softmax", ("dim",)),
    "aten.log_softmax.int": ("LogSoftmax", ("dim",)),
    "aten.dropout.default": ("Dropout", ("p",)),
    "aten.feature_dropout.default": ("Dropout2d", ("p",)),
    "aten.flatten.using_ints": ("Flatten", ("start_dim", "end_dim")),
    "aten.pixel_shuffle.default": ("PixelShuffle", ("upscale_factor",)),
    **{
        f"aten.{kind}_pool{d}d.default": (
            f"{kind.capitalize()}Pool{d}d",
            ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "count_include_pad", "divisor_override"),
        )
        for kind in ("max", "avg")
        for d in (1, 2, 3)
    },
    **{f"aten.adaptive_avg_pool{d}d.default": (f"AdaptiveAvgPool{d}d", ("output_size",)) for d in (1, 2, 3)},
}
"""The module that makes a call, and the arguments of the operator that are its."""

_USUAL: dict[tuple[str, str], object] = {("Flatten", "start_dim"): 1, ("Dropout2d", "p"): 0.5, ("Dropout", "p"): 0.5}


def layer(node: Node) -> str | None:
    """Return the source of the module that makes a call, None if no stock module does."""
    if node.op not in LAYERS:
        return None
    kind, names = LAYERS[node.op]
    modes = {"train"} if mode_argument(node) else set()
    tensors = [n for n, a in node.arguments.items() if isinstance(a, Value)]
    if len(tensors) != 1 or set(node.arguments) - {*names, *tensors, *modes}:
        return None
    given: list[str] = []
    for at, name in enumerate(names):
        if name not in node.arguments and not (kind == "Flatten" and name == "start_dim"):
            continue
        value = node.argument(name)
        if isinstance(value, tuple) and any(isinstance(v, Value) for v in value):
            return None
        if (kind, name) in _USUAL and _USUAL[kind, name] == value:
            continue
        if name == "stride" and value == node.argument("kernel_size"):
            continue
        text = _short(value)
        given.append(text if at == 0 and len(given) == at else f"{name}={text}")
    return f"nn.{kind}({', '.join(given)})"


def _short(value: object) -> str:
    """Return the source of an argument, `2` for `[2, 2]`."""
    if isinstance(value, tuple):
        return literal(value[0]) if len(set(value)) == 1 else f"({', '.join(map(literal, value))})"
    return literal(value)
