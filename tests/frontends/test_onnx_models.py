"""Models of the zoo go from torch to ONNX and back: the same function, widths, names and parameters."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from archir.axes.infer import infer_widths
from archir.ir.graph import Graph
from frontends.onnx.read import from_onnx
from tests.models.captured import graph_of
from tests.models.onnx_files import export_model
from tests.models.zoo import ZOO

EXPORTED = [name for name in ZOO if name != "nested"]
"""The models that the exporter of torch writes: one returns a constant, which it refuses."""

QUICK = ["mobilenet", "vit", "gpt", "weight_standardisation", "two_heads"]

EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EXPORTED]

FEWEST = {"shape_branch": 3}
"""The smallest batch of a model that decides by it: a file has the branch it was exported with, and does not say so."""


@cache
def read(name: str, *, optimize: bool = False, opset: int | None = None) -> tuple[Graph, nn.Module, list[Tensor]]:
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.onnx"
        model, inputs = export_model(name, file, optimize=optimize, opset=opset)
        return from_onnx(file), model, inputs


def results(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [t for t in pytree.tree_leaves(module.eval()(*inputs)) if isinstance(t, Tensor)]


def sizes(graph: Graph) -> list[int]:
    return sorted(width.size for width in infer_widths(graph))


def assert_same_function(graph: Graph, model: nn.Module, inputs: list[Tensor], fewest: int = 1) -> None:
    for rows in (len(inputs[0]), fewest):
        given = [t[:rows] for t in inputs]
        found, wanted = results(graph.module(), given), results(model, given)
        assert len(found) == len(wanted) > 0
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_what_was_exported_is_read_as_it_was_traced(name: str) -> None:
    graph, model, inputs = read(name)
    traced = graph_of(name)
    assert_same_function(graph, model, inputs, FEWEST.get(name, 1))
    assert sizes(graph) == sizes(traced)
    assert graph.parameter_count == traced.parameter_count
    stored = {n for node in traced.parameters if node.is_trainable for n in node.names}
    found = {n for node in graph.parameters if node.is_trainable for n in node.names}
    assert found <= stored, "names are kept"


@pytest.mark.parametrize("name", [*QUICK, pytest.param("unet", marks=pytest.mark.slow)])
def test_what_the_optimiser_of_the_exporter_wrote_is_read(name: str) -> None:
    graph, model, inputs = read(name, optimize=True)
    assert_same_function(graph, model, inputs)
    assert sizes(graph) == sizes(graph_of(name))


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 22, 23])
def test_operator_sets(opset: int) -> None:
    assert_same_function(*read("gpt", opset=opset))


def test_nodes_know_their_modules() -> None:
    graph, _, _ = read("mobilenet")
    found = {node.op: node.location.module for node in graph.calls if node.location}
    assert found["aten.linear.default"] == "fc"
    norms = [node for node in graph.calls if node.op == "aten.batch_norm.default"]
    assert {n.location.kind.rpartition(".")[2] for n in norms if n.location} == {"BatchNorm2d"}


def test_statistics_are_buffers_and_follow_the_mode() -> None:
    graph, model, inputs = read("mobilenet")
    kinds = {n: node.parameter.kind for node in graph.parameters if node.parameter for n in node.names}
    assert {kinds[n] for n in kinds if "running_" in n} == {"buffer"}
    one, other = graph.module().train(), model.train()
    with torch.no_grad():
        one(*inputs)
        other(*inputs)
    model.eval()
    state, wanted = dict(one.named_buffers()), dict(model.named_buffers())
    for name in [n for n in state if "running_" in n]:
        torch.testing.assert_close(state[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_layers_of_transformers_are_linear_with_the_weights_of_torch() -> None:
    for optimize in (False, True):
        graph, model, _ = read("vit", optimize=optimize)
        state = model.state_dict()
        linear = [node for node in graph.calls if node.op == "aten.linear.default"]
        assert len(linear) == 5
        for node in linear:
            weight = graph.node(node.operand("weight").node)
            torch.testing.assert_close(graph.tensors[weight.id], state[weight.names[0]], rtol=0, atol=0)


def test_tied_weights_stay_one() -> None:
    for optimize in (False, True):
        graph, _, _ = read("gpt_tied", optimize=optimize)
        table = next(node for node in graph.calls if node.op == "aten.embedding.default")
        head = [node for node in graph.calls if node.op == "aten.linear.default"][-1]
        assert table.operand("weight") == head.operand("weight")


def test_equal_weights_that_are_stored_once_are_two_again() -> None:
    graph, model, _ = read("vit", optimize=True)
    names = {n for node in graph.parameters for n in node.names}
    assert (
        {"norm1.weight", "norm2.weight", "norm1.bias", "norm2.bias"} <= names <= set(model.state_dict()) | {"constant"}
    )
