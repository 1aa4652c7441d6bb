"""Random chains of data movement, typed by rules, against what running them says."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archir.axes.infer import infer_widths
from archir.ir.builder import GraphBuilder as Builder
from archir.ir.node import Value
from archir.ir.text import print_graph
from archir.ir.types import TensorType
from tests.axes.operator_oracle import problems_of

Step = Callable[[Builder, list[Value], st.DataObject], list[Value]]
"""Makes new tensors out of those there are."""


def shape_of(b: Builder, value: Value) -> list[int]:
    type_ = b.type_of(value)
    assert isinstance(type_, TensorType)
    return [int(n) for n in type_.shape]


def reshape(b: Builder, values: list[Value], data: st.DataObject) -> list[Value]:
    """Cut the factors of all sizes into new axes."""
    shape = shape_of(b, values[-1])
    factors = [f for n in shape for f in prime_factors(n)]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(factors)), max_size=3)))
    groups = [factors[i:j] for i, j in zip([0, *cuts], [*cuts, len(factors)], strict=True)]
    return [b.call("aten.reshape.default", values[-1], tuple(math.prod(g) for g in groups))]


def prime_factors(n: int) -> list[int]:
    for p in range(2, n + 1):
        if n % p == 0:
            return [p, *prime_factors(n // p)]
    return []


def permute(b: Builder, values: list[Value], data: st.DataObject) -> list[Value]:
    order = data.draw(st.permutations(range(len(shape_of(b, values[-1])))))
    return [b.call("aten.permute.default", values[-1], tuple(order))]


def split(b: Builder, values: list[Value], data: st.DataObject) -> list[Value]:
    """Cut an axis in two or three, and keep one or put them together in another order."""
    shape = shape_of(b, values[-1])
    dim = data.draw(st.integers(0, len(shape) - 1))
    if shape[dim] < 3:
        return []
    first = data.draw(st.integers(1, shape[dim] - 2))
    second = data.draw(st.integers(1, shape[dim] - first - 1))
    sizes = (first, second, shape[dim] - first - second)
    parts = b.call("aten.split_with_sizes.default", values[-1], sizes, dim)
    every = [Value(parts.node, i) for i in range(3)]
    if data.draw(st.booleans()):
        return every
    return [b.call("aten.cat.default", tuple(data.draw(st.permutations(every))), dim)]


def slice_(b: Builder, values: list[Value], data: st.DataObject) -> list[Value]:
    shape = shape_of(b, values[-1])
    dim = data.draw(st.integers(0, len(shape) - 1))
    start = data.draw(st.integers(-shape[dim], shape[dim] - 1))
    end = data.draw(st.integers(start % shape[dim] + 1, shape[dim] + 1))
    return [b.call("aten.slice.Tensor", values[-1], dim, start, end)]


def join(b: Builder, values: list[Value], data: st.DataObject) -> list[Value]:
    """Concatenate or add a tensor and another one of the same shape."""
    shape = shape_of(b, values[-1])
    others = [v for v in values if shape_of(b, v) == shape]
    other = data.draw(st.sampled_from(others))
    if data.draw(st.booleans()):
        return [b.call("aten.add.Tensor", values[-1], other)]
    dim = data.draw(st.integers(0, len(shape) - 1))
    return [b.call("aten.cat.default", (values[-1], other), dim)]


def other_moves(b: Builder, values: list[Value], data: st.DataObject) -> list[Value]:
    """Repeat, stack, select, squeeze, pad, roll."""
    x, shape = values[-1], shape_of(b, values[-1])
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    choice = data.draw(st.sampled_from(["repeat", "interleave", "stack", "unsqueeze", "squeeze", "pad", "roll"]))
    if choice == "repeat":
        return [b.call("aten.repeat.default", x, tuple(data.draw(st.integers(1, 2)) for _ in shape))]
    if choice == "interleave":
        return [b.call("aten.repeat_interleave.self_int", x, 2, dim)]
    if choice == "stack":
        return [b.call("aten.stack.default", (x, x), dim)]
    if choice == "unsqueeze":
        return [b.call("aten.unsqueeze.default", x, dim)]
    if choice == "pad":
        return [b.call("aten.constant_pad_nd.default", x, (1, 2), 1.0)]
    if choice == "roll":
        return [b.call("aten.roll.default", x, (1,), (dim,))]
    return [b.call("aten.squeeze.dim", x, dim)]


STEPS: list[Step] = [reshape, permute, split, slice_, join, other_moves]


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.lists(st.sampled_from([2, 3, 4, 6]), min_size=1, max_size=3), st.data())
def test_chains_of_data_movement(shape: list[int], data: st.DataObject) -> None:
    b = Builder()
    x = b.input("x", "f64[B]")
    type_ = f"f64[{', '.join(map(str, shape))}]"
    values = [b.parameter("a", type_), b.parameter("b", type_)]
    for _ in range(data.draw(st.integers(1, 5))):
        step = data.draw(st.sampled_from(STEPS))
        new = step(b, values, data)
        if any(math.prod(shape_of(b, v)) > 400 or not shape_of(b, v) for v in new):
            break
        values += new
    graph = b.graph(x)
    for node in graph.calls:
        assert problems_of(graph, node) == [], print_graph(graph)
    assert all(torch.isfinite(t).all() for t in graph.tensors.values())
    assert infer_widths(graph).graph is graph
