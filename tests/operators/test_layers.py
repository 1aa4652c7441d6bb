"""The layer every operator is said to belong to, by capturing it; the axis of features, and what follows the mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import pytest
import torch
from torch import nn

from archir.ir import ops
from archir.ir.graph import Graph
from archir.ir.node import Node
from archir.ir.operators.operator import Kind, Layer
from archir.ir.operators.table import TABLE
from archir.ir.registry import operator_of
from frontends.pytorch import trace
from tests.operators.calls import EVERY
from tests.operators.made import make

IMAGES = {1: (2, 4, 8), 2: (2, 4, 8, 8), 3: (2, 4, 8, 8, 8)}
"""Inputs by the number of spatial axes."""

Built = tuple[nn.Module, tuple[int, ...]]


def _by_axes(module: str, *args: object, **options: object) -> dict[str, Callable[[], Built]]:
    return {
        f"{module}{n}d": lambda n=n: (getattr(nn, f"{module}{n}d")(*args, **options), IMAGES[n])  # type: ignore[misc]
        for n in (1, 2, 3)
    }


LAYERS: Mapping[str, Callable[[], Built]] = MappingProxyType(
    {
        "Linear": lambda: (nn.Linear(4, 3), (2, 4)),
        **_by_axes("Conv", 4, 3, 3),
        **_by_axes("ConvTranspose", 4, 3, 3),
        **_by_axes("BatchNorm", 4),
        **_by_axes("InstanceNorm", 4, affine=True, track_running_stats=True),
        **_by_axes("MaxPool", 2, stride=3, padding=1, ceil_mode=True),
        **_by_axes("AvgPool", 2, stride=3, padding=1, ceil_mode=True),
        **_by_axes("AdaptiveAvgPool", 2),
        "GroupNorm": lambda: (nn.GroupNorm(2, 4), (2, 4)),
        "LayerNorm": lambda: (nn.LayerNorm(4), (2, 4)),
        "RMSNorm": lambda: (nn.RMSNorm(4), (2, 4)),
        "LSTM": lambda: (nn.LSTM(4, 3, batch_first=True), (2, 5, 4)),
        "GRU": lambda: (nn.GRU(4, 3, batch_first=True), (2, 5, 4)),
        "RNN": lambda: (nn.RNN(4, 3, batch_first=True), (2, 5, 4)),
        "PReLU": lambda: (nn.PReLU(4), (2, 4)),
        "ELU": lambda: (nn.ELU(0.5), (2, 4)),
        "CELU": lambda: (nn.CELU(0.5), (2, 4)),
        "GELU": lambda: (nn.GELU("tanh"), (2, 4)),
        "LeakyReLU": lambda: (nn.LeakyReLU(0.3), (2, 4)),
        "Hardtanh": lambda: (nn.Hardtanh(-2.0, 3.0), (2, 4)),
        "Softplus": lambda: (nn.Softplus(2.0, 10.0), (2, 4)),
        "Threshold": lambda: (nn.Threshold(0.1, 0.2), (2, 4)),
        "Softmax": lambda: (nn.Softmax(1), (2, 4)),
        "LogSoftmax": lambda: (nn.LogSoftmax(1), (2, 4)),
        "Dropout": lambda: (nn.Dropout(0.3), (2, 4)),
        "Dropout2d": lambda: (nn.Dropout2d(0.3), IMAGES[2]),
        "AlphaDropout": lambda: (nn.AlphaDropout(0.3), (2, 4)),
        "FeatureAlphaDropout": lambda: (nn.FeatureAlphaDropout(0.3), IMAGES[2]),
        "Flatten": lambda: (nn.Flatten(2, 3), IMAGES[2]),
        "PixelShuffle": lambda: (nn.PixelShuffle(2), IMAGES[2]),
        **{
            name: lambda name=name: (getattr(nn, name)(), (2, 4))  # type: ignore[misc]
            for name in ("ReLU", "SiLU", "Mish", "SELU", "Sigmoid", "Tanh", "LogSigmoid")
        },
        **{name: lambda name=name: (getattr(nn, name)(), (2, 4)) for name in ("Hardsigmoid", "Hardswish")},  # type: ignore[misc]
    }
)
"""A module of every class, with options that are not its defaults where it has any, and the shape of its input."""


def _capture(module: str) -> tuple[nn.Module, Graph, Node]:
    """Return a layer, the graph captured of it, and the call it makes."""
    if module == "Embedding":
        layer: nn.Module = nn.Embedding(5, 3)
        graph = trace(layer, (torch.tensor([[1, 2], [3, 4]]),))
    else:
        layer, shape = LAYERS[module]()
        graph = trace(layer, (torch.rand(shape),))
    (node,) = (n for n in graph.calls if operator_of(n.op).layer and operator_of(n.op).kind is not None)
    return layer, graph, node


def _rows(module: str) -> dict[str, Layer]:
    """Return the rows that name a class, with or without its number of axes."""
    layers = {name: row.layer for name, row in TABLE.items() if row.layer}
    bare = module[:-2] if module[-2:] in ("1d", "2d", "3d") else module
    return {name: layer for name, layer in layers.items() if layer.module in (module, bare)}


@pytest.mark.parametrize("module", [*LAYERS, "Embedding"])
def test_a_layer_makes_the_call_its_operator_is_said_to_belong_to(module: str) -> None:
    layer, graph, node = _capture(module)
    found = operator_of(node.op).layer
    assert found is not None and found in _rows(module).values()
    stored = {use.argument for use, value in node.operands() if graph.node(value.node).parameter}
    assert stored - {"hx"} == set(found.tensors)
    for use, operand in node.operands():
        parameter = graph.node(operand.node).parameter
        assert parameter is None or use.argument in (parameter.names[0], "params")
    if found.tensors:
        return
    given = set(node.arguments) - {u.argument for u, _ in node.operands()} - {operator_of(node.op).mode}
    assert given <= set(found.options)
    for option in set(found.options) & given:
        value, own = node.argument(option), getattr(layer, option)
        assert value in (own, (own,) * (len(value) if isinstance(value, tuple) else 1)), option


def test_every_layer_is_captured() -> None:
    named = {row.layer.module for row in TABLE.values() if row.layer and row.layer.module}
    assert {m for m in named if not any(m in (k, k[:-2]) for k in (*LAYERS, "Embedding"))} == set()
    kinds = {row.kind for row in TABLE.values() if row.layer and not row.layer.module}
    assert kinds == {Kind.ACTIVATION, Kind.NORM, Kind.POOL, Kind.RECURRENT, Kind.ATTENTION}


PRODUCERS: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        **{f"conv{n}d": ("weight", 0) for n in (1, 2, 3)},
        **{f"conv_transpose{n}d": ("weight", 1) for n in (1, 2, 3)},
        "linear": ("weight", 0),
        "embedding": ("weight", 1),
        "addmm": ("mat2", 1),
        "scaled_dot_product_attention": ("value", -1),
    }
)
"""The operand whose size along an axis is the number of features."""


def test_features_lie_along_the_axis_named_for_them() -> None:
    found: set[str] = set()
    for call in map(make, EVERY):
        axis = call.row.features
        if axis is None or call.arguments.get("groups", 1) != 1:
            continue
        name, source = PRODUCERS[call.key]
        operand = call.arguments[name]
        if operand.dim() < 2:
            continue
        more = torch.cat([operand, operand, operand], source)
        cut = call.with_operands({(name, 0): more, **({("bias", 0): None} if "bias" in call.arguments else {})})
        if call.key == "addmm":
            cut = cut.with_operands({("self", 0): torch.zeros(more.shape[1], dtype=torch.float64)})
        (result,), (before,) = cut.real(), call.real()
        sizes = list(before.shape)
        sizes[axis] *= 3
        assert list(result.shape) == sizes, call.op
        found.add(call.key)
    assert found == {name for name, row in TABLE.items() if row.features is not None}


MODES: Mapping[str, object] = MappingProxyType({"dropout_p": 0.5})


def test_the_mode_is_told_by_the_argument_named_for_it() -> None:
    found: set[str] = set()
    for call in map(make, EVERY):
        mode = call.row.mode
        if not mode or mode not in ops.schema(call.op).names:
            continue
        changed = {mode: MODES.get(mode, True)}
        if call.row.kind is Kind.RECURRENT:
            continue
        if call.row.kind is Kind.NORM:
            changed |= {"running_mean": torch.zeros(6).double(), "running_var": torch.ones(6).double()}
        call = call.with_operands({("self", 0): -call.arguments["self"]} if call.key == "rrelu" else {})
        off = call.with_operands({}, **{**changed, mode: 0.0 if mode in MODES else False})
        on = call.with_operands({}, **changed)
        assert not torch.equal(on()[0], off()[0]), call.op
        found.add(call.key)
    recurrent = {name for name, row in TABLE.items() if row.kind is Kind.RECURRENT}
    assert found | recurrent == {name for name, row in TABLE.items() if row.mode}


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_recurrent_nets_have_dropout_in_training(cell: str) -> None:
    net = getattr(nn, cell)(4, 3, num_layers=2, dropout=0.5, batch_first=True)
    graph = trace(net, (torch.rand(2, 5, 4),))
    module = graph.module()
    x = torch.rand(2, 5, 4)
    assert torch.equal(module.eval()(x)[0], net.eval()(x)[0])
    assert not torch.equal(module.train()(x)[0], module.eval()(x)[0])
