"""What stands in a call is what the schema of its operator takes, whoever makes the call."""

from __future__ import annotations

import pytest
import torch

from archir.errors import GraphError, ParseError
from archir.ir import ops
from archir.ir.arithmetic import ARITHMETIC
from archir.ir.builder import GraphBuilder as Builder
from archir.ir.node import Argument, Node, Value
from archir.ir.parse import parse_graph
from archir.ir.types import RARE_DTYPES, ScalarType, TensorType, parse_dtype

X = TensorType(torch.float32, (2, 3))
CODE = "__import__('os').abort()"
REFUSED: list[tuple[str, str, object, str]] = [
    ("aten.layer_norm.default", "eps", CODE, "it takes a float"),
    ("aten.layer_norm.default", "normalized_shape", (CODE,), "a list of at most 65,536 parts, each an integer"),
    ("aten.relu.default", "self", CODE, "it takes a tensor"),
    ("aten.cat.default", "tensors", (2.0,), "a list of at most 65,536 parts, each a tensor"),
    ("aten.index.Tensor", "indices", (2,), "parts, each a tensor or None"),
    ("aten.add.Tensor", "alpha", CODE, "it takes a number"),
    ("aten.zeros.default", "size", (2**63,), "parts, each an integer"),
    ("aten.zeros.default", "size", 3, "parts, each an integer"),
    ("aten.zeros.default", "size", ((3,),), "parts, each an integer"),
    ("aten.sum.dim_IntList", "keepdim", 1, "it takes a truth value"),
    ("aten.sum.dim_IntList", "dtype", 6, "it takes an element type or None"),
    ("aten.to.dtype", "dtype", 12, "it takes an element type"),
    ("aten.zeros.default", "dtype", torch.quint8, "it takes an element type"),
    ("aten.zeros.default", "dtype", torch.bits16, "it takes an element type"),
    ("aten.zeros.default", "layout", 1, "it takes a layout"),
    ("aten.zeros.default", "layout", torch.sparse_coo, "it takes a layout"),
    ("aten.clone.default", "memory_format", 77, "it takes a memory format"),
    ("aten.contiguous.default", "memory_format", 77, "it takes a memory format"),
    ("aten.zeros.default", "device", "cuda", "it takes a device"),
    ("aten.zeros.default", "device", torch.device("meta"), "it takes a device"),
    ("aten.rand.generator", "generator", 3, "nothing that can be written"),
    ("aten.gelu.default", "approximate", CODE, "the name of a formula"),
    ("aten.einsum.default", "equation", CODE, "it takes an equation"),
    ("operator.mul", "a", "ha", "it takes an integer, a truth value or a float"),
    ("operator.mul", "a", (1, 2), "it takes an integer"),
    ("operator.mul", "a", None, "it takes an integer"),
    ("torch.sym_ite", "c", torch.float32, "it takes an integer"),
    ("aten.relu.default", "evil", 3, "it has self"),
]


@pytest.mark.parametrize(("op", "name", "constant", "why"), REFUSED)
def test_a_constant_the_schema_does_not_take_is_refused(op: str, name: str, constant: Argument, why: str) -> None:
    with pytest.raises(GraphError, match=op) as caught:
        Node(0, op, {name: constant})
    assert repr(name) in caught.value.what and why in caught.value.why + caught.value.hint
    assert len(caught.value.what) < 200
    with pytest.raises(GraphError, match=repr(name)):
        ops.infer_types(op, {name: constant})


@pytest.mark.parametrize(
    ("op", "name"),
    [("aten.zeros.default", "dtype"), ("aten.gelu.default", "approximate"), ("aten.zeros.default", "device")],
)
def test_a_computed_value_stands_for_no_text_and_no_type(op: str, name: str) -> None:
    with pytest.raises(GraphError, match="was given a computed value"):
        Node(0, op, {name: Value(0)})
    with pytest.raises(GraphError, match="was given a computed value"):
        ops.infer_types(op, {name: ScalarType("int")})


def test_constants_are_checked_where_no_type_can_be_inferred() -> None:
    text = "graph net(x: f32[B, 3], n: int) {{\n  %0 = aten.layer_norm(x, [n], eps={}) : f32[B, 3]\n  return %0\n}}"
    assert len(list(parse_graph(text.format("0.5")).calls)) == 1
    with pytest.raises(ParseError, match="was given") as caught:
        parse_graph(text.format(f'"{CODE}"'))
    assert "line 2, column 8" in caught.value.where


def test_what_operators_take_is_accepted() -> None:
    b = Builder()
    x = b.input("x", "f32[2, 3]")
    b.call("aten.dropout.default", x, 0, False)
    b.call("aten.add.Tensor", x, 2, alpha=True)
    b.call("aten.sum.dim_IntList", x, None, True, dtype=torch.float64)
    b.call("aten.index.Tensor", x, (None, b.call("aten.arange.default", 2)))
    b.call("aten.clamp.default", x, None, float("inf"))
    b.call("aten.avg_pool1d.default", x, (2,))
    b.call("aten.avg_pool1d.default", x, 2)
    b.call("aten.einsum.default", "...i,ij -> ...j", (x, b.call("aten.t.default", x)))
    b.call("aten.to.device", x, torch.device("cuda:0"), torch.float16, memory_format=torch.preserve_format)
    b.call("aten.mul.Tensor", x, b.call("operator.add", 2, 1))
    assert [str(n.results[0]) for n in b.graph(x).calls][-1] == "f32[2, 3]"


def test_element_types_are_a_closed_list() -> None:
    assert parse_dtype("float32") is parse_dtype("f32") is torch.float32
    assert all(parse_dtype(name) is dtype for name, dtype in RARE_DTYPES.items())
    for name in ("quint8", "bits16", "int4", "float4_e2m1fn_x2"):
        with pytest.raises(ParseError, match="is not an element type"):
            parse_dtype(name)


def test_arithmetic_takes_numbers_alone_and_rounds_at_once() -> None:
    for parts in (("ab", 10**9), ([1], 10**9), (torch.ones(2), 2), (None, 1)):
        with pytest.raises(GraphError, match="computes with numbers, not with a"):
            ARITHMETIC["operator.mul"](*parts)
    assert ARITHMETIC["builtins.round"](5, -(10**12)) == 0 and ARITHMETIC["builtins.round"](1250, -2) == 1200
    assert ARITHMETIC["builtins.round"](2.5) == 2 and type(ARITHMETIC["builtins.round"](2.5)) is int
    assert ARITHMETIC["builtins.round"](2.675, 10**12) == 2.675
    for exponent in (64, 10**15, 2**63 - 1):
        with pytest.raises(GraphError, match="more than 64 bits"):
            ARITHMETIC["operator.pow"](-10, exponent)
    assert ARITHMETIC["operator.pow"](True, 10**15) == 1 and ARITHMETIC["operator.pow"](-1, 10**15 + 1) == -1
