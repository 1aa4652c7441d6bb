"""Costs read off the types: every rule against PyTorch's own counter, on graphs of one call and whole models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from archir.cost import Cost, cost, node_flops
from archir.errors import GraphError
from archir.ir import ops
from archir.ir.builder import GraphBuilder as Builder
from archir.ir.execute import compile_call
from archir.ir.graph import Graph
from archir.ir.node import INPUT, OUTPUT, PARAMETER, Node, Parameter, Signature, Tree, Value
from archir.ir.registry import operator_of
from archir.ir.types import TensorType, symbol
from tests.models.captured import graph_of
from tests.models.zoo import ZOO
from tools.peak_memory import PeakMemory

B = symbol("B")
BATCH = 6


class T:
    """Stands for a tensor operand of a given shape, `B` the batch size."""

    def __init__(self, *shape: Any, dtype: torch.dtype = torch.float64) -> None:
        self.type = TensorType(dtype, shape)


def _one_call(op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Graph:
    """Return a graph whose inputs are the tensors among the arguments, and whose one call is `op`."""
    inputs: list[Node] = []

    def place(argument: Any) -> Any:
        if isinstance(argument, list):
            return tuple(place(a) for a in argument)
        if not isinstance(argument, T):
            return argument
        inputs.append(Node(len(inputs), INPUT, results=(argument.type,), name=f"x{len(inputs)}"))
        return Value(inputs[-1].id)

    def typed(argument: Any) -> Any:
        if isinstance(argument, tuple):
            return tuple(map(typed, argument))
        return inputs[argument.node].results[0] if isinstance(argument, Value) else argument

    placed = [place(a) for a in args]
    arguments = ops.normalise(op, placed, {k: place(v) for k, v in kwargs.items()})
    results = ops.infer_types(op, {k: typed(a) for k, a in arguments.items()})
    call = Node(len(inputs), op, arguments, results)
    output = Node(len(inputs) + 1, OUTPUT, {"0": Value(call.id)})
    signature = Signature(Tree("tuple", tuple(range(len(inputs)))), Tree("dict"), 0)
    return Graph("net", [*inputs, call, output], {}, signature)


def _counted(op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Return the FLOPs PyTorch counts while it runs the operator."""

    def make(argument: Any) -> Any:
        if isinstance(argument, list):
            return [make(a) for a in argument]
        if not isinstance(argument, T):
            return argument
        shape = [s if isinstance(s, int) else int(s.subs({B: BATCH})) for s in argument.type.shape]
        return torch.randn(shape, dtype=argument.type.dtype)

    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        ops.function(op)(*map(make, args), **kwargs)
    return int(counter.get_total_flops())


CALLS: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "conv1d": ("aten.conv1d.default", [T(B, 4, 9), T(6, 4, 3)], {}),
    "conv2d": ("aten.conv2d.default", [T(B, 4, 9, 8), T(6, 4, 3, 2), T(6), [2, 1], [1, 0]], {}),
    "conv2d same": ("aten.conv2d.padding", [T(B, 4, 9, 8), T(6, 4, 3, 3)], {"padding": "same"}),
    "grouped conv2d": ("aten.conv2d.default", [T(B, 4, 9, 8), T(6, 2, 3, 3)], {"groups": 2}),
    "conv3d": ("aten.conv3d.default", [T(B, 2, 5, 5, 5), T(3, 2, 3, 3, 3)], {}),
    "transposed": ("aten.conv_transpose2d.input", [T(B, 4, 5, 5), T(4, 3, 2, 2), None, [2, 2]], {}),
    "grouped transposed": (
        "aten.conv_transpose2d.input",
        [T(B, 4, 5, 5), T(4, 3, 3, 3)],
        {"groups": 2, "stride": [2, 2]},
    ),
    "convolution": (
        "aten.convolution.default",
        [T(B, 4, 9), T(6, 4, 3), None, [1], [0], [1], False, [0], 1],
        {},
    ),
    "convolution transposed": (
        "aten.convolution.default",
        [T(B, 4, 9), T(4, 6, 3), None, [2], [0], [1], True, [0], 1],
        {},
    ),
    "linear": ("aten.linear.default", [T(B, 7, 5), T(3, 5), T(3)], {}),
    "linear on vectors": ("aten.linear.default", [T(B, 5), T(3, 5)], {}),
    "matmul": ("aten.matmul.default", [T(B, 2, 7, 5), T(B, 2, 5, 3)], {}),
    "matmul by a matrix": ("aten.matmul.default", [T(B, 7, 5), T(5, 3)], {}),
    "mm": ("aten.mm.default", [T(B, 5), T(5, 3)], {}),
    "bmm": ("aten.bmm.default", [T(B, 4, 5), T(B, 5, 3)], {}),
    "addmm": ("aten.addmm.default", [T(3), T(B, 5), T(5, 3)], {}),
    "baddbmm": ("aten.baddbmm.default", [T(B, 4, 3), T(B, 4, 5), T(B, 5, 3)], {}),
    "einsum of two": ("aten.einsum.default", ["bhqd,bhkd->bhqk", [T(B, 2, 7, 5), T(B, 2, 3, 5)]], {}),
    "einsum with an ellipsis": ("aten.einsum.default", ["...i,oi->...o", [T(B, 7, 5), T(3, 5)]], {}),
    "einsum without an arrow": ("aten.einsum.default", ["bi,io", [T(B, 5), T(5, 3)]], {}),
    "einsum that sums first": ("aten.einsum.default", ["bij,jo->bo", [T(B, 4, 5), T(5, 3)]], {}),
    "einsum of three": (
        "aten.einsum.default",
        ["bi,ij,jk->bk", [T(B, 4), T(4, 5), T(5, 3)]],
        {"path": [0, 1, 0, 1]},
    ),
    "attention": (
        "aten.scaled_dot_product_attention.default",
        [T(B, 2, 7, 4), T(B, 2, 5, 4), T(B, 2, 5, 4)],
        {},
    ),
    "grouped attention": (
        "aten.scaled_dot_product_attention.default",
        [T(B, 4, 7, 4), T(B, 2, 7, 4), T(B, 2, 7, 4)],
        {"enable_gqa": True},
    ),
    "lstm": (
        "aten.lstm.input",
        [
            T(B, 7, 5),
            [T(4, B, 3), T(4, B, 3)],
            [T(12, 5), T(12, 3), T(12), T(12)] * 2 + [T(12, 6), T(12, 3), T(12), T(12)] * 2,
            True,
            2,
            0.0,
            False,
            True,
            True,
        ],
        {},
    ),
    "gru": (
        "aten.gru.input",
        [T(7, B, 5), T(1, B, 3), [T(9, 5), T(9, 3)], False, 1, 0.0, False, False, False],
        {},
    ),
    "lstm cell": ("aten.lstm_cell.default", [T(B, 5), [T(B, 3), T(B, 3)], T(12, 5), T(12, 3)], {}),
    "gru cell": ("aten.gru_cell.default", [T(B, 5), T(B, 3), T(9, 5), T(9, 3)], {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_flops_are_those_pytorch_counts(name: str) -> None:
    op, args, kwargs = CALLS[name]
    counted = _counted(op, args, kwargs)
    assert counted > 0
    assert cost(_one_call(op, args, kwargs), BATCH).flops == counted


COUNTED_BY_HAND: dict[str, tuple[str, list[Any], int]] = {
    "bilinear": ("aten.bilinear.default", [T(B, 4), T(B, 5), T(3, 4, 5)], 2 * BATCH * 3 * (4 * 5 + 5)),
    "addbmm": ("aten.addbmm.default", [T(4, 3), T(B, 4, 5), T(B, 5, 3)], 2 * BATCH * 4 * 5 * 3),
    "addmv": ("aten.addmv.default", [T(B), T(B, 5), T(5)], 2 * BATCH * 5),
    "mv": ("aten.mv.default", [T(B, 5), T(5)], 2 * BATCH * 5),
    "dot": ("aten.dot.default", [T(5), T(5)], 2 * 5),
    "inner": ("aten.inner.default", [T(B, 5), T(3, 5)], 2 * BATCH * 5 * 3),
    "relu": ("aten.relu.default", [T(B, 5)], BATCH * 5),
    "add, broadcast": ("aten.add.Tensor", [T(B, 5), T(3, 1, 1)], 3 * BATCH * 5),
    "mean": ("aten.mean.dim", [T(B, 5, 7), [2]], BATCH * 5 * 7),
    "layer_norm": ("aten.layer_norm.default", [T(B, 5), [5]], BATCH * 5),
    "max_pool2d": ("aten.max_pool2d.default", [T(B, 3, 8, 8), [2, 2]], BATCH * 3 * 64),
    "view": ("aten.view.default", [T(B, 4, 3), [-1, 12]], 0),
    "cat": ("aten.cat.default", [[T(B, 5), T(B, 3)], 1], 0),
    "chunk": ("aten.chunk.default", [T(B, 6), 2, 1], 0),
    "size": ("aten.sym_size.int", [T(B, 6), 0], 0),
    "arange": ("aten.arange.default", [5], 0),
}


@pytest.mark.parametrize("name", COUNTED_BY_HAND)
def test_flops_pytorch_does_not_count(name: str) -> None:
    op, args, flops = COUNTED_BY_HAND[name]
    assert cost(_one_call(op, args, {}), BATCH).flops == flops


def test_bytes_are_those_of_what_is_made_views_left_out() -> None:
    assert cost(_one_call("aten.relu.default", [T(B, 5)], {}), BATCH).bytes == 8 * BATCH * 5
    assert cost(_one_call("aten.relu.default", [T(B, 5, dtype=torch.float16)], {}), BATCH).bytes == 2 * BATCH * 5
    assert cost(_one_call("aten.view.default", [T(B, 4, 3), [-1, 12]], {}), BATCH).bytes == 0


def test_one_example_is_the_default() -> None:
    graph = _one_call("aten.linear.default", [T(B, 5), T(3, 5)], {})
    assert cost(graph) == Cost(0, 2 * 15, 8 * 3, 8 * 3)


def test_trainable_parameters_are_counted_once() -> None:
    trainable = Node(0, PARAMETER, results=(TensorType(torch.float32, (3, 5)),), parameter=Parameter(("a.w", "b.w")))
    buffer = Node(
        1, PARAMETER, results=(TensorType(torch.float32, (7,)),), parameter=Parameter(("m",), "buffer", trainable=False)
    )
    output = Node(2, OUTPUT, {"0": Value(0)})
    tensors = {0: torch.zeros(3, 5), 1: torch.zeros(7)}
    graph = Graph("net", [trainable, buffer, output], tensors, Signature(Tree("tuple"), Tree("dict"), 0))
    assert cost(graph) == Cost(15, 0, 0)


def test_costs_add_and_subtract() -> None:
    assert Cost(3, 5, 7, 9) + Cost(1, 1, 1, 1) == Cost(4, 6, 8, 10)
    assert Cost(3, 5, 7, 9) - Cost(1, 1, 1, 1) == Cost(2, 4, 6, 8)
    assert -Cost(3, 5, 7, 9) == Cost(-3, -5, -7, -9)


def test_what_frees_room() -> None:
    assert not Cost(3, 0, -7, 1).frees
    assert Cost(3, -1, 7, 1).frees and Cost(3, 1, 7, -1).frees


def test_peak_bytes_are_those_of_a_run_that_lets_go_of_what_is_used() -> None:
    b = Builder("net")
    x = b.input("x", "f64[B, 4]")
    wide = b.call("aten.repeat.default", x, (1, 8))  # 32 numbers
    seen = b.call("aten.view.default", wide, (-1, 4, 8))  # no memory of its own, keeps that of `wide`
    halves = b.call("aten.split.Tensor", b.call("aten.relu.default", seen), 2, 1)
    left = b.call("aten.sigmoid.default", Value(halves.node, 0))
    right = b.call("aten.exp.default", Value(halves.node, 1))
    total = b.call("aten.add.Tensor", left, right)
    graph = b.graph(
        b.call(
            "aten.add.Tensor",
            b.call("aten.sum.dim_IntList", seen, (1, 2)),
            b.call("aten.sum.dim_IntList", total, (1, 2)),
        )
    )
    found = cost(graph, BATCH)
    mode, given = PeakMemory(), torch.randn(BATCH, 4, dtype=torch.float64)  # the caller keeps its input
    values: dict[Value, Any] = {Value(graph.inputs[0].id): given}
    last = {v: n.id for n in (*graph.calls, graph.output) for _, v in n.operands()}
    with mode:
        for node in graph.calls:
            results = compile_call(node)(values.__getitem__)
            values |= {Value(node.id, i): r for i, r in enumerate(results)}
            del results
            for _, value in node.operands():
                if last[value] == node.id:
                    values.pop(value, None)
    assert (mode.peak - given.nbytes, mode.total - given.nbytes) == (found.peak_bytes, found.bytes)
    assert 0 < found.peak_bytes < found.bytes


def test_only_calls_have_flops() -> None:
    graph = _one_call("aten.relu.default", [T(B, 5)], {})
    with pytest.raises(GraphError, match="a node input does not compute anything"):
        node_flops(graph, graph.inputs[0])


@pytest.mark.parametrize("name", ZOO)
def test_whole_models_cost_what_pytorch_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    torch.manual_seed(0)
    example = ZOO[name]
    model = example.build().double().eval()
    inputs, keywords = (_doubles(x) for x in (example.inputs(), example.kwargs()))
    graph = graph_of(name).to(torch.float64)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(*inputs, **keywords)
    multiplied = [n for n in graph.calls if operator_of(n.op).multiply_adds]
    assert sum(node_flops(graph, n, example.batch) for n in multiplied) == counter.get_total_flops()
    found = cost(graph, example.batch)
    assert found.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.flops >= counter.get_total_flops() and found.bytes > 0


def _doubles(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: _doubles(v) for k, v in value.items()}
    return type(value)(map(_doubles, value)) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"Q": 3}, "no input has the size Q: known: B"),
        ({3: 1}, "no input has the size 3: known: B"),
        ({"B": 0}, "B is 0"),
        ([3], "sizes are a mapping"),
    ],
)
def test_sizes_that_no_input_has_are_refused(sizes: Any, told: str) -> None:
    with pytest.raises(GraphError, match=told):
        cost(graph_of("mlp"), sizes=sizes)
