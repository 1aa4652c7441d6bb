"""The value oracle itself: what it measures, and that it finds rules that are wrong."""

from __future__ import annotations

import math

import pytest
import torch

from archir.axes.infer import RULES, infer_widths
from archir.axes.rules.reshape import same
from archir.errors import GraphError
from archir.ir.builder import GraphBuilder as Builder
from archir.ir.graph import Graph
from archir.testing import Outcome, check_widths, evaluate, leaves_of, outputs, randomise, relative_difference

NAN, INF = math.nan, math.inf


def units(*calls: str) -> Graph:
    """Return a graph with a width of four units between two layers, on which some calls are made."""
    b = Builder()
    h = b.call("aten.linear.default", b.input("x", "f32[B, 3]"), b.parameter("a", "f32[4, 3]"))
    for call in calls:
        name, _, dim = call.partition(" ")
        h = b.call(f"aten.{name}", h, *([(int(dim),)] if dim else []))
    return b.graph(b.call("aten.linear.default", h, b.parameter("b", "f32[2, 4]")))


X = torch.randn(5, 3)


@pytest.mark.parametrize(
    ("new", "old", "difference"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([1.0, NAN, -INF], [1.0, NAN, -INF], 0.0),
        ([1.0, NAN], [1.0, 2.0], INF),
        ([1.0, INF], [1.0, 2.0], INF),
        ([2.0, INF], [4.0, INF], 0.5),
        ([], [], 0.0),
        ([1.0], [1.0, 2.0], INF),
    ],
)
def test_differences_are_relative_to_the_largest(new: list[float], old: list[float], difference: float) -> None:
    assert relative_difference([torch.tensor(new)], [torch.tensor(old)]) == difference


def test_outcomes_read_as_words() -> None:
    assert str(Outcome(0.0)) == "exact" and Outcome(1e-10).exact
    assert str(Outcome(0.25)) == "off by 0.25" and not Outcome(0.25).exact
    assert str(Outcome(0.0, "a softmax runs over it")) == "a softmax runs over it" and not Outcome(0.0, "x").exact


def test_a_free_width_is_exact_in_every_way() -> None:
    (verdict,) = check_widths(units("tanh.default"), (X,))
    assert str(verdict) == "w0: " + ", ".join(f"{name} exact" for name in verdict.outcomes)
    assert verdict.problems == []


def test_statistics_may_differ_when_pruned_and_refuse_repeats() -> None:
    (verdict,) = check_widths(units("layer_norm.default 4"), (X,))
    assert not verdict.pruned.exact and not verdict.pruned.reason
    assert verdict.split.reason and verdict.widened.exact
    assert verdict.split.reason == "a layer norm runs over it, so all its units must repeat equally"
    assert verdict.doubled.exact and verdict.permuted.exact
    assert verdict.problems == []


def test_a_rule_that_frees_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "aten.flip.default", same)
    (verdict,) = check_widths(units("flip.default 1"), (X,))
    assert {problem.partition(":")[0] for problem in verdict.problems} >= {"w0 permuted", "w0 pruned"}


def test_a_rule_that_couples_too_little_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "aten.cumsum.default", same)
    b = Builder()
    h = b.call("aten.linear.default", b.input("x", "f32[B, 3]"), b.parameter("a", "f32[4, 3]"))
    h = b.call("aten.cumsum.default", h, 1)
    (verdict,) = check_widths(b.graph(b.call("aten.linear.default", h, b.parameter("b", "f32[2, 4]"))), (X,))
    assert verdict.problems


def test_randomised_graphs_have_nothing_trivial() -> None:
    b = Builder()
    stored = [b.parameter(name, "f64[4]", kind) for name, kind in (("w", "parameter"), ("n.running_mean", "buffer"))]
    stored += [b.parameter("n.running_var", "f64[4]", "buffer"), b.parameter("mask", "f64[4]", "buffer")]
    b.parameter("count", "i64[]", "buffer")
    graph = b.graph(b.input("x", "f64[B, 4]"))
    zero = graph.with_tensors({name: torch.zeros_like(graph.tensor(name)) for name in graph.by_name})
    new = randomise(zero)
    assert bool((new.tensor("w") != 0).all()) and bool((new.tensor("n.running_mean") != 0).all())
    assert bool((new.tensor("n.running_var") >= 0.5).all())
    assert not new.tensor("mask").any() and not new.tensor("count").any()
    assert torch.equal(randomise(zero).tensor("w"), new.tensor("w"))
    assert not torch.equal(randomise(zero, seed=1).tensor("w"), new.tensor("w"))


def test_graphs_are_evaluated_value_by_value() -> None:
    graph = units("relu.default").to(torch.float64)
    inputs = leaves_of((X,), {"unused": None})
    values = evaluate(graph, inputs)
    assert values.keys() == infer_widths(graph).axes.keys()
    (y,) = outputs(graph, inputs)
    assert torch.equal(y, graph.module().eval()(inputs[0]))
    with pytest.raises(GraphError, match="net takes 1 inputs, not 2"):
        evaluate(graph, [X, X])
