"""What a patch says of an edit is what two whole graphs say, and what it lets through is well formed."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archir.errors import ArchirError, GraphError
from archir.ir.builder import GraphBuilder
from archir.ir.edit import Edit
from archir.ir.graph import Graph, Patch
from archir.ir.node import INPUT, OUTPUT, PARAMETER, Location, Node, Parameter, Use, Value
from archir.ir.patch import no_patch
from archir.ir.structure import Structure, structure_of
from archir.ir.tensor_map import AxisMap, TensorMap
from archir.ir.types import TensorType
from archir.ir.verify import verify
from tests.models.random_patches import random_graph, random_patch

NAMES = ("a.weight", "a", "a.b", "b.c", "c", "c.weight.deep", "new.weight", "l1", "l2.weight", "l3.weight")
MODULES = ("a", "a.weight", "b.c", "c", "l2", "l3.weight", "new")
EXACT = ("order", "inputs", "output", "names", "paths")


def small_graph() -> tuple[Graph, dict[str, Value]]:
    """Return a graph with two inputs, tied names, a dropout that is always on, and two outputs, and its values."""
    b = GraphBuilder()
    v = {"x": b.input("x", "f32[B, 4]"), "y": b.input("y", "f32[B, 4]")}
    v["weight"] = b.parameter(("a.weight", "c.weight"), "f32[4, 4]")
    v["bias"] = b.parameter("b.bias", "f32[4]")
    b.location = Location("a")
    v["linear"] = b.call("aten.linear.default", v["x"], v["weight"], v["bias"])
    b.location = Location("a.weight")
    v["dropout"] = b.call("aten.dropout.default", v["linear"], 0.5, True)
    b.location = None
    v["sum"] = b.call("aten.add.Tensor", v["dropout"], v["y"])
    v["relu"] = b.call("aten.relu.default", v["sum"])
    return b.graph(v["relu"], v["linear"]), v


def anew(graph: Graph) -> Graph:
    return Graph(graph.name, [*graph.structure.by_id.values()], {**graph.tensors}, graph.signature, graph.history)


def check_structure(found: Structure) -> None:
    made = structure_of(found.by_id.values())
    for name in EXACT:
        assert getattr(found, name) == getattr(made, name), name
    assert found.next_id >= made.next_id
    assert {i: sorted(map(str, u)) for i, u in found.users.items() if u} == {
        i: sorted(map(str, u)) for i, u in made.users.items()
    }
    assert found.users.keys() <= found.by_id.keys()


def check_patch(patch: Patch) -> None:
    """Compare a patch with the full difference of its graphs."""
    old, new = patch.before.structure.by_id, patch.after.structure.by_id
    assert patch.removed == old.keys() - new.keys()
    assert {i for i, node in new.items() if old.get(i) != node} <= patch.touched <= new.keys()
    stored = {i for i, node in new.items() if node.op == PARAMETER}
    assert patch.after.tensors.keys() == stored
    both = stored & patch.before.tensors.keys()
    assert {i for i in both if patch.after.tensors[i] is not patch.before.tensors[i]} <= patch.maps.keys() <= both
    for node, by in patch.maps.items():
        assert by is None or torch.equal(by.weight(patch.before.tensors[node]), patch.after.tensors[node])
    assert [n.id for n in patch.added] == sorted(new.keys() - old.keys())
    retyped = {i for i in new.keys() & old.keys() if new[i].results != old[i].results}
    users = {i for i, n in new.items() if any(v.node in retyped or v.node in patch.maps for v in n.values)}
    assert {n.id for n in patch.affected} == patch.touched | users


def some_step(e: Edit, nodes: list[Node], dice: Random) -> None:
    """Do something to an edit that may be wrong."""
    values = [Value(n.id, i) for n in nodes for i in range(len(n.results))]
    calls, stored = ([n for n in nodes if n.is_call], [n for n in nodes if n.op == PARAMETER])
    value, call, parameter = dice.choice(values), dice.choice(calls), dice.choice(stored)
    kind = dice.randrange(14)
    location = Location(dice.choice(MODULES))
    if kind == 0:
        e.replace_uses(value, e.call("aten.relu.default", value, location=location), e.uses(value))
    elif kind == 1:
        e.call("aten.dropout.default", value, 0.5, dice.random() < 0.5, location=location)
    elif kind == 2:
        e.remove(e.call("aten.neg.default", value).node)
    elif kind == 3:
        use, _ = dice.choice([(u, v) for u, v in call.operands() if not u.position] or [(Use(call.id, "self"), value)])
        e.update(call.id, arguments={use.argument: value})
    elif kind == 4:
        e.set_tensor(parameter.id, torch.randn(dice.choice([e.tensor(parameter.id).shape, torch.Size((2, 4))])))
    elif kind == 5:
        places = torch.tensor(dice.choice([[0, 1, 2, 3], [3, 1, 2, 0], [0, 1]]))
        e.remap(parameter.id, TensorMap((AxisMap(0, places),)))
    elif kind == 6:
        e.add_parameter(dice.choice(NAMES), torch.randn(4))
    elif kind == 7:
        e.update(parameter.id, parameter=Parameter(tuple(dice.sample(NAMES, dice.choice([1, 1, 2])))))
    elif kind == 8:
        e.update(call.id, op=dice.choice(["aten.relu.default", "aten.neg.default", "aten.tanh.default"]))
    elif kind == 9 and call.op == "aten.dropout.default":
        e.update(call.id, arguments={"train": dice.random() < 0.5})
    elif kind == 10:
        e.remove(dice.choice(nodes).id)
    elif kind == 11:
        e.update(dice.choice(nodes).id, op=dice.choice([INPUT, PARAMETER, OUTPUT, "aten.relu.default"]))
    elif kind == 12:
        node = dice.choice(nodes)
        e.update(node.id, results=dice.choice([(), node.results, node.results * 2]))
    else:
        e.replace_uses(value, dice.choice(values))


@given(st.randoms(use_true_random=False))
def test_what_an_edit_lets_through_is_well_formed(dice: Random) -> None:
    """Edits with random steps, many of them wrong: no graph of them is refused when all of it is looked at."""
    graph, _ = small_graph()
    total = no_patch(graph)
    for _ in range(6):
        try:
            with graph.edit(by="random") as e:
                for _ in range(dice.randrange(1, 5)):
                    nodes = [e.node(i) for i in range(total.after.structure.next_id + 9) if i in e._draft.by_id]
                    try:
                        some_step(e, nodes, dice)
                    except (ArchirError, IndexError):
                        continue
        except GraphError:
            continue
        verify(anew(e.graph))
        check_structure(e.graph.structure)
        check_patch(e.patch)
        graph, total = e.graph, total.then(e.patch)
        check_patch(total)


@given(st.randoms(use_true_random=False))
def test_patches_one_after_another_are_one_patch(dice: Random) -> None:
    graph = random_graph(dice, 8)
    total, patches = no_patch(graph), list[Patch]()
    for _ in range(5):
        try:
            patch = random_patch(total.after, dice)
        except GraphError:
            continue
        patches.append(patch)
        total = total.then(patch)
        check_patch(patch)
        check_patch(total)
        check_structure(patch.after.structure)
    later = no_patch(patches[0].after)
    for patch in patches[1:]:
        later = later.then(patch)
    whole = patches[0].then(later)
    assert (whole.touched, whole.removed, whole.after) == (total.touched, total.removed, total.after)
    assert whole.maps == total.maps


def test_a_cycle_through_several_nodes_is_refused() -> None:
    graph, v = small_graph()
    with pytest.raises(GraphError, match="a cycle"), graph.edit(by="test") as e:
        new = e.call("aten.relu.default", v["relu"])
        other = e.call("aten.neg.default", new)
        e.update(v["dropout"].node, arguments={"input": other})
    with pytest.raises(GraphError, match="a cycle"), graph.edit(by="test") as e:
        first = e.call("aten.relu.default", v["x"])
        second = e.call("aten.neg.default", first)
        e.update(first.node, arguments={"self": second})
    with pytest.raises(GraphError, match="a cycle"), graph.edit(by="test") as e:
        e.update(v["sum"].node, arguments={"other": v["sum"]})
    with graph.edit(by="test") as e:
        e.update(v["linear"].node, arguments={"input": e.call("aten.relu.default", v["y"])})
    check_structure(e.graph.structure)


def test_nodes_stay_of_their_kind() -> None:
    graph, v = small_graph()
    for name, op in (("x", "aten.relu.default"), ("weight", INPUT), ("weight", OUTPUT), ("y", PARAMETER)):
        with pytest.raises(GraphError, match="is no call"), graph.edit(by="test") as e:
            e.update(v[name].node, op=op, arguments={"self": v["x"]} if op.startswith("aten") else {})
    with pytest.raises(GraphError, match="is no call"), graph.edit(by="test") as e:
        e.update(graph.output.id, op=INPUT)
    for op in (INPUT, OUTPUT, PARAMETER):
        with pytest.raises(GraphError, match="no operator"), graph.edit(by="test") as e:
            e.update(v["relu"].node, op=op)
    with pytest.raises(GraphError, match="is no stored tensor"), graph.edit(by="test") as e:
        e.update(v["relu"].node, parameter=Parameter(("other",)))


@pytest.mark.parametrize("name", ["x", "weight"])
@pytest.mark.parametrize("count", [0, 2])
def test_inputs_and_stored_tensors_have_one_type(name: str, count: int) -> None:
    graph, v = small_graph()
    with pytest.raises(GraphError, match=r"types instead of one|uses result"), graph.edit(by="test") as e:
        e.update(v[name].node, results=graph.node(v[name].node).results * count)


def test_inputs_and_the_output_stay() -> None:
    b = GraphBuilder()
    x, unused = b.input("x", "f32[B, 4]"), b.input("y", "f32[B, 4]")
    graph = b.graph(b.call("aten.relu.default", x), x)
    with pytest.raises(GraphError, match="the signature numbers its inputs"), graph.edit(by="test") as e:
        e.remove(unused.node)
    with pytest.raises(GraphError, match="0 output nodes"), graph.edit(by="test") as e:
        e.remove(graph.output.id)
    with pytest.raises(GraphError, match="the outputs were"), graph.edit(by="test") as e:
        e.update(graph.output.id, drop=("1",))
    with pytest.raises(GraphError, match="the inputs were"), graph.edit(by="test") as e:
        e.update(unused.node, results=(TensorType(torch.float32, (2, 4)),))


def test_users_of_another_type_are_looked_at() -> None:
    graph, v = small_graph()
    with pytest.raises(GraphError, match=r"aten\.add\.Tensor"), graph.edit(by="test") as e:
        e.set_tensor(v["weight"].node, torch.zeros(3, 4))
        e.set_tensor(v["bias"].node, torch.zeros(3))
        e.infer(v["linear"].node)
        e.infer(v["dropout"].node)
    with pytest.raises(GraphError, match=r"aten\.linear\.default"), graph.edit(by="test") as e:
        e.remap(v["weight"].node, TensorMap((AxisMap(1, torch.tensor([0, 1])),)))
    with pytest.raises(GraphError, match="uses result 1"), graph.edit(by="test") as e:
        e.update(v["relu"].node, arguments={"self": Value(v["sum"].node, 1)})
    with pytest.raises(GraphError, match="not defined"), graph.edit(by="test") as e:
        new = e.call("aten.relu.default", v["x"])
        e.remove(new.node)
        e.update(v["sum"].node, arguments={"other": new})


def test_names_may_not_clash() -> None:
    """A module is one that holds a tensor or a flag: also a call that follows the mode only from now on."""
    graph, v = small_graph()
    for names in (("b.bias",), ("b",), ("b.bias.x",), ("z", "z")):
        with pytest.raises(GraphError, match=r"two tensors|a tensor and a module"), graph.edit(by="test") as e:
            e.update(v["weight"].node, parameter=Parameter(names))
    with pytest.raises(GraphError, match=r"'a\.weight' is a tensor and a module"), graph.edit(by="test") as e:
        e.update(v["dropout"].node, arguments={"train": False})
    with pytest.raises(GraphError, match="'new' is a tensor and a module"), graph.edit(by="test") as e:
        e.add_parameter("new", torch.zeros(3))
        e.call("aten.dropout.default", v["x"], 0.5, False, location=Location("new.inner"))


def test_names_that_are_free_again_may_be_given_again() -> None:
    graph, v = small_graph()
    with graph.edit(by="test") as e:
        e.update(v["linear"].node, drop=("bias",))
        e.remove(v["bias"].node)
        assert not e.stores("b") and e.stores("a") and e.stores("c")
        again = e.add_parameter("b.bias", torch.ones(4))
        e.update(v["linear"].node, arguments={"bias": again})
        assert e.stores("b")
        e.update(v["weight"].node, parameter=Parameter(("other.weight",)))
        assert e.stores("other") and not e.stores("a") and not e.stores("c")
        assert e.node(e.add_parameter("a.weight", torch.ones(4)).node).parameter == Parameter(("a.weight",))
        assert e.node(e.add_parameter("other.weight", torch.ones(4)).node).parameter == Parameter(("other.weight_1",))
    patch = e.patch
    assert patch.removed == {v["bias"].node} and v["bias"].node not in patch.maps and again.node in patch.touched
    check_patch(patch)
    check_structure(patch.after.structure)
    verify(anew(patch.after))


def test_what_is_added_and_removed_again_leaves_no_trace() -> None:
    graph, v = small_graph()
    with graph.edit(by="test") as e:
        parameter = e.add_parameter("new.weight", torch.zeros(4))
        call = e.call("aten.mul.Tensor", v["x"], parameter)
        e.remove(call.node)
        e.remove(parameter.node)
    assert not e.patch.touched and not e.patch.removed and not e.patch.maps
    assert e.graph.order is graph.order and e.graph.structure.users == graph.structure.users
    assert e.graph.structure.next_id == graph.structure.next_id + 2 and e.graph.tensors == graph.tensors
    with e.graph.edit(by="again") as later:
        assert later.call("aten.relu.default", v["x"]).node == graph.structure.next_id + 2
    check_patch(e.patch.then(later.patch))
