"""Batches as they are given: arrays are tensors; what cannot be read, or is of another kind, is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim

import archir
from archir.errors import GrowError, ScoreError

OPTIONS = archir.GrowOptions(learn_steps=4, score_examples=24, batch_size=12)
X = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
BATCHES = list(zip(torch.split(X, 12), torch.split(Y, 12), strict=True))


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))


def proposed(batches: Any, model: Any = None, **options: Any) -> archir.Plan:
    model = mlp() if model is None else model
    return archir.propose(model, batches, budget=90, morphisms="split", options=OPTIONS, **options)


def scored(batches: Any, model: Any = None, **options: Any) -> Any:
    return archir.score(mlp() if model is None else model, batches, morphisms="split", steps=2, **options)


@pytest.mark.parametrize("action", [proposed, scored])
def test_what_gives_no_batches_is_refused(action: Callable[..., Any]) -> None:
    for model in (mlp(), archir.trace(mlp(), (X[:3],))):
        for given, kind in ((None, "NoneType"), (3, "int")):
            with pytest.raises(ScoreError, match=rf"a {kind} is no batches\n  hint:  give a DataLoader"):
                action(given, model)
        with pytest.raises(ScoreError, match=r"a int is no batches for learn="):
            action(BATCHES, model, learn=3)
    with pytest.raises(ScoreError, match=r"a function is no batches\n  hint:  call it"):
        action(lambda: BATCHES)


def test_a_plan_is_checked_on_batches_alone() -> None:
    with pytest.raises(ScoreError, match="a int is no batches for check="):
        proposed(BATCHES, check=3)
    with pytest.raises(ScoreError, match="a NoneType is no batches"):
        proposed(BATCHES).check(None)  # type: ignore[arg-type]


def test_what_holds_no_batch_is_named() -> None:
    for name, use in (("learn", "learn on"), ("check", "check on")):
        with pytest.raises(ScoreError, match=rf"there are no batches to {use}\n  where: {name}="):
            proposed(BATCHES, **{name: []})
    few = [(X[:1], Y[:1])]
    with pytest.raises(
        GrowError, match=r"is left to score on and to learn on\n.*\n  hint:  give more .*, or .* learn=$"
    ):
        proposed(few, archir.trace(mlp(), (X[:3],)))
    for model in (mlp(), archir.trace(mlp(), (X[:3],))):
        for apart in ({}, {"learn": BATCHES, "check": BATCHES}):
            with pytest.raises(ScoreError, match="there are no batches to score on"):
                proposed([], model, **apart)


@pytest.mark.parametrize("action", [proposed, scored])
def test_errors_of_code_that_makes_batches_name_the_batch_and_the_line(action: Callable[..., Any]) -> None:
    def failing(after: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from BATCHES[:after]
        raise ZeroDivisionError("mine")

    told = r"cannot be read\n  where: batch {} of {}; .*test_batches_given\.py:\d+\n  why:   ZeroDivisionError: mine"
    for model in (mlp(), archir.trace(mlp(), (X[:3],))):
        for after in (0, 2):
            with pytest.raises(GrowError, match=told.format(after, "batches")):
                action(failing(after), model)
    with pytest.raises(GrowError, match=told.format(1, "learn")):
        action(BATCHES, learn=failing(1))


@pytest.mark.parametrize("action", [proposed, scored])
def test_class_numbers_that_are_no_whole_numbers_are_refused(action: Callable[..., Any]) -> None:
    with pytest.raises(
        ScoreError, match=r"probabilities \[12\] do not fit outputs \[12, 2\]\n  hint:  .*targets\.long"
    ):
        action([(x, y.float()) for x, y in BATCHES])


def test_what_is_of_another_kind_is_neither_written_to_nor_bound() -> None:
    model = mlp()
    graph = archir.trace(model, (X[:3],))
    for wrong in (None, "x"):
        with pytest.raises(GrowError, match=rf"nn\.Module, not a {type(wrong).__name__}"):
            archir.write_back(graph, wrong)  # type: ignore[arg-type]
        with pytest.raises(GrowError, match=rf"a graph, not a {type(wrong).__name__}"):
            archir.write_back(wrong, model)  # type: ignore[arg-type]
    optimizer = optim.SGD(model.parameters(), 0.1)
    with pytest.raises(GrowError, match="a str is no scheduler of an optimiser"):
        proposed(BATCHES, model).apply(model, optimizer, scheduler="cos")


class Named(nn.Module):
    """A model with two arguments, one of which is whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.outer = nn.Embedding(5, 6), nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, *, kind: Tensor) -> Tensor:
        found: Tensor = self.outer((self.inner(x) + self.inner(self.table(kind))).tanh())
        return found


def as_arrays(nested: Any) -> Any:
    """Arrays as NumPy makes them: float64, and one that is read backwards and cannot be written."""
    if isinstance(nested, dict):
        return {key: as_arrays(part) for key, part in nested.items()}
    if isinstance(nested, tuple):
        return tuple(as_arrays(part) for part in nested)
    found = nested.double().numpy() if nested.is_floating_point() else nested.numpy()
    found = found[::-1].copy()[::-1]
    found.flags.writeable = False
    return found


def test_arrays_of_numpy_are_taken_as_tensors_are() -> None:
    plain = BATCHES
    named = [{"x": x, "kind": torch.arange(len(x)) % 5, "labels": y} for x, y in BATCHES]
    makes: tuple[tuple[Callable[[], nn.Module], Any], ...] = ((mlp, plain), (lambda: seeded(Named), named))
    for make, given in makes:
        arrays = [as_arrays(batch) for batch in given]
        graph = archir.trace(make(), *call_of(given[0]))
        for model in (make(), graph):
            tables = [[(s.spec, s.predicted) for s in scored(b, model)] for b in (given, arrays)]
            assert tables[0] == tables[1] and tables[0]
            plans = [proposed(b, model) for b in (given, arrays)]
            first, second = ([(s.spec, s.predicted) for s in plan.table] for plan in plans)
            assert first == second and first
            assert plans[0].check(given) == plans[0].check(arrays)
    pruned = [
        archir.prune_with_compensation(mlp(), b, "prune{width=w0, units=[1]}") for b in (plain, map(as_arrays, plain))
    ]
    assert torch.equal(pruned[0].tensor("2.weight"), pruned[1].tensor("2.weight"))
    with pytest.raises(ScoreError, match="the targets of a batch are no numbers"):
        scored([(x, np.array(["a"] * len(x))) for x, _ in plain])


def test_no_batch_is_read_that_is_not_needed() -> None:
    """What is left of a stream is there for whoever reads on."""

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(torch.full((12, 6), float(i)), Y[:12]) for i in range(20)])

    for model in (mlp(), archir.trace(mlp(), (X[:3],))):
        # One batch is one piece: two to check on, two to score on, and four to learn on are enough.
        batches, learn, check = stream(), stream(), stream()
        proposed(batches, model)
        assert next(batches)[0][0, 0] == 8
        batches = stream()
        proposed(batches, model, learn=learn, check=check)
        assert [int(next(b)[0][0, 0]) for b in (batches, learn, check)] == [2, 4, 2]


def seeded(make: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def call_of(batch: Any) -> Any:
    if isinstance(batch, dict):
        return (), {key: value for key, value in batch.items() if key != "labels"}
    return ((batch[0],),)
