"""A graph calls nothing but the operators of the registry."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import archir
from archir.errors import GraphError, ParseError
from archir.ir import registry
from archir.ir.arithmetic import ARITHMETIC
from archir.ir.node import Node
from archir.ir.operators.table import NAMES
from archir.ir.parse import parse_graph

HOSTILE = [
    ('torch.save("pwned", "{path}") : int', "torch.save"),
    ('torch.from_file("{path}", True, 8)', "torch.from_file"),
    ("torch.set_default_dtype(f64) : int", "torch.set_default_dtype"),
    ("torch.set_grad_enabled(False) : int", "torch.set_grad_enabled"),
    ('torch.set_default_device("meta") : int', "torch.set_default_device"),
    ('torch._import_dotted_name("os.system") : int', "torch._import_dotted_name"),
    ('operator.call(x, "touch {path}") : int', "operator.call"),
    ('operator.attrgetter("__class__") : int', "operator.attrgetter"),
    ("math.factorial(100000000) : int", "math.factorial"),
    ('aten.save(x, "{path}") : ()', "aten.save"),
    ('aten.from_file("{path}", True, 8)', "aten.from_file"),
    ("aten.record_stream(x, 0) : ()", "aten.record_stream"),
    ("aten.set_grad_enabled(False) : ()", "aten.set_grad_enabled"),
    ("aten.manual_seed(3) : int", "aten.manual_seed"),
    ('aten._print("{path}") : ()', "aten._print"),
    ("aten.pow.int_to_int(10, 100000000)", "aten.pow.int_to_int"),
    ("aten.relu_(x)", "aten.relu_"),
    ("aten.add.out(x, x, out=x)", "aten.add.out"),
    ("aten.resize_(x, [9])", "aten.resize_"),
    ("prims.sin(x)", "prims.sin"),
    ("profiler._record_function_enter(x) : int", "profiler._record_function_enter"),
    ("load_library.x(x) : int", "load_library.x"),
    ("builtins.exec(x) : int", "builtins.exec"),
    ("builtins.round.__self__.exec(x) : int", "builtins.round.__self__.exec"),
]
"""Calls in a file, and the operator they name."""


@pytest.mark.parametrize(("call", "op"), HOSTILE)
def test_what_is_no_operator_is_refused_and_does_nothing(call: str, op: str, tmp_path: Path) -> None:
    path = tmp_path / "victim"
    path.write_bytes(b"as it was, and long enough to hold a tensor")
    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_default_device()
    with pytest.raises(ParseError, match="operator") as caught:
        parse_graph(f"graph net(x: f32[B, 3]) {{\n  %0 = {call.format(path=path)}\n  return x\n}}")
    assert op in caught.value.what
    assert path.read_bytes() == b"as it was, and long enough to hold a tensor"
    assert sorted(tmp_path.iterdir()) == [path]
    assert before == (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_default_device())


@pytest.mark.parametrize("op", [op for _, op in HOSTILE])
def test_no_node_calls_it_either(op: str) -> None:
    with pytest.raises(GraphError, match="operator"):
        Node(0, op)


def _operators() -> Iterator[torch._ops.OpOverload]:
    for name in NAMES:
        packet = getattr(torch.ops.aten, name)
        found = [getattr(packet, overload) for overload in packet.overloads()]
        functions = [f for f in found if registry.is_function(f)]
        assert functions, name
        yield from functions


def test_every_operator_is_a_function_by_its_schema() -> None:
    count = 0
    for overload in _operators():
        schema = overload._schema
        assert schema.returns and not schema.is_mutable, overload
        assert not any(argument.name in ("filename", "filepath", "path_name") for argument in schema.arguments), (
            overload
        )
        assert registry.function(str(overload)) is overload
        count += 1
    assert count > 700


def test_text_that_operators_take_chooses_among_formulas() -> None:
    named = {a.name for overload in _operators() for a in overload._schema.arguments if "str" in str(a.type)}
    assert named == {
        *("UPLO", "approximate", "driver", "equation", "indexing", "interpolation", "mode", "norm", "ord", "p"),
        *("pad_mode", "padding", "padding_side", "reduce", "rounding_mode", "side"),
    }


MORE = [
    ("aten.linalg_lu(x)", "f32[4, 4], f32[4, 4], f32[4, 4]"),
    ("aten.linalg_lu_factor(x)", "f32[4, 4], i32[4]"),
    ("aten.linalg_tensorinv(x, 1)", "f32[4, 4]"),
    ("aten.special_chebyshev_polynomial_t(x, x)", "f32[4, 4]"),
    ("aten.special_legendre_polynomial_p.n_scalar(x, 3)", "f32[4, 4]"),
    ("aten._int_mm(@i: i8[32, 16], @j: i8[16, 8])", "i32[32, 8]"),
    ('aten.segment_reduce(x, "sum", lengths=@n: i64[2])', "f32[2, 4]"),
    ("aten.histogram.bin_ct(x, 5) : f32[5], f32[6]", "f32[5], f32[6]"),
]


@pytest.mark.parametrize(("call", "types"), MORE)
def test_ordinary_functions_are_listed(call: str, types: str) -> None:
    graph = parse_graph(f"graph net(x: f32[4, 4]) {{\n  %0 = {call}\n  return x\n}}")
    (node,) = graph.calls
    assert ", ".join(map(str, node.results)) == types


REFUSALS = [
    ("aten.unbind", "there is no operator", "there is aten.unbind.int"),
    ("aten.relu.__call__", "there is no operator", "there is aten.relu.default"),
    ("aten.add.op", "there is no operator", "there is aten.add.Scalar, aten.add.Tensor"),
    ("aten.resize_", "is no function of tensors", ""),
    ("aten.get_device", "is not admitted", "archir.admit('aten.get_device')"),
    ("aten.nothing", "there is no operator", "did you mean"),
    ("load_library.x", "there is no operator", "archir.admit('load_library.x')"),
]


@pytest.mark.parametrize(("op", "what", "hint"), REFUSALS)
def test_a_refusal_says_what_is_the_case(op: str, what: str, hint: str) -> None:
    with pytest.raises(GraphError, match=what) as caught:
        registry.function(op)
    assert caught.value.hint.removesuffix("?").startswith(hint) or hint in caught.value.hint


def test_names_are_looked_up_in_lists_and_not_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[str] = []

    class Spaces:
        def __getattr__(self, name: str) -> object:
            reached.append(name)
            raise AttributeError(name)

    monkeypatch.setattr(torch, "ops", Spaces())
    for op in ("load_library.x", "evil.x.y", "aten.nothing", "aten.__class__.default", "a.b.c.d"):
        with pytest.raises(GraphError):
            registry.function(op)
    assert reached == []


def test_what_works_on_storage_is_no_function() -> None:
    stateful: Any = torch.ops.aten.set.source_Storage
    assert stateful._schema.returns and not stateful._schema.is_mutable
    assert not registry.is_function(stateful)
    with pytest.raises(GraphError, match="is no function of tensors"):
        archir.admit("aten.set.source_Storage")


def test_arithmetic_is_a_short_list() -> None:
    assert ARITHMETIC["operator.floordiv"](7, 2) == 3
    assert ARITHMETIC["math.ceil"](2.5) == 3
    assert set(ARITHMETIC) == {
        *(
            f"operator.{name}"
            for name in ("abs", "add", "and_", "eq", "floordiv", "ge", "gt", "le", "lt", "mod", "mul")
        ),
        *(f"operator.{name}" for name in ("ne", "neg", "not_", "or_", "pos", "pow", "sub", "truediv", "xor")),
        *("math.ceil", "math.floor", "math.trunc", "builtins.round"),
        *("torch.sym_float", "torch.sym_int", "torch.sym_ite", "torch.sym_max", "torch.sym_min", "torch.sym_not"),
        "torch._sym_sqrt",
    }
    assert operator.call not in ARITHMETIC.values() and math.factorial not in ARITHMETIC.values()


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.archir_test.scale(x, 2.0)  # type: ignore[no-any-return]


def test_an_operator_of_the_user_s_own_is_admitted_by_name() -> None:
    defining: Any = torch.library
    library = defining.Library("archir_test", "DEF")
    library.define("scale(Tensor x, float by) -> Tensor")
    library.define("shout(Tensor(a!) x) -> ()")
    library.impl("scale", lambda x, by: x * by, "CompositeExplicitAutograd")
    with pytest.raises(archir.CaptureError, match=r"archir\.admit\('archir_test\.scale\.default'\)") as caught:
        archir.trace(Scaled(), (torch.ones(2, 3),))
    assert "test_registry.py" in caught.value.where
    archir.admit("archir_test.scale")
    graph = archir.trace(Scaled(), (torch.ones(2, 3),))
    assert torch.equal(graph.module()(torch.ones(2, 3)), torch.full((2, 3), 2.0))
    assert str(parse_graph(str(graph))) == str(graph)
    with pytest.raises(GraphError, match="is no function of tensors"):
        archir.admit("archir_test.shout")
    with pytest.raises(GraphError, match=r"there is no operator 'archir_test\.missing'"):
        archir.admit("archir_test.missing")
