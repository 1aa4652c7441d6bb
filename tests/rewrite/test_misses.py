"""Every reason why units cannot be repeated, looked at one by one, or given to a width."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from archir.axes.infer import infer_widths
from archir.axes.widths import Width
from archir.errors import PassError
from archir.ir.builder import GraphBuilder as Builder
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.ir.types import TensorType
from archir.rewrite.changes import Change, merge
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism, Site
from archir.rewrite.multiplicity import solve_exponents
from archir.rewrite.pipeline import apply_passes, apply_together
from archir.rewrite.reindex import plan_reindexing
from archir.rewrite.subgraph import subgraph_of
from archir.rewrite.theta import Theta
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen

Middle = Callable[[Builder, Value], Value]
"""What is done with the six units of a width, `[B, 6]` or images `[B, 6, 4, 4]`."""


def between(middle: Middle, *, image: bool = False, frozen: bool = False) -> Graph:
    """Return a graph that makes six units, does something with them, and reads what comes out."""
    b = Builder()
    x = b.input("x", "f32[B, 3, 4, 4]" if image else "f32[B, 3]")
    weight = b.parameter("first", "f32[6, 3, 1, 1]" if image else "f32[6, 3]", trainable=not frozen)
    h = middle(b, b.call("aten.conv2d.default" if image else "aten.linear.default", x, weight))
    type_ = b.type_of(h)
    assert isinstance(type_, TensorType)
    shape = type_.shape
    if image:
        return b.graph(b.call("aten.conv2d.default", h, b.parameter("last", f"f32[2, {shape[1]}, 1, 1]")))
    return b.graph(b.call("aten.linear.default", h, b.parameter("last", f"f32[2, {shape[-1]}]")))


def width_of(graph: Graph, parameter: str = "first") -> Width:
    """Return the width on the first axis of a parameter."""
    return next(w for w in infer_widths(graph) for p in w.places if (p.parameter, p.axis) == (parameter, 0))


def call(op: str, *args: object, **kwargs: object) -> Middle:
    """Return one call on the units, the strings among its other arguments being types of parameters."""

    def middle(b: Builder, h: Value) -> Value:
        given = [b.parameter(f"p{i}", a) if isinstance(a, str) and "[" in a else a for i, a in enumerate(args)]
        return b.call(f"aten.{op}", h, *given, **kwargs)  # type: ignore[arg-type]

    return middle


UNIFORM = "so all its units must repeat equally"


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (call("layer_norm.default", (6,)), f"a layer norm runs over it, {UNIFORM}"),
        (call("rms_norm.default", (6,)), f"an RMS norm runs over it, {UNIFORM}"),
        (call("group_norm.default", 1), f"a group norm runs over it, {UNIFORM}"),
        (call("mean.dim", (1,), True), f"a mean runs over it, {UNIFORM}"),
    ],
)
def test_statistics_need_equal_repeats(middle: Middle, reason: str) -> None:
    graph = between(middle)
    width = width_of(graph)
    found = solve_exponents(infer_widths(graph), width)
    assert not isinstance(found, Miss) and found.uniform is not None and found.uniform.reason == reason
    with pytest.raises(PassError) as caught:
        Split(width.name, (0,)).apply(graph)
    assert caught.value.what == f"split{{width={width.name}, units=[0]}} does not apply"
    assert caught.value.why == reason
    assert [s.label for s in Split().sites(graph)] == []
    assert Split(width.name, (0,)).match(graph) == found.uniform
    assert not isinstance(Split(width.name).match(graph), Miss)
    if "group" in reason:
        assert Widen(width.name).match(graph) == found.uniform
    assert Split(width.name).apply(graph).tensor("first").shape[0] == 12
    assert subgraph_of(infer_widths(graph), width) == found.uniform


def test_statistics_of_the_batch_need_equal_repeats_of_what_they_run_over() -> None:
    b = Builder()
    x = b.call("aten.linear.default", b.input("x", "f32[B, 5, 3]"), b.parameter("first", "f32[6, 3]"))
    x = b.call("aten.batch_norm.default", x, None, None, None, None, True, 0.1, 1e-5, True)
    graph = b.graph(b.call("aten.linear.default", x, b.parameter("last", "f32[2, 6]")))
    assert Widen("w0").match(graph) == Miss(f"a batch norm runs over it, {UNIFORM}", (3,))


@pytest.mark.parametrize(
    ("middle", "what"),
    [
        (call("layer_norm.default", (9,)), "a layer norm"),
        (call("rms_norm.default", (9,)), "an RMS norm"),
        (call("group_norm.default", 1), "a group norm"),
        (call("mean.dim", (1,), True), "a mean"),
    ],
)
def test_statistics_over_several_widths_keep_the_share_of_each(middle: Middle, what: str) -> None:
    def concatenated(b: Builder, h: Value) -> Value:
        other = b.call("aten.linear.default", Value(0), b.parameter("other", "f32[3, 3]"))
        return middle(b, b.call("aten.cat.default", (h, other), 1))

    graph = between(concatenated)
    width = width_of(graph)
    reason = f"{what} runs over it and what it is concatenated with, whose shares would change"
    for morphism in (Split(width.name), Split(width.name, (0,)), Widen(width.name)):
        found = morphism.match(graph)
        assert isinstance(found, Miss) and found.reason == reason
        with pytest.raises(PassError, match=reason):
            morphism.apply(graph)
    assert Prune(width.name, (0,)).apply(graph).tensor("first").shape[0] == 5


def test_statistics_over_copies_of_one_width_keep_their_shares() -> None:
    graph = between(lambda b, h: b.call("aten.mean.dim", b.call("aten.cat.default", (h, h), 1), (1,), True))
    assert not isinstance(Split(width_of(graph).name).match(graph), Miss)


def test_only_whole_groups_of_a_group_norm_repeat_one_by_one() -> None:
    graph = between(call("group_norm.default", 3))
    found = {w.size: Split(w.name, (0,)).match(graph) for w in infer_widths(graph)}
    assert found.keys() == {2, 3} and not isinstance(found[3], Miss)
    assert found[2] == Miss(f"a group norm runs over it, {UNIFORM}", (3,))


@pytest.mark.parametrize(
    ("middle", "reason", "fresh"),
    [
        (call("softmax.int", -1), "a softmax runs over it, and copies of a unit would share its weight", ""),
        (call("var.correction", (1,)), "var runs over it", ""),
        (call("logsumexp.default", (1,)), "logsumexp runs over it", ""),
        (
            lambda b, h: b.call("aten.sum.dim_IntList", b.call("aten.sigmoid.default", h), (1,), True),
            "no stored tensor can take the division that aten.sum.dim_IntList needs",
            "aten.sum.dim_IntList would see fresh units, whatever is zero for them",
        ),
    ],
)
def test_some_operators_cannot_be_corrected(middle: Middle, reason: str, fresh: str) -> None:
    graph = between(lambda b, h: b.call("aten.reshape.default", middle(b, h), (-1, 6 if "softmax" in reason else 1)))
    width = width_of(graph)
    found = solve_exponents(infer_widths(graph), width)
    assert isinstance(found, Miss) and found.reason == reason
    with pytest.raises(PassError) as caught:
        Widen(width.name).apply(graph)
    assert caught.value.what == f"widen{{width={width.name}}} does not apply"
    assert (caught.value.why, caught.value.where) == (fresh or reason, graph.node(found.nodes[0]).op)
    assert Split(width.name).match(graph) == found
    assert Widen(width.name).match(graph) == Miss(fresh or reason, found.nodes)
    assert Prune(width.name, (0,)).apply(graph).tensor("first").shape[0] == 5


def test_a_fresh_unit_may_be_the_largest() -> None:
    graph = between(call("amax.default", (1,), True))
    width = width_of(graph)
    reason = "an extremum runs over it, and a fresh unit may be the largest or smallest"
    assert Widen(width.name).match(graph) == subgraph_of(infer_widths(graph), width) == Miss(reason, (3,))
    with pytest.raises(PassError, match=reason):
        Widen(width.name).apply(graph)
    assert Split(width.name, (1,)).apply(graph).tensor("first").shape[0] == 7


def test_groups_and_what_is_inside_them_are_not_one_width() -> None:
    b = Builder()
    x = b.input("x", "f32[B, 3]")
    y = b.call("aten.linear.default", x, b.parameter("table", "f32[2, 3]"))
    outer = b.call("aten.reshape.default", b.call("aten.einsum.default", "bi,bj->bij", (y, y)), (-1, 4, 1))
    h = b.call("aten.conv1d.default", outer, b.parameter("grouped", "f32[2, 2, 1]"), groups=2)
    graph = b.graph(b.call("aten.sum.default", h))
    found = solve_exponents(infer_widths(graph), width_of(graph, "table"))
    assert found == Miss("it counts both the groups of a convolution and the channels inside them", (6,))


def test_channels_that_stand_in_every_group_are_not_corrected() -> None:
    def middle(b: Builder, h: Value) -> Value:
        return b.call(
            "aten.conv2d.default", b.call("aten.cat.default", (h, h), 1), b.parameter("w", "f32[4, 6, 1, 1]"), groups=2
        )

    graph = between(middle, image=True)
    found = solve_exponents(infer_widths(graph), width_of(graph))
    assert found == Miss("aten.conv2d.default sums over it in a way that cannot be corrected", (5,))


def _subgraph(graph: Graph, width: Width) -> str:
    found = subgraph_of(infer_widths(graph), width)
    assert isinstance(found, Miss)
    return found.reason


def test_units_that_cannot_be_told_apart_have_no_region() -> None:
    def outer(b: Builder, h: Value) -> Value:
        return b.call("aten.reshape.default", b.call("aten.einsum.default", "bi,bj->bij", (h, h)), (-1, 36))

    graph = between(outer)
    assert _subgraph(graph, width_of(graph)) == "a value has two axes of it, so its units cannot be told apart"


def test_a_width_between_stored_tensors_has_no_region() -> None:
    b = Builder()
    x = b.input("x", "f32[B, 4]")
    product = b.call("aten.mm.default", b.parameter("up", "f32[5, 2]"), b.parameter("down", "f32[2, 4]"))
    graph = b.graph(b.call("aten.linear.default", x, b.call("aten.relu.default", product)))
    width = width_of(graph, "down")
    assert _subgraph(graph, width) == "it is nowhere summed over against an activation"


def _family(graph: Graph, morphism: Morphism, width: Width) -> str:
    member = type(morphism)(width.name)  # type: ignore[call-arg]
    found = morphism.perturbation(graph, Site(width.name, (member,), infer_widths(graph)))
    assert isinstance(found, Miss)
    return found.reason


def test_activations_multiplied_along_a_width_have_no_split_family() -> None:
    b = Builder()
    x = b.input("x", "f32[B, 3, 5]")
    query = b.call("aten.linear.default", x, b.parameter("query", "f32[4, 5]"))
    key = b.call("aten.tanh.default", b.call("aten.linear.default", x, b.parameter("key", "f32[4, 5]")))
    graph = b.graph(b.call("aten.matmul.default", query, b.call("aten.mT.default", key)))
    width = width_of(graph, "query")
    assert width.roles == {"produced", "matched"}
    assert _family(graph, Split(), width) == "two activations are multiplied along it"
    found = solve_exponents(infer_widths(graph), width)
    assert not isinstance(found, Miss)
    assert {p.parameter: found.of(Value(p.node), p.axis) for p in width.places} == {"query": [1], "key": [0]}


def test_units_without_a_trainable_weight_have_no_family() -> None:
    graph = between(call("relu.default"), frozen=True)
    assert _family(graph, Split(), width_of(graph)) == "no trainable weight makes its units"


def test_fresh_units_on_two_axes_of_a_tensor_have_no_family() -> None:
    def residual(b: Builder, h: Value) -> Value:
        return b.call("aten.add.Tensor", h, b.call("aten.linear.default", h, b.parameter("square", "f32[6, 6]")))

    graph = between(residual)
    reason = "a tensor has it on two axes, so fresh units act on each other"
    assert _family(graph, Widen(), width_of(graph)) == reason


def test_passes_that_ask_for_units_that_are_not_there() -> None:
    graph = between(call("relu.default"))
    name = width_of(graph).name
    cases: list[tuple[Callable[[], object], str, str]] = [
        (
            lambda: Split(name, (6,)).apply(graph),
            f"split{{width={name}, units=[6]}} does not apply",
            f"width {name} has units 0 to 5, not 6",
        ),
        (
            lambda: Prune(name, (1, 1)).apply(graph),
            f"prune{{width={name}, units=[1, 1]}} does not apply",
            "a unit is named twice",
        ),
        (
            lambda: Prune(name, tuple(range(6))).apply(graph),
            f"prune{{width={name}, units=[0, 1, 2, 3, 4, 5]}} does not apply",
            "no unit would be left",
        ),
        (lambda: Prune(name).apply(graph), f"prune{{width={name}}} does not apply", "it names no units to remove"),
        (lambda: Widen(name, 0).apply(graph), "widen needs a positive number of fresh units", "count is 0"),
        (lambda: Split("w7").apply(graph), "there is no width 'w7'", ""),
        (
            lambda: plan_reindexing(infer_widths(graph), {name: Change((0, 9))}),
            f"width {name} cannot be changed so",
            "unit 9 is not below 6",
        ),
    ]
    for act, what, why in cases:
        with pytest.raises(PassError) as caught:
            act()
        assert (caught.value.what, caught.value.why) == (what, why)
    assert Prune(name, tuple(range(6))).match(graph) == Miss("no unit would be left")


def test_sets_that_cannot_be_done_together() -> None:
    graph = between(call("relu.default"))
    width = width_of(graph)
    one, other = graph.tensor("first") * 0, graph.tensor("first") * 0
    node = graph.by_name["first"].id
    cases: list[tuple[list[tuple[Morphism, object]], str]] = [
        (
            [(Prune(width.name, (2,)), None), (Split(width.name, (2,)), None)],
            f"unit 2 of width {width.name} is both removed and copied in one set",
        ),
        (
            [(Split(width.name, (1,)), {node: one}), (Split(width.name, (2,)), {node: other})],
            f"two changes of width {width.name} disagree about θ",
        ),
    ]
    for members, what in cases:
        with pytest.raises(PassError) as caught:
            apply_together(graph, members)  # type: ignore[arg-type]
        assert caught.value.what == what


def test_fresh_units_are_given_twice_in_one_set_only_where_they_add_up() -> None:
    graph = between(call("relu.default"))
    name = width_of(graph).name
    twice: list[tuple[Morphism, object]] = [(Widen(name), None), (Widen(name, 2), None)]
    assert width_of(apply_together(graph, twice)).size == 9  # type: ignore[arg-type]
    normal = between(call("layer_norm.default", (6,)))
    assert width_of(normal).name == name
    with pytest.raises(PassError) as caught:
        apply_together(normal, twice)  # type: ignore[arg-type]
    assert caught.value.what == f"width {name} is given fresh units twice in one set"


def test_changes_of_one_width_are_merged() -> None:
    graph = between(call("relu.default"))
    width = width_of(graph)
    theta: Theta = {graph.by_name["first"].id: graph.tensor("first")}
    split, prune, widen = Split(width.name, (1, 4)), Prune(width.name, (0,)), Widen(width.name, 2)
    merged = merge(width, [split.change(width, theta), prune.change(width), widen.change(width)])
    assert merged.source == (1, 2, 3, 4, 5, 1, 4, 6, 7)
    assert merged.sign == (1, 0, 0, 1, 0, -1, -1, 0, 0)
    assert (merged.fresh, merged.theta) == (2, theta)
    assert merge(width, [merged]) is merged


def test_errors_name_the_pass_and_those_before_it() -> None:
    graph = between(call("relu.default"))
    name = width_of(graph).name
    with pytest.raises(PassError) as caught:
        apply_passes(graph, [Split(name, (0,)), Prune(name, (3,)), Split(name, (9,))])
    error = caught.value
    assert error.what == f"split{{width={name}, units=[9]}}: split{{width={name}, units=[9]}} does not apply"
    assert error.where == f"after split{{width={name}, units=[0]}}; prune{{width={name}, units=[3]}}"
