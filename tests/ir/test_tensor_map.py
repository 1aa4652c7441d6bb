"""How a stored tensor is made of an old one: numbers by hand, composition, and gradients against autograd."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archir.ir.builder import GraphBuilder
from archir.ir.tensor_map import AxisMap, Division, Fresh, TensorMap, along

F64 = torch.float64


def whole(numbers: Sequence[int]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.long)


def random_map(dice: Random, shape: Sequence[int], *, fresh: bool) -> TensorMap:
    """Return a map that repeats, leaves out and reorders places of some axes, divided by how often each is there."""
    axes: list[AxisMap] = []
    for axis, size in enumerate(shape):
        index = [dice.randrange(size) for _ in range(dice.randrange(1, 2 * size + 1))]
        counts = torch.tensor([float(index.count(i)) for i in index], dtype=F64)
        if fresh and dice.random() < 0.5:
            index, counts = [*index, -1], torch.cat([counts, torch.ones(1, dtype=F64)])
        divisions = (Division(counts, dice.randrange(3)),) if dice.random() < 0.7 else ()
        axes.append(AxisMap(axis, whole(index), divisions=divisions, fresh=Fresh(seed=dice.randrange(9))))
    return TensorMap(tuple(a for a in axes if dice.random() < 0.8))


def test_copies_are_divided_by_their_exponent() -> None:
    """A unit that becomes two holds 2^-e of a weight, 2^(e-1) of a gradient, and of a second moment the square."""
    tensor = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    copies = torch.tensor([1.0, 2.0, 1.0, 2.0], dtype=F64)
    for exponent in (0, 1, 2):
        by = TensorMap((AxisMap(0, whole([0, 1, 2, 1]), divisions=(Division(copies, exponent),)),))
        for found, factor in (
            (by.weight(tensor), 2.0**-exponent),
            (by.change(tensor), 2.0**-exponent),
            (by.gradient(tensor), 2.0 ** (exponent - 1)),
            (by.gradient(tensor, 2), 4.0 ** (exponent - 1)),
        ):
            assert found.tolist() == [1, 2 * factor, 3, 2 * factor] and found.dtype == F64


def test_new_places_hold_what_is_given_in_a_weight_and_zero_elsewhere() -> None:
    tensor = torch.arange(1.0, 5, dtype=F64).reshape(2, 2)
    values = torch.tensor([[7.0], [8.0]], dtype=F64)
    by = TensorMap((AxisMap(1, whole([-1, 1, 0, -1]), fresh=Fresh(values, within=(whole([0, 1]), whole([0])))),))
    assert by.weight(tensor).tolist() == [[7, 2, 1, 0], [8, 4, 3, 0]]
    for other in (by.change(tensor), by.gradient(tensor), by.gradient(tensor, 2)):
        assert other.tolist() == [[0, 2, 1, 0], [0, 4, 3, 0]]
    assert by.fresh(tensor).tolist() == [[True, False, False, True]] * 2


def test_random_new_places_are_like_the_tensor_but_where_nothing_is_to_be() -> None:
    tensor = torch.arange(6.0, dtype=F64).reshape(3, 2)
    present = torch.tensor([1.0, 0.0])
    found = TensorMap((AxisMap(0, whole([0, -1, -1]), fresh=Fresh(seed=3, present=present)),)).weight(tensor)
    noise = torch.randn((2, 2), generator=torch.Generator().manual_seed(3), dtype=F64)
    assert torch.equal(found[1], noise[0] * tensor.std()) and found[2].tolist() == [0, 0]
    vector = TensorMap((AxisMap(0, whole([-1, 2]), fresh=Fresh()),)).weight(torch.tensor([1.0, 2, 6], dtype=F64))
    assert vector.tolist() == [3, 6]
    counts = TensorMap((AxisMap(0, whole([-1, 1]), fresh=Fresh()),)).weight(whole([4, 5]))
    assert counts.tolist() == [0, 5] and counts.dtype == torch.long


def test_merged_places_hold_the_mean() -> None:
    """Two units become one: the mean, doubled where a unit that is repeated would be halved."""
    tensor = torch.tensor([1.0, 5.0, 3.0], dtype=F64)
    mean = AxisMap(0, torch.arange(3), whole([1, 0, 2]))
    half = torch.tensor([0.5, 1.0], dtype=F64)
    for exponent, weight, gradient in ((0, 3.0, 6.0), (1, 6.0, 3.0)):
        by = TensorMap((mean, AxisMap(0, whole([0, 2]), divisions=(Division(half, exponent),))))
        assert by.weight(tensor).tolist() == [weight, 3]
        assert by.gradient(tensor).tolist() == [gradient, 3]
    assert mean(whole([1, 5, 3]), 0, weight=True).tolist() == [1, 5, 3]


@given(st.randoms(use_true_random=False))
def test_maps_done_one_after_another_are_one_map(dice: Random) -> None:
    tensor = torch.randn(3, 2, 4, dtype=F64)
    first = random_map(dice, tensor.shape, fresh=True)
    second = random_map(dice, first.weight(tensor).shape, fresh=True)
    third = random_map(dice, second.weight(first.weight(tensor)).shape, fresh=False)
    both = first.then(second).then(third)
    assert both == first.then(second.then(third)) and TensorMap().then(both) == both == both.then(TensorMap())
    for way in ("weight", "change", "gradient"):
        steps = tensor
        for by in (first, second, third):
            steps = getattr(by, way)(steps)
        assert torch.equal(getattr(both, way)(tensor), steps)
    squared = third.gradient(second.gradient(first.gradient(tensor, 2), 2), 2)
    assert torch.equal(both.gradient(tensor, 2), squared)
    assert torch.allclose(both.gradient(tensor.square(), 2), both.gradient(tensor).square(), rtol=1e-12, atol=0)


@given(st.randoms(use_true_random=False))
def test_what_is_fresh_holds_nothing_of_the_old_tensor(dice: Random) -> None:
    tensor = torch.randn(3, 4, dtype=F64)
    by = random_map(dice, tensor.shape, fresh=True)
    near = by.change(tensor)
    assert by.fresh(tensor).shape == near.shape == by.weight(tensor).shape
    assert torch.equal(by.fresh(tensor), near == 0)
    assert torch.equal(by.weight(tensor)[~by.fresh(tensor)], near[~by.fresh(tensor)])
    assert not TensorMap().fresh(torch.zeros(2)).any()


@given(st.randoms(use_true_random=False), st.integers(0, 2))
def test_gradients_are_those_of_autograd(dice: Random, exponent: int) -> None:
    """The loss reads the old tensor off the copies, by `m^(e-1)` times their sum: its gradients are `map.gradient`."""
    old = torch.randn(3, 4, dtype=F64)
    index = {axis: [*range(n), *(dice.randrange(n) for _ in range(dice.randrange(4)))] for axis, n in ((0, 3), (1, 4))}
    for places in index.values():
        dice.shuffle(places)
    counts = {a: torch.tensor([float(p.count(i)) for i in p], dtype=F64) for a, p in index.items()}
    by = TensorMap(tuple(AxisMap(a, whole(p), divisions=(Division(counts[a], exponent),)) for a, p in index.items()))

    def read(new: torch.Tensor) -> torch.Tensor:
        for axis, places in index.items():
            shape = [old.shape[axis] if d == axis else n for d, n in enumerate(new.shape)]
            weighed = new * along(axis, counts[axis] ** (exponent - 1), 2)
            new = torch.zeros(shape, dtype=F64).index_add(axis, whole(places), weighed)
        return new

    def loss(tensor: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(tensor) * torch.arange(12.0, dtype=F64).reshape(3, 4)).sum()

    new = by.weight(old).requires_grad_()
    assert torch.allclose(read(new), old, rtol=1e-12, atol=0)
    loss(read(new)).backward()  # type: ignore[no-untyped-call]
    reference = old.clone().requires_grad_()
    loss(reference).backward()  # type: ignore[no-untyped-call]
    assert new.grad is not None and reference.grad is not None
    assert torch.allclose(by.gradient(reference.grad), new.grad, rtol=1e-12, atol=1e-15)
    assert torch.allclose(by.gradient(reference.grad.square(), 2), new.grad.square(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("groups", [(2, 1), (1, 3)])
def test_a_layer_of_copies_trains_as_the_one_it_was(groups: tuple[int, int]) -> None:
    """Hidden units of two linear layers are copied: the rows are alike, the columns divided, the function kept."""
    index = [unit for unit, count in enumerate(groups) for _ in range(count)]
    copies = torch.tensor([float(index.count(i)) for i in index], dtype=F64)
    rows = TensorMap((AxisMap(0, whole(index), divisions=(Division(copies, 0),)),))
    columns = TensorMap((AxisMap(1, whole(index), divisions=(Division(copies, 1),)),))
    x, up, down = (torch.randn(shape, dtype=F64) for shape in ((5, 3), (2, 3), (4, 2)))
    grads: list[list[torch.Tensor]] = []
    for pair in ((up, down), (rows.weight(up), columns.weight(down))):
        first, second = (t.clone().requires_grad_() for t in pair)
        loss = (torch.tanh(x @ first.T) @ second.T).square().sum()
        grads.append([loss.detach(), *torch.autograd.grad(loss, (first, second))])
    (was, of_up, of_down), (now, of_rows, of_columns) = grads
    assert torch.allclose(was, now, rtol=1e-12)
    assert torch.allclose(rows.gradient(of_up), of_rows, rtol=1e-12)
    assert torch.allclose(columns.gradient(of_down), of_columns, rtol=1e-12)


def test_an_optimisers_state_goes_with_the_tensor() -> None:
    b = GraphBuilder()
    weight, gone = b.parameter("a.weight", "f64[3, 4]"), b.parameter("b.bias", "f64[3]")
    kept = b.parameter("c.bias", "f64[3]")
    x = b.call("aten.linear.default", b.input("x", "f64[B, 4]"), weight)
    total = b.call("aten.add.Tensor", x, gone)
    graph = b.graph(b.call("aten.mul.Tensor", total, kept))
    state = {i: torch.randn_like(t) for i, t in graph.tensors.items()}
    rows = AxisMap(1, whole([3, 2, 1, 0]))
    with graph.edit(by="one") as e:
        e.replace_uses(total, x)
        e.remove(total.node)
        e.remove(gone.node)
        e.remap(weight.node, TensorMap((rows,)))
        e.add_parameter("d.bias", torch.zeros(3))
    with e.graph.edit(by="two") as later:
        later.set_tensor(kept.node, torch.ones(3, dtype=F64))
        later.remap(kept.node, TensorMap((AxisMap(0, whole([2, 1, 0])),)))
    patch = e.patch.then(later.patch)
    carried = patch.carry(state)
    assert carried.keys() == {weight.node, kept.node} and patch.maps[kept.node] is None
    assert torch.equal(carried[weight.node], state[weight.node].flip(1)) and not carried[kept.node].any()
    assert torch.equal(e.patch.carry(state)[kept.node], state[kept.node])
