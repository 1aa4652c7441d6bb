"""Sizes that are rounded down or bounded are found exactly, however far apart the numbers are that show it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from archir.ir.one_size import curve_size
from archir.ir.ops import infer_types
from archir.ir.sizes import evaluate, parse_size
from archir.ir.types import TensorType


@given(st.tuples(st.integers(1, 40), st.integers(2, 700), st.integers(-500, 500)), st.integers(2, 900), st.data())
def test_what_is_divided_and_rounded_is_known_at_every_number(
    numbers: tuple[int, int, int], least: int, data: st.DataObject
) -> None:
    times, step, shift = numbers
    found = curve_size(lambda n: (times * n + shift) // step if n >= least else None, "T")
    assert found is not None
    number = data.draw(st.integers(least, 2**30))
    assert evaluate(found, {"T": number}) == (times * number + shift) // step


@given(st.integers(2, 4000), st.integers(0, 3), st.integers(1, 3), st.integers(1, 2**30))
def test_what_is_bounded_is_known_at_every_number(bound: int, low: int, high: int, number: int) -> None:
    for extreme in (min, max):

        def value(n: int, extreme: Callable[[int, int], int] = extreme) -> int:
            return extreme(low * (n - bound), high * (n - bound)) + bound

        found = curve_size(value, "T")
        assert found is not None
        # A bend before the second number, or beyond the last but one, is no bend between them.
        assert number < 3 or evaluate(found, {"T": number}) == value(number)


def test_what_is_neither_is_not_guessed() -> None:
    assert curve_size(lambda n: n**2, "T") is None
    assert curve_size(lambda n: n - n % 7 + 3 * (n % 5), "T") is None
    assert curve_size(lambda n: min(n, 50) // 3 + max(n, 900), "T") is None
    assert curve_size(lambda n: n if n > 9001 else None, "T") is None  # too few numbers to tell


def tensor(*sizes: str) -> TensorType:
    return TensorType(torch.float32, tuple(map(parse_size, sizes)))


CONV = {"weight": tensor("5", "3", "64"), "stride": (64,)}


@pytest.mark.parametrize(
    ("op", "arguments", "made", "run"),
    [
        (
            "aten.conv1d.default",
            {"input": tensor("B", "3", "T"), **CONV},
            "floor(T/64)",
            lambda x: F.conv1d(x[:, :3], torch.ones(5, 3, 64), stride=64),
        ),
        (
            "aten.conv1d.default",
            {"input": tensor("B", "3", "floor(T/5) - 1"), **CONV, "padding": (3,)},
            "floor(T/320 + 5/64)",
            lambda x: F.conv1d(x[:, :3, : x.shape[2] // 5 - 1], torch.ones(5, 3, 64), stride=64, padding=3),
        ),
        (
            "aten.slice.Tensor",
            {"self": tensor("B", "3", "T"), "dim": 2, "start": 0, "end": 5},
            "Min(5, T)",
            lambda x: x[..., :5],
        ),
        (
            "aten.slice.Tensor",
            {"self": tensor("B", "3", "T"), "dim": 2, "start": 0, "end": 512},
            "Min(512, T)",
            lambda x: x[..., :512],
        ),
        (
            "aten.slice.Tensor",
            {"self": tensor("B", "3", "T"), "dim": 2, "start": 4, "end": -3},
            "Max(0, T - 7)",
            lambda x: x[..., 4:-3],
        ),
        (
            "aten.slice.Tensor",
            {"self": tensor("B", "3", "T"), "dim": 2, "start": 0, "end": 2**63 - 1, "step": 50},
            "floor(T/50 + 49/50)",
            lambda x: x[..., ::50],
        ),
        (
            "aten.avg_pool2d.default",
            {"self": tensor("B", "T", "9"), "kernel_size": (40, 1), "stride": (40, 1), "padding": (20, 0)},
            "floor(T/40) + 1",
            lambda x: F.avg_pool2d(x[:1].movedim(2, 1), (40, 1), (40, 1), (20, 0)),
        ),
        (
            "aten.upsample_nearest1d.vec",
            {"input": tensor("B", "3", "T"), "output_size": None, "scale_factors": (2.5,)},
            "floor(5*T/2)",
            lambda x: F.interpolate(x, scale_factor=2.5),
        ),
    ],
)
def test_an_operator_makes_what_is_inferred_at_sizes_near_and_far(
    op: str, arguments: dict[str, object], made: str, run: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    (found,) = infer_types(op, arguments)
    assert isinstance(found, TensorType)
    size = next(s for s in found.shape if not isinstance(s, int) and str(s) != "B")
    assert size == parse_size(made)
    axis = found.shape.index(size)
    for length in (*range(2, 10), 49, 50, 63, 64, 65, 330, 640, 1300):
        try:
            wanted = run(torch.zeros(2, 3, length)).shape
        except RuntimeError:
            continue  # too short for the operator
        assert evaluate(size, {"T": length}) == wanted[axis], length
