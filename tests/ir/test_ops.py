"""Types of results are found at sizes that a graph is for, and compared wherever its guards hold."""

from __future__ import annotations

import pytest
import torch

from archir.errors import GraphError
from archir.ir.guards import parse_guard
from archir.ir.ops import NotInferable, infer_types, same_types
from archir.ir.parse import parse_graph
from archir.ir.types import ScalarType, TensorType, parse_size

EVEN, FOURTH = (parse_guard("B % 2 == 0"),), (parse_guard("B % 4 == 0"),)


def tensor(*sizes: str) -> TensorType:
    return TensorType(torch.float32, tuple(map(parse_size, sizes)))


def reshaped(sizes: tuple[str, ...], *shape: str | int) -> dict[str, object]:
    wanted = tuple(s if isinstance(s, int) else ScalarType("int", parse_size(s)) for s in shape)
    return {"self": tensor(*sizes), "shape": wanted}


@pytest.mark.parametrize(
    ("arguments", "guards", "made"),
    [
        (reshaped(("B", "8"), -1, 8, 4), FOURTH, ("B/4", "8", "4")),
        (reshaped(("B", "5"), -1, 10), EVEN, ("B/2", "10")),
        (reshaped(("B", "6"), "B//4", 4, -1), FOURTH, ("B/4", "4", "6")),
        (reshaped(("B", "B1"), -1, 2), (parse_guard("B == 2"),), ("B1", "2")),
    ],
)
def test_operators_are_run_at_sizes_the_guards_allow(
    arguments: dict[str, object], guards: tuple[object, ...], made: tuple[str, ...]
) -> None:
    assert infer_types("aten.reshape.default", arguments, guards) == (tensor(*made),)  # type: ignore[arg-type]
    if guards != EVEN:
        with pytest.raises(GraphError):
            infer_types("aten.reshape.default", arguments)


def test_an_index_may_be_told_to_be_the_smaller_one() -> None:
    index = TensorType(torch.int64, (parse_size("B1"), 3))
    arguments = {"self": tensor("B", "5"), "dim": 1, "index": index}
    assert infer_types("aten.gather.default", arguments, (parse_guard("B1 <= B"),)) == (tensor("B1", "3"),)


def test_sizes_that_are_rounded_are_told_from_linear_ones() -> None:
    found = infer_types("aten.reshape.default", reshaped(("floor(B/3)", "3"), -1), EVEN)
    assert found == (tensor("3*floor(B/3)"),)
    with pytest.raises(NotInferable, match="is no known function of B"):
        infer_types("aten.triu_indices.default", {"row": ScalarType("int", parse_size("B")), "col": 9})


@pytest.mark.parametrize(
    ("op", "arguments", "made"),
    [
        ("aten.reshape.default", reshaped(("B", "T", "8"), -1, 8), ("B*T", "8")),
        ("aten.flatten.using_ints", {"self": tensor("B", "3", "H", "W"), "start_dim": 2}, ("B", "3", "H*W")),
        ("aten.linear.default", {"input": tensor("B*T", "8"), "weight": tensor("5", "8")}, ("B*T", "5")),
        ("aten.cat.default", {"tensors": (tensor("floor(T/2)"), tensor("floor(T/3)"))}, ("floor(T/3) + floor(T/2)",)),
        (
            "aten.conv2d.default",
            {"input": tensor("B", "3", "floor(H/2)", "W"), "weight": tensor("5", "3", "3", "3"), "stride": (2, 2)},
            ("B", "5", "floor(H/4 - 1/2)", "floor(W/2 - 1/2)"),
        ),
        (
            "aten.max_pool2d.default",
            {"self": tensor("B", "3", "H", "W"), "kernel_size": (3, 3), "stride": (2, 2), "ceil_mode": True},
            ("B", "3", "floor(H/2)", "floor(W/2)"),
        ),
    ],
)
def test_sizes_of_several_symbols(op: str, arguments: dict[str, object], made: tuple[str, ...]) -> None:
    assert infer_types(op, arguments) == (tensor(*made),)


def test_arithmetic_of_sizes_is_exact() -> None:
    def number(text: str) -> ScalarType:
        return ScalarType("int", parse_size(text))

    for op, other, made in (
        ("operator.mod", 2, "Mod(T, 2)"),
        ("operator.floordiv", 3, "floor(T/3)"),
        ("operator.mul", number("B"), "B*T"),
        ("torch.sym_max", number("B"), "Max(B, T)"),
        ("torch.sym_min", 40, "Min(40, T)"),
    ):
        assert infer_types(op, {"a": number("T"), "b": other}) == (number(made),), op


def test_types_are_the_same_where_they_are_equal_for_all_sizes_in_question() -> None:
    assert same_types([tensor("B/4")], [tensor("floor(B/4)")], FOURTH)
    assert not same_types([tensor("B/4")], [tensor("floor(B/4)")], EVEN)
    assert same_types([tensor("B", "3")], [tensor("B", "3")])
    assert not same_types([tensor("B")], [tensor("B", "1")])
    assert not same_types([tensor("B")], [TensorType(torch.float64, (parse_size("B"),))])
    assert not same_types([tensor("B")], [tensor("B"), tensor("B")])
    assert not same_types([ScalarType("int")], [ScalarType("int", parse_size("B"))])
    assert not same_types([ScalarType("int")], [tensor("B")])


def test_numbers_that_depend_on_data_are_declared() -> None:
    with pytest.raises(NotInferable, match=r"what aten\.item\.default makes depends on data"):
        infer_types("aten.item.default", {"self": tensor()})
    text = "graph net(x: f32[]) {\n  %0 = aten.item(x) : float\n  return x\n}"
    assert "aten.item(x) : float" in str(parse_graph(text))
