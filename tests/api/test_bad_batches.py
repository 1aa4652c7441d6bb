"""What cannot be read, is of another kind or cannot be compared is refused by archir's own errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

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


@pytest.mark.parametrize("action", [proposed, scored])
def test_errors_of_code_that_makes_batches_name_the_batch_and_the_line(action: Callable[..., Any]) -> None:
    def failing(after: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from BATCHES[:after]
        raise ZeroDivisionError("mine")

    told = r"cannot be read\n  where: batch {} of {}; .*test_bad_batches\.py:\d+\n  why:   ZeroDivisionError: mine"
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
