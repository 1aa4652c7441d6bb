"""Sizes are written, read and worked out alike, and those without a value are told by name."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable

import pytest
import sympy
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._sympy import functions as torch_sympy

from archir.errors import GraphError, ParseError
from archir.ir.guards import compute, fold
from archir.ir.inputs import random_inputs
from archir.ir.parse import parse_graph
from archir.ir.sizes import LONGEST, canonical, evaluate, parse_size, symbol
from archir.ir.types import TensorType
from frontends.pytorch import trace
from frontends.sizes import plain

B, C = symbol("B"), symbol("C")


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    two, number = st.tuples(inner, inner), st.integers(1, 9)
    return st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]}) {t[1]} ({t[2]})"),
        st.tuples(inner, number).map(lambda t: f"({t[0]})/{t[1]}"),
        st.tuples(inner, st.integers(0, 2)).map(lambda t: f"({t[0]})**{t[1]}"),
        st.tuples(inner, number).map(lambda t: f"({t[0]}) // {t[1]}"),
        st.tuples(inner, number).map(lambda t: f"Mod({t[0]}, {t[1]})"),
        inner.map(lambda a: f"-floor(-({a})/2 - 1/3)"),
        two.map(lambda t: f"Mod({t[0]}, ({t[1]})**2 + 1)"),
        two.map(lambda t: f"Max({t[0]}, {t[1]}, 1)"),
        two.map(lambda t: f"Min({t[0]}, {t[1]})"),
    )


SIZES = st.recursive(st.sampled_from(["B", "C", "1", "7", "16*B"]), _grown, max_leaves=6)


@given(SIZES, st.integers(1, 40), st.integers(1, 40))
@example("(1)/1", 1, 1)
def test_a_size_is_what_its_text_says(text: str, b: int, c: int) -> None:
    try:
        size = parse_size(text)
    except ParseError as error:
        assert "degree" in error.why or "no integer" in error.why
        return
    assert parse_size(str(size)) == size == canonical(size)
    values: dict[str, object] = {"B": sympy.Integer(b), "C": sympy.Integer(c), "floor": sympy.floor}
    values |= {"Mod": sympy.Mod, "Max": sympy.Max, "Min": sympy.Min, "Integer": sympy.Integer}
    expected = eval(re.sub(r"\d+", r"Integer(\g<0>)", text), values)  # numbers of Python would be divided as floats
    sizes = {"B": b, "C": c}
    if expected.is_Integer:
        assert evaluate(size, sizes) == expected
        try:
            found = fold(size, sizes.__getitem__, int, compute)
        except GraphError as error:
            assert "arithmetic of whole numbers" in error.what or "several sizes" in error.what
        else:
            assert found == expected
    else:
        with pytest.raises(GraphError, match="has no value for"):
            evaluate(size, sizes)
        assert evaluate(size, sizes, floored=True) == math.floor(expected)


largest: Callable[..., sympy.Expr] = torch_sympy.Max
smallest: Callable[..., sympy.Expr] = torch_sympy.Min

TORCH: list[tuple[sympy.Expr, Callable[[int], int]]] = [
    (torch_sympy.CeilToInt(torch_sympy.FloatTrueDiv(B, 16)), lambda b: math.ceil(b / 16)),
    (torch_sympy.FloorToInt(torch_sympy.IntTrueDiv(3 * B, 7)), lambda b: 3 * b // 7),
    (torch_sympy.TruncToInt(0.5 * torch_sympy.ToFloat(B - 9)), lambda b: math.trunc((b - 9) / 2)),
    (torch_sympy.TruncToInt(1.5 * torch_sympy.ToFloat(B)), lambda b: int(1.5 * b)),
    (torch_sympy.RoundToInt(torch_sympy.IntTrueDiv(B, 2)), lambda b: round(b / 2)),
    (torch_sympy.RoundToInt(torch_sympy.IntTrueDiv(3 * B - 20, 8)), lambda b: round((3 * b - 20) / 8)),
    (torch_sympy.RoundToInt(torch_sympy.IntTrueDiv(B, 3)), lambda b: round(b / 3)),
    (torch_sympy.ModularIndexing(B, 4, 3), lambda b: b // 4 % 3),
    (torch_sympy.PythonMod(-B, 5), lambda b: -b % 5),
    (torch_sympy.Mod(B, 5), lambda b: b % 5),
    (torch_sympy.FloorDiv(B - 7, 4), lambda b: (b - 7) // 4),
    (largest(B - 3, smallest(7, 2 * B)), lambda b: max(b - 3, min(7, 2 * b))),
    (sympy.Abs(B - 11), lambda b: abs(b - 11)),
    (torch_sympy.PowByNatural(B + 1, sympy.Integer(2)), lambda b: (b + 1) ** 2),
]
"""Sizes as torch writes them, and what they are in Python."""


@pytest.mark.parametrize("number", range(len(TORCH)))
def test_what_torch_makes_of_sizes_is_kept(number: int) -> None:
    expr, python = TORCH[number]
    size = canonical(plain(expr, {}))
    assert parse_size(str(size)) == size
    for b in range(1, 60):
        assert evaluate(size, {"B": b}) == fold(size, {"B": b}.__getitem__, int, compute) == python(b), b


@pytest.mark.parametrize(
    "expr",
    [torch_sympy.TruncToInt(0.7 * torch_sympy.ToFloat(B)), sympy.sqrt(B), sympy.sin(B), sympy.floor(sympy.pi * B)],
)
def test_what_no_size_can_say_is_refused(expr: sympy.Expr) -> None:
    with pytest.raises(GraphError, match="is not a size"):
        TensorType(torch.float32, (plain(expr, {}),))


class Window(nn.Module):
    """Pads to whole windows of 7, cuts them and halves the image, as often as asked."""

    def __init__(self, stages: int) -> None:
        super().__init__()
        self.stages = stages

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.stages):
            height, width = x.shape[2:]
            x = F.pad(x, [0, (7 - width % 7) % 7, 0, (7 - height % 7) % 7])
            batch, channels, height, width = x.shape
            y = (
                x.view(batch, channels, height // 7, 7, width // 7, 7)
                .permute(0, 2, 4, 1, 3, 5)
                .reshape(-1, channels, 49)
            )
            y = y.relu().view(batch, height // 7, width // 7, channels, 7, 7).permute(0, 3, 1, 4, 2, 5)
            x = F.max_pool2d(y.reshape(batch, channels, height, width), 2)
        return x


def test_windows_of_images_of_any_size_are_read_back() -> None:
    axes = {"x": {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}}
    graph = trace(Window(2), (torch.randn(2, 1, 61, 70),), dynamic_shapes=axes)
    assert max(len(str(guard)) for guard in graph.signature.guards) > 300
    found = parse_graph(str(graph))
    assert str(found) == str(graph)
    ((x,), _) = random_inputs(graph, 3)
    assert torch.equal(found.module()(x), Window(2)(x))


HOSTILE = {
    "powers": "(B+1)**1000",
    "nested powers": "((B+1)**3)**3",
    "products": "*".join(f"(B+C+{i})" for i in range(9)),
    "symbols": "+".join(f"B{i}" for i in range(33)),
    "depth": "floor(" * 65 + "B" + "/2)" * 65,
    "length": " " + "+B" * LONGEST,
    "parts": "+".join(["Mod(B,3)"] * 2000),
    "fractions": "+".join(f"B/{2**62 - i}" for i in range(200)),
    "many": f"Max({', '.join(f'B - {i}' for i in range(17))})",
    "zeros": "Mod(B, C - C)",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_size_that_would_take_for_ever_is_refused(name: str) -> None:
    with pytest.raises(ParseError, match="is not a size") as caught:
        parse_size(HOSTILE[name])
    assert caught.value.why and len(str(caught.value)) < 1000


def test_reading_a_size_does_not_compare_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("sympy compares sizes")

    monkeypatch.setattr(sympy.Max, "_new_args_filter", never)
    size = "B"
    for i in range(5):
        size = f"Max(({size})/2 - 1, C - ({size}), {i})"
    assert str(parse_size(size)).count("Max") == 31


def test_a_graph_holds_no_size_that_cannot_be_read() -> None:
    with pytest.raises(GraphError, match="its degree is above 8"):
        TensorType(torch.float32, (B**9,))
    with pytest.raises(GraphError, match="more than"):
        TensorType(torch.float32, (sympy.Add(*(sympy.Mod(B, i) for i in range(2, 1200))),))


@pytest.mark.parametrize(
    ("size", "said"),
    [("Mod(B, B - 4)", "has no value for B = 4"), ("floor(B/(B - 4))", "has no value for B = 4"), ("B/3", "it is 4/3")],
)
def test_a_size_without_a_value_is_named(size: str, said: str) -> None:
    with pytest.raises(GraphError) as caught:
        evaluate(parse_size(size), {"B": 4})
    assert said in str(caught.value) and str(parse_size(size)) in caught.value.what


def test_an_input_of_a_size_without_a_value_is_an_error_that_names_it() -> None:
    graph = parse_graph("graph net(x: f32[B, 2], y: f32[floor(8/(B - 4)), 2]) {\n  return (x, y)\n}")
    module = graph.module()
    module(torch.zeros(6, 2), torch.zeros(4, 2))
    for rows in (4, 2):
        with pytest.raises(GraphError) as caught:
            module(torch.zeros(rows, 2), torch.zeros(4, 2))
        assert "floor(8/(B - 4))" in str(caught.value)
    with pytest.raises(GraphError, match="has no value for B = 4"):
        random_inputs(graph, 4)
    with pytest.raises(GraphError, match="is negative for B = 2"):
        random_inputs(graph, 2)


def test_sizes_are_the_same_whatever_they_were_made_of() -> None:
    made = [sympy.Add(*order, evaluate=False) for order in itertools.permutations([2 * B, C, sympy.Integer(1)])]
    assert len({TensorType(torch.float32, (size,)) for size in made}) == 1
