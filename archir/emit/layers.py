"""Source that makes layers of `torch.nn`."""

from __future__ import annotations

import torch

from archir.emit.code import literal, size
from archir.ir.layers import Layer, Make, bare_layer
from archir.ir.node import Node

_USUAL: dict[tuple[str, str], object] = {
    ("Flatten", "start_dim"): 1,
    **{(kind, "p"): 0.5 for kind in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d")},
}

_SIZES = {
    **{f"{side}_{what}": f"{side}_{what}" for side in ("in", "out") for what in ("features", "channels")},
    **{n: n for n in ("num_features", "num_groups", "num_channels", "num_embeddings", "num_parameters", "groups")},
    **{n: n for n in ("embedding_dim", "input_size", "hidden_size")},
    "normalized_shape": "features",
}
"""The options that are sizes, and what these are called where they become arguments of a class."""

_POSITIONAL = {*_SIZES, "kernel_size"} - {"groups"}


def layer_source(layer: Layer) -> str:
    """Return the source that makes a layer with tensors."""
    nodes = [node for name, node in layer.tensors.items() if name != "num_batches_tracked"]
    arguments = [_option(name, value) for name, value in layer.make.options]
    if {node.tensor_type().dtype for node in nodes} != {torch.float32}:
        arguments.append(f"dtype={literal(nodes[0].tensor_type().dtype)}")
    frozen = layer.parameters and layer.frozen == layer.parameters
    return f"nn.{layer.make.kind}({', '.join(arguments)}){'.requires_grad_(False)' if frozen else ''}"


def bare_source(node: Node) -> str | None:
    """Return the source of the layer without tensors that makes a call, None if none does."""
    make = bare_layer(node)
    return None if make is None else f"nn.{make.kind}({', '.join(_bare_options(make))})"


def _bare_options(make: Make) -> list[str]:
    given: list[str] = []
    known = dict(make.options)
    for at, (name, value) in enumerate(make.options):
        usual = (make.kind, name) in _USUAL and _USUAL[make.kind, name] == value
        if usual or (name == "stride" and value == known.get("kernel_size")):
            continue
        given.append(_number(value) if at == len(given) == 0 else f"{name}={_number(value)}")
    return given


def _option(name: str, value: object) -> str:
    source = _number(value, _SIZES.get(name, ""))
    return source if name in _POSITIONAL else f"{name}={source}"


def _number(value: object, label: str = "") -> str:
    """Return the source of a number, or of several, marked as sizes if they have a label."""
    if isinstance(value, tuple):
        return f"({', '.join(_number(part, label) for part in value)})"
    return size(label, value) if label and isinstance(value, int) else literal(value)
