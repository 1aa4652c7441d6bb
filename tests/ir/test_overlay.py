"""An overlay is like a dictionary, whatever is done with it, and nobody may change what is frozen."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archir.ir.graph import Graph
from archir.ir.node import Node, Value
from archir.ir.overlay import SHARE, SMALL, FrozenDict, Overlay, copy_of, frozen
from archir.ir.structure import structure_of
from tools.residual import residual_network

CHANGES: tuple[Callable[[Any], object], ...] = (
    lambda m: m.__setitem__(0, 1),
    lambda m: m.__delitem__(0),
    lambda m: m.update({0: 1}),
    lambda m: m.pop(0),
    lambda m: m.popitem(),
    lambda m: m.clear(),
    lambda m: m.setdefault(-1, 0),
    lambda m: operator.ior(m, {2: 0}),  # type: ignore[no-untyped-call]
)


def check(found: Mapping[int, int], expected: Mapping[int, int]) -> None:
    assert list(found.items()) == list(expected.items())
    assert list(found) == list(expected) and list(found.values()) == list(expected.values())
    assert len(found) == len(expected) and bool(found) == bool(expected)
    assert found == expected
    for key in range(-1, 12):
        assert (key in found) == (key in expected)
        assert found.get(key) == expected.get(key) and found.get(key, "none") == expected.get(key, "none")
        if key not in expected:
            with pytest.raises(KeyError):
                found[key]


STEPS = st.lists(st.tuples(st.sampled_from(["set", "delete", "pop", "share"]), st.integers(0, 9)), max_size=30)


@given(st.integers(0, 6), STEPS)
def test_an_overlay_is_like_a_dictionary(size: int, steps: list[tuple[str, int]]) -> None:
    """Keys set, taken away and set again, with the order they are in, over a mapping that stays as it was."""
    base = FrozenDict({i: -i for i in range(size)})
    found: Overlay[int, int] = Overlay(base, {}, set())
    expected, shared = dict(base), list[tuple[Mapping[int, int], dict[int, int]]]()
    for number, (step, key) in enumerate(steps):
        if step == "set":
            found[key] = expected[key] = number
        elif step == "pop":
            assert found.pop(key, None) == expected.pop(key, None)
        elif step == "delete" and key in expected:
            del found[key], expected[key]
        elif step == "delete":
            with pytest.raises(KeyError):
                del found[key]
        else:
            shared.append((frozen(found), dict(expected)))
            found = Overlay(shared[-1][0], {}, set())
        check(found, expected)
    for before, then in shared:
        check(before, then)
    assert dict(base) == {i: -i for i in range(size)}


@pytest.mark.parametrize("size", [SMALL, SMALL + 1, 3 * SMALL])
def test_copies_of_copies_are_like_copies_of_dictionaries(size: int) -> None:
    found: Mapping[int, int] = frozen({i: i for i in range(size)})
    expected, kinds = dict(found), set[type]()
    for step in range(60):
        draft, before = copy_of(found), list(found.items())
        for key in (step, size + step, size - 1 - 2 * step):
            draft[key] = expected[key] = -step
        for gone in (7 * step, size + step - 1):
            assert draft.pop(gone, None) == expected.pop(gone, None)
        kinds.add(type(draft))
        assert list(found.items()) == before
        found = frozen(draft)
        assert list(found.items()) == list(expected.items()) and len(found) == len(expected)
        if isinstance(found, Overlay):
            assert SHARE * (len(found._changed) + len(found._removed) - 5) <= len(found._base)
    assert (Overlay in kinds) == (size > SMALL)


@pytest.mark.parametrize("made", [FrozenDict, lambda entries: frozen(Overlay(FrozenDict(entries), {}, set()))])
def test_what_is_frozen_may_not_be_changed(made: Callable[[dict[int, int]], Mapping[int, int]]) -> None:
    found = made({0: 5, 1: 6})
    for change in CHANGES:
        with pytest.raises(TypeError):
            change(found)
    assert dict(found) == {0: 5, 1: 6}
    copied = copy_of(found)
    copied[0] = 1
    assert found[0] == 5 and frozen(found) is found


@pytest.mark.parametrize("layers", [6, 700])
def test_graphs_may_be_copied(layers: int) -> None:
    graph = residual_network(layers)
    with graph.edit(by="test") as e:
        e.call("aten.relu.default", graph.output.values[0])
    for copied in (copy.copy(e.graph), copy.deepcopy(e.graph)):
        assert copied.structure.by_id == e.graph.structure.by_id and str(copied) == str(e.graph)
        assert type(copied.tensors) is type(e.graph.tensors) and copied.tensors.keys() == e.graph.tensors.keys()


def test_a_mapping_that_is_frozen_does_not_follow_the_one_it_was_made_of() -> None:
    mapping = {0: 1}
    found = frozen(mapping)
    mapping[0] = 2
    assert dict(found) == {0: 1}


def test_many_edits_of_a_large_graph() -> None:
    """Nodes, users and tensors of every graph on the way stay what they were."""
    graph: Graph = residual_network(700)
    assert len(graph) > SMALL
    kept: list[tuple[Graph, list[tuple[int, Node]]]] = []
    for step in range(40):
        call = [n for n in graph.calls if n.op == "aten.relu.default"][7 * step]
        with graph.edit(by=f"step {step}") as e:
            uses = e.uses(Value(call.id))
            if step % 3 == 2:
                e.replace_uses(Value(call.id), call.values[0])
                e.remove(call.id)
            else:
                e.replace_uses(Value(call.id), e.call("aten.tanh.default", Value(call.id)), uses)
                e.set_tensor(graph.parameters[step].id, graph.tensors[graph.parameters[step].id] + 1)
        kept.append((graph, list(graph.structure.by_id.items())))
        graph = e.graph
        anew = structure_of(graph.structure.by_id.values())
        assert graph.structure.order == anew.order and len(graph) == len(anew.by_id) == len([*graph.structure.by_id])
        assert {i: set(u) for i, u in graph.structure.users.items() if u} == {i: set(u) for i, u in anew.users.items()}
        assert list(graph.tensors) == [n.id for n in graph.parameters]
    assert all(list(before.structure.by_id.items()) == nodes for before, nodes in kept)
