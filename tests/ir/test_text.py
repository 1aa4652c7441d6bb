"""The text form: goldens, and back again."""

from __future__ import annotations

import math
import re

import pytest
import torch

from archir.errors import GraphError
from archir.ir.builder import GraphBuilder as Builder
from archir.ir.builder import parse_tensor_type as tensor_type
from archir.ir.graph import Graph
from archir.ir.node import PARAMETER, Node, Signature, Tree
from archir.ir.parse import parse_graph
from archir.ir.random_tensors import sample
from archir.ir.text import AxisNames, print_graph
from archir.ir.types import TensorType, symbol
from tests.models.equality import same
from tests.models.texts import GRAPHS, TEXTS, TOLD, conv_bn, tied, told


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_is_the_golden(name: str) -> None:
    assert str(GRAPHS[name]()) == TEXTS[name]


def test_the_text_with_locations_is_the_golden() -> None:
    assert print_graph(told(), locations=True) == TOLD


@pytest.mark.parametrize("name", GRAPHS)
def test_the_text_reads_back(name: str) -> None:
    graph = GRAPHS[name]()
    text = str(graph)
    found = parse_graph(text)
    assert str(found) == text
    assert found.signature == graph.signature
    assert [n.op for n in found.calls] == [n.op for n in graph.calls]
    assert [n.results for n in found.calls] == [n.results for n in graph.calls]
    assert {n.parameter for n in found.parameters} == {n.parameter for n in graph.parameters}
    assert [n.id for n in found.nodes] == list(range(len(graph)))


@pytest.mark.parametrize("name", GRAPHS)
def test_the_text_with_locations_keeps_everything(name: str) -> None:
    graph = GRAPHS[name]()
    text = print_graph(graph, locations=True)
    found = parse_graph(text, {n.parameter.names[0]: graph.tensors[n.id] for n in graph.parameters if n.parameter})
    assert same(found, graph)
    assert print_graph(found, locations=True) == text


def _names(graph: Graph) -> AxisNames:
    """Name the four channels of `conv_bn` wherever they stand."""
    return {n.id: tuple(tuple("w0" if s == 4 else "" for s in _shape(t)) for t in n.results) for n in graph.nodes}


def _shape(type_: object) -> tuple[object, ...]:
    return type_.shape if isinstance(type_, TensorType) else ()


def test_names_of_axes_are_defined_once_and_read_back() -> None:
    graph = conv_bn()
    text = print_graph(graph, names=_names(graph))
    assert "@conv.weight[w0=4, 3, 3, 3]" in text
    assert text.count("w0=4") == 1
    assert text.count("f32[B, w0, 8, 8]") == 3
    assert "buffer @bn.running_var[w0]" in text
    assert str(parse_graph(text)) == str(graph)


def test_names_of_axes_may_be_products_and_stand_in_inputs_and_declarations() -> None:
    b = Builder()
    x = b.input("x", "f32[B, 6]")
    b.parameter("old", "f32[6, 2]")
    graph = b.graph(b.call("aten.relu.default", x))
    text = print_graph(graph, names={0: (("never", "3*w0"),), 1: (("3*w0", "w0"),), 2: (("", "w0"),)})
    assert "net(x: f32[B, 3*w0=6])" in text
    assert "param @old : f32[3*w0, w0=2]" in text
    assert "f32[B, 6]" in text, "a name that stood for another size is not shown"
    assert str(parse_graph(text)) == str(graph)


def test_a_named_width_may_stand_in_an_expression() -> None:
    graph = parse_graph("graph net(x: f32[B, w=4]) {\n  %0 = aten.cat([x, x], dim=1) : f32[B, 2*w]\n  return %0\n}")
    assert graph.node(1).results == (tensor_type("f32[B, 8]"),)


@pytest.mark.parametrize(
    "value", [3, -1, 1.0, -0.0, 1e-5, 1e300, math.inf, -math.inf, True, False, 2j, complex(-0.0, 1)]
)
def test_numbers_read_back_exactly(value: complex) -> None:
    b = Builder()
    x = b.input("x", "f32[B, 3]")
    found = parse_graph(str(b.graph(b.call("aten.mul.Scalar", x, value)))).node(1).arguments["other"]
    assert type(found) is type(value)
    assert repr(found) == repr(value)


def test_not_a_number_reads_back() -> None:
    b = Builder()
    found = parse_graph(str(b.graph(b.call("aten.add.Scalar", b.input("x", "f32[3]"), math.nan))))
    assert math.isnan(found.node(1).arguments["other"])  # type: ignore[arg-type]


def test_strings_devices_layouts_and_nested_tuples_read_back() -> None:
    b = Builder()
    x = b.input("x", "f32[2, 3]")
    y = b.call("aten.einsum.default", "ij,ik->jk", (x, x))
    z = b.call("aten.full.default", (2,), 1.0, dtype=torch.float16, layout=torch.strided, device=torch.device("cuda:1"))
    i = b.call("aten.zeros.default", (3,), dtype=torch.int64)
    w = b.call("aten.index.Tensor", x, (None, i))
    graph = b.graph(y, z, w, result=Tree("list", (0, 1, 2)))
    text = str(graph)
    assert 'equation="ij,ik->jk", tensors=[x, x]' in text
    assert "dtype=f16, layout=strided, device=cuda:1" in text
    assert "aten.index.Tensor(x, [None, %2])" in text
    assert parse_graph(text).nodes == graph.nodes


def test_names_that_mean_something_else_are_quoted() -> None:
    words = ["f32", "inf", "cpu", "strided", "buffer", "complex", "float", "é", "_x1"]
    b = Builder("graph")
    values = [b.input(word, "f32[B]") for word in words]
    values += [b.parameter(name, "f32[2]") for name in ("a-b", "ü.0", "__metadata", "a}) or ({", "0")]
    text = str(b.graph(*values, result=Tree("tuple", tuple(range(len(values))))))
    quoted = re.findall(r"(?<!@)`([^`]*)`: ", text)
    assert quoted == ["f32", "inf", "cpu", "strided", "buffer", "complex", "float"]
    assert "@`a-b`[2], @ü.0[2], @__metadata[2], @`a}) or ({`[2], @0[2]" in text
    found = parse_graph(text)
    assert [n.name for n in found.inputs] == words
    assert str(found) == text


def test_a_graph_without_calls_may_return_inputs_parameters_and_nothing() -> None:
    b = Builder()
    x, w = b.input("x", "f32[B]"), b.parameter("w", "f32[2]")
    text = str(b.graph(x, w, x, result=Tree("tuple", (0, 1, 2))))
    assert text == "graph net(x: f32[B]) {\n  return (x, @w[2], x)\n}"
    assert str(parse_graph(text)) == text
    for result in ("()", "[]", "{}", "None", '"text"', "(3,)", "-2.5"):
        text = f"graph net() {{\n  return {result}\n}}"
        assert str(parse_graph(text)) == text


def test_inputs_may_be_called_in_another_order() -> None:
    b = Builder()
    x, y = b.input("x", "f32[B]").node, b.input("y", "f32[2]").node
    graph = b.graph(b.call("aten.relu.default", b.input("z", "f32[1]")), signature=_swapped(x, y))
    text = str(graph)
    assert "  call (y, x, z, `f32`=None)\n" in text
    assert parse_graph(text).signature == graph.signature


def _swapped(x: int, y: int) -> Signature:
    form = parse_graph("graph net() {\n  call (`f32`=None)\n  return ()\n}").signature.kwargs
    return Signature(Tree("tuple", (y, x, 2)), form, 0)


def test_types_may_be_left_out_and_calls_span_lines() -> None:
    text = """
    graph net(x: f32[B, 3]) {  # a comment
      %7 = aten.linear(   # another
          x, @w[2, 3],
      )
      return %7
    }
    """
    assert str(parse_graph(text)).splitlines()[1] == "  %0 = aten.linear(x, @w[2, 3]) : f32[B, 2]"


def test_run_time_numbers_and_sizes_of_every_form_read_back() -> None:
    text = """\
graph net(a: int(floor(B/2) + 1), b: float, c: bool, x: f32[Max(1, B - 2), Mod(B, 3), B*n, 3*B/2, B**2]) {
  return x
}"""
    found = parse_graph(text)
    assert str(found) == text
    size = found.inputs[3].tensor_type().shape[2]
    assert size == symbol("B") * symbol("n")


def test_operators_whose_types_cannot_be_inferred_keep_the_types_given() -> None:
    text = """\
graph net(x: f32[B, 3]) {
  %0 = aten.nonzero(x) : i64[u, 2]
  return %0
}"""
    assert str(parse_graph(text)) == text


def test_made_up_tensors_depend_on_the_name_alone() -> None:
    graph, again = parse_graph(TEXTS["tied"]), parse_graph(str(tied()))
    assert same(graph, again)
    weight = sample("w", tensor_type("f64[64, 32, 3, 3]"))
    assert weight.std().item() * (32 * 9) ** 0.5 == pytest.approx(1, rel=0.05)
    assert torch.equal(weight.float(), sample("w", tensor_type("f32[64, 32, 3, 3]")))
    assert not torch.equal(weight, sample("v", tensor_type("f64[64, 32, 3, 3]")))
    assert sample("var", tensor_type("f32[99]"), "buffer").min() >= 0.5
    assert not sample("ids", tensor_type("i64[9]")).any()
    assert sample("rope", tensor_type("c64[2, 2]"), "buffer").is_complex()


def test_a_parameter_node_without_a_parameter_is_an_error() -> None:
    graph = Graph("net", [Node(0, PARAMETER, results=(tensor_type("f32[1]"),))], {}, conv_bn().signature)
    with pytest.raises(GraphError, match="parameter node 0 does not say what it is"):
        str(graph)
