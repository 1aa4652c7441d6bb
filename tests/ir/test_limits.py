"""What reading a graph may take: large powers, deep nests and long loops are refused at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from archir.errors import GraphError, ParseError
from archir.ir import limits, ops
from archir.ir.arithmetic import ARITHMETIC
from archir.ir.parse import parse_graph
from archir.ir.types import TensorType, parse_size, symbol


def _graph(body: str, inputs: str = "x: f32[B, 3]", result: str = "x") -> str:
    return f"graph net({inputs}) {{\n  {body}\n  return {result}\n}}"


SIZES = [
    *(
        "9**9**9**9",
        "2**(2**(2**B))",
        "B**1000",
        "(B**4)**4",
        "B**B",
        "floor((B**100+1)**100/7)",
        "2**63",
        "1/2",
        "1/0",
    ),
    *("B/0", "Mod(B, 0)", "-" * 2000 + "1", "(" * 5000 + "B" + ")" * 5000, "1" * 5000, "f(B)", "x.y", "[1]"),
    *(
        "True",
        "B if B else 1",
        "lambda: 1",
        "floor(x=B)",
        "9999999999*9999999999*9999999999*9999999999",
        "B*" * 40 + "B",
    ),
]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size[:20])
def test_a_size_too_large_or_none_is_refused_at_once(size: str) -> None:
    with pytest.raises(ParseError, match="is not a size"):
        parse_size(size)
    with pytest.raises(ParseError):
        parse_graph(_graph("", inputs=f"x: f32[{size}]"))


def test_sizes_networks_have_are_read() -> None:
    for size in ("B", "2*B**2 + 1", "floor(B/2 + 1/2)", "-floor(-B/2)", "Mod(B, 3)", "Max(1, B - 2)", "2**10", "3*B/2"):
        assert parse_size(str(parse_size(size))) == parse_size(size)


CALLS = [
    ("operator.pow(10, 100000000)", "more than 64 bits"),
    ("operator.mul(9223372036854775807, 2)", "does not fit 64 bits"),
    ("operator.floordiv(1, 0)", "by zero"),
    ("operator.mod(1, 0)", "by zero"),
    ("operator.truediv(1, 0)", "by zero"),
    ("aten.add.Scalar(x, 340282366920938463463374607431768211456)", "integers have 64 bits"),
    (f"aten.add.Scalar(x, {'9' * 5000})", "integers have 64 bits"),
    (f"aten.add.Scalar(x, {'[' * 10_000}", "brackets are open"),
    (f"aten.add.Scalar(x, %0.{'9' * 5000})", "is not defined before it is used"),
    ("aten.chunk(@p[0, 3], 268435456)", "more than 65,536 tensors"),
    ("aten.unbind.int(@p: i8[1000000])", "more than 65,536 tensors"),
    ("aten.split.Tensor(@p: i8[1000000], 1)", "more than 65,536 tensors"),
    ("aten.tensor_split.sections(@p: i8[3], 100000000)", "more than 65,536 tensors"),
    (f"aten.view(x, [{', '.join(['1'] * 70_000)}])", "a list of at most 65,536 parts"),
    (f"aten.add.Tensor(x, @w[{'9' * 5000}])", "is not a size"),
    (f"aten.add.Tensor(x, @w[w={'9' * 5000}])", "gives w no size"),
    ("aten.add.Tensor(x, @w[1000000, 1000000])", "cannot make a tensor"),
    ("aten.relu(x)  #: id=-1", "does not fit a node"),
    (f"aten.relu(x)  #: id={'9' * 5000}", "gives 'id' no value"),
    (f"aten.relu(x)  #: id={2**60}", "does not fit a node"),
    (f"aten.relu(x)  #: id={'[' * 100_000}", "gives 'id' no value"),
    (f"aten.relu({'a' * 1_000_000})", "neither an input nor a constant"),
    (f"aten.{'relu' * 100_000}(x)", "there is no operator"),
]


@pytest.mark.parametrize(("call", "why"), CALLS, ids=lambda text: text[:30])
def test_a_call_that_would_take_for_ever_is_refused_at_once(call: str, why: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_graph(_graph(f"%0 = {call}"))
    assert why in f"{caught.value.what} {caught.value.why}"
    assert len(str(caught.value)) < 3_000_000 and len(caught.value.where) < 2_000


@pytest.mark.parametrize("bracket", ["(", "[", '{"a": '])
def test_a_result_or_a_call_nested_too_deep_is_refused(bracket: str) -> None:
    for text in (_graph("", result=bracket * 10_000), _graph(f"call ({bracket * 10_000}")):
        with pytest.raises(ParseError, match="more than 64 brackets are open"):
            parse_graph(text)


@pytest.mark.parametrize("op", ["operator.pow", "operator.mul", "operator.sub", "operator.add"])
def test_arithmetic_stays_within_64_bits_when_a_module_runs(op: str) -> None:
    with pytest.raises(GraphError, match=r"64 bits|has no value"):
        ARITHMETIC[op](*((2**62, 2**62) if op != "operator.sub" else (-(2**62), 2**62 + 1)))
    assert ARITHMETIC[op](3, 2) == {"operator.pow": 9, "operator.mul": 6, "operator.sub": 1, "operator.add": 5}[op]


def test_a_loop_over_a_long_axis_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    call = ("aten.tensor_split.sections", {"self": TensorType(torch.float32, (7, 3)), "sections": 173})
    assert len(ops.infer_types(*call)) == 173
    monkeypatch.setattr(limits, "STEPS", 170)
    ops._outcome.cache_clear()
    with pytest.raises(ops.NotInferable, match="takes too long on meta tensors"):
        ops.infer_types(*call)
    monkeypatch.undo()
    with pytest.raises(ops.NotInferable, match="takes too long on meta tensors"):
        ops.infer_types(*call)  # a refusal is remembered
    ops._outcome.cache_clear()


def test_the_calls_of_a_graph_have_room_together() -> None:
    calls = "".join(f"  %{i} = aten.unbind.int(@p{i}: i8[{60_000 + i}])\n" for i in range(5))
    for _ in range(2):  # what is remembered is counted as it was
        with pytest.raises(ParseError, match="the calls of the graph take too long on meta tensors") as caught:
            parse_graph(f"graph net(x: f32[B]) {{\n{calls}  return x\n}}")
        assert "line 5" in caught.value.where
    graph = parse_graph(f"graph net(x: f32[B]) {{\n{calls[: calls.index('  %3')]}  return x\n}}")
    room = limits.Room(left=25_000)
    with pytest.raises(GraphError, match="take too long"):
        for node in graph.calls:
            ops.infer_types(node.op, {"self": graph.type_of(node.values[0])}, room=room)


def test_many_ordinary_calls_take_no_room() -> None:
    room = limits.Room(left=0)
    for _ in range(1000):
        ops.infer_types("aten.relu.default", {"self": TensorType(torch.float32, (symbol("B"), 3))}, room=room)
    assert room.left == 0


RANDOM = [
    "aten.rand([4])",
    "aten.rand([4], device=cpu)",
    "aten.rand_like(x, device=cpu)",
    "aten.rand_like(x, pin_memory=True)",
    "aten.bernoulli(x)",
    "aten.dropout(x, 0.5, True)",
    "aten.normal.Tensor_float(x, 1.0)",
    "aten.to.device(x, cpu, f64)",
    "aten.zeros([1000000, 1000000], device=cpu)",
    "aten.zeros([1000000, 1000000], device=cuda)",
]


@pytest.mark.parametrize("call", RANDOM)
def test_types_are_found_on_tensors_without_data(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.Tensor] = []
    dispatch = limits.Watch.__torch_dispatch__

    def seen(self: limits.Watch, *args: Any) -> object:
        found = dispatch(self, *args)
        made.extend(limits._tensors(found))
        return found

    monkeypatch.setattr(limits.Watch, "__torch_dispatch__", seen)
    ops._outcome.cache_clear()
    before = torch.get_rng_state()
    parse_graph(_graph(f"%0 = {call}"))
    assert made and all(tensor.is_meta for tensor in made)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("call", ["aten.add.Tensor(2, 3)", "aten.mul.Tensor(2.0, True)"])
def test_an_operator_that_is_given_no_tensor_is_not_run(call: str) -> None:
    with pytest.raises(ParseError, match="computes on more than meta tensors"):
        parse_graph(_graph(f"%0 = {call}"))


def test_tensors_made_up_have_room_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archir.ir.parse.LARGEST", 1000)
    parse_graph(_graph("%0 = aten.mm(@p[20, 20], @q[20, 20])"))
    with pytest.raises(ParseError, match=r"cannot make a tensor f32\[30, 20\]") as caught:
        parse_graph(_graph("%0 = aten.add.Tensor(@p[20, 30], @r[1, 1])\n  %1 = aten.mm(%0, @q[30, 20])"))
    assert "together" in caught.value.why and "line 3" in caught.value.where
    monkeypatch.setattr("archir.ir.room.free_memory", lambda: 17_999)
    monkeypatch.setattr("archir.ir.room.LITTLE", 0)
    with pytest.raises(ParseError, match="cannot make a tensor") as caught:
        parse_graph(_graph("%0 = aten.relu(@p[30, 30])"))
    assert "it would take 17.6 KiB, there are" in caught.value.why


def test_equal_constants_of_other_kinds_make_other_types() -> None:
    counts = TensorType(torch.int64, (symbol("B"),))
    for other, dtype in ((1, torch.int64), (1.0, torch.float32), (True, torch.int64), (1, torch.int64)):
        assert ops.infer_types("aten.add.Scalar", {"self": counts, "other": other}) == (
            TensorType(dtype, counts.shape),
        )


def test_tensors_have_64_axes_at_the_most() -> None:
    for text in (_graph("", f"x: f32[{', '.join('1' * 65)}]"), _graph(f"%0 = aten.relu(@w[{', '.join('1' * 65)}])")):
        with pytest.raises(ParseError, match="a tensor of 65 axes"):
            parse_graph(text)
    for call in (f"aten.reshape(@w[4], [4, {', '.join('1' * 64)}])", f"aten.zeros([{', '.join('1' * 65)}])"):
        with pytest.raises(ParseError, match=r"a tensor of 65 axes|rejects its operands"):
            parse_graph(_graph(f"%0 = {call}"))


def test_whatever_a_meta_kernel_raises_is_an_error_of_archir() -> None:
    arguments = {"self": TensorType(torch.float32, (2, 4)), "dims": (0, 0, 0)}
    with pytest.raises(GraphError, match="rejects its operands"):
        ops.infer_types("aten.permute.default", arguments)


def test_a_graph_has_a_most_guards() -> None:
    guards = ", ".join(f"B != {i + 9}" for i in range(129))
    with pytest.raises(ParseError, match="129 guards"):
        parse_graph(f"graph net(x: f32[B, 3]) where {guards} {{\n  return x\n}}")


def test_a_tensor_with_many_names_and_a_note_with_many_fields_are_read() -> None:
    names = " = ".join(f"@a{i}" for i in range(300))
    graph = parse_graph(
        f'graph net(x: f32[B, 3]) {{\n  param {names} : f32[2]  #: name="a" {"id=7 " * 300}\n  return x\n}}'
    )
    assert len(graph.node(7).parameter.names) == 300  # type: ignore[union-attr]
    with pytest.raises(ParseError, match="introduced twice"):
        parse_graph("graph net(x: f32[B, 3]) {\n  param @a = @b = @a : f32[2]\n  return x\n}")
    for note in ("id", "a" * 5000, "id=7 =8", "id=7id"):
        with pytest.raises(ParseError, match=r"no value|does not fit"):
            parse_graph(_graph(f"%0 = aten.relu(x)  #: {note}"))


def test_a_parameter_of_integers_is_not_trained() -> None:
    with pytest.raises(GraphError, match="@p cannot be trained"):
        parse_graph("graph net(x: f32[B, 3]) {\n  param @p : i64[2]\n  return x\n}").module()
    parse_graph("graph net(x: f32[B, 3]) {\n  frozen param @p : i64[2]\n  return x\n}").module()
