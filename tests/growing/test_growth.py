"""One growth step: what is committed, what is made smaller or shortened first, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from archir.growing import growth as growth_module
from archir.growing.examples import Examples
from archir.growing.growth import SHRUNK, Growth, grow_once
from archir.growing.options import GrowOptions
from archir.growing.training import evaluate
from archir.ir.graph import Graph, Patch
from archir.rewrite.morphism import Morphism
from archir.rewrite.pipeline import rewrite_together
from archir.scoring.budget import Budget, Prices
from archir.scoring.losses import find_loss
from archir.scoring.scores import Scores, Selection
from archir.scoring.sets import CandidateSet
from archir.scoring.targets import map_tensors
from passes.split import Split
from tests.growing.small_run import MORPHISMS, OPTIONS, data, grow


@pytest.fixture(scope="module")
def trained(seed_graph: Graph) -> Graph:
    return grow(seed_graph, options=replace(OPTIONS, growth_steps=0, steps=150)).graph


def step(
    graph: Graph,
    *,
    examples: Examples | None = None,
    check: Examples | None = None,
    options: GrowOptions = OPTIONS,
    morphisms: Sequence[Morphism] = MORPHISMS,
) -> Growth:
    """Take one growth step: θ learned on all examples, candidates scored on the first hundred."""
    examples = data(400, 1) if examples is None else examples
    return grow_once(
        graph,
        train=examples,
        selection=examples.take(slice(0, 100)),
        check=data(200, 2) if check is None else check,
        loss=find_loss("cross_entropy"),
        budget=Budget(parameters=2000),
        options=options,
        morphisms=morphisms,
        seed=0,
    )


def losses(before: Graph, after: Graph, check: Examples) -> tuple[float, float]:
    one, other = (evaluate(g.module(), check, find_loss("cross_entropy")).loss for g in (before, after))
    return one, other


@pytest.fixture
def choose_four(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Scores.select
    monkeypatch.setattr(Scores, "select", lambda self, budget, **options: chosen(self, budget, k=4))


@pytest.mark.parametrize("price", [0.0, 1e-4, 10.0])
def test_no_price_buys_a_rise_of_the_loss(trained: Graph, price: float) -> None:
    """Removing units may pay ever so much; a set that raises the held-out loss is refused all the same."""
    check = data(200, 2)
    growth = step(trained, check=check, options=replace(OPTIONS, prices=Prices(parameters=price)))
    before, after = losses(trained, growth.graph, check)
    assert growth.chosen > 0
    assert growth.rewriting is None or after < before


def test_a_set_that_raises_the_loss_is_never_committed(trained: Graph) -> None:
    """Scores made for other targets promise what the held-out examples do not keep."""
    wrong, check = data(400, 1), data(200, 2)
    swapped = Examples(wrong.inputs, map_tensors(lambda labels: (labels + 1) % 3, wrong.targets))
    growth = step(trained, examples=swapped, check=check)
    before, after = losses(trained, growth.graph, check)
    assert growth.chosen > 0
    assert after <= before
    assert (growth.rewriting is None) == (growth.graph is trained)


@pytest.mark.usefixtures("choose_four")
@pytest.mark.parametrize(
    ("promise", "sizes"),
    [
        (lambda size: 0.01, {0}),  # a rise
        (lambda size: -1e-9, {4}),  # kept by the whole set
        (lambda size: -100.0, {4}),  # kept by none: the longest that lowers the loss
        (lambda size: -100.0 if size > 1 else -1e-9, {1}),  # kept by the shortest alone
    ],
)
def test_a_set_is_shortened_until_it_keeps_its_promise(
    trained: Graph, monkeypatch: pytest.MonkeyPatch, promise: Callable[[int], float], sizes: set[int]
) -> None:
    monkeypatch.setattr(CandidateSet, "linearised", lambda self, batches: promise(len(self)))
    growth = step(trained, check=data(400, 1).take(slice(0, 200)))
    assert growth.chosen == 4
    assert len(growth.specs) in sizes
    assert growth.realised < 0 or not growth.specs


@pytest.mark.parametrize(("prices", "tried"), [(Prices(), [4, 3, 1]), (Prices(parameters=1e-12), [4, 2, 1])])
def test_what_only_takes_spare_room_is_the_first_to_go_and_is_asked_for_where_nothing_has_a_price(
    trained: Graph, monkeypatch: pytest.MonkeyPatch, prices: Prices, tried: list[int]
) -> None:
    chosen, seen = Scores.select, list[int]()

    def select(self: Scores, budget: Budget, *, fill: bool, **options: Any) -> Selection:
        return replace(chosen(self, budget, k=4), spare=int(fill))

    def promise(self: CandidateSet, batches: object) -> float:
        seen.append(len(self))
        return 1.0

    monkeypatch.setattr(Scores, "select", select)
    monkeypatch.setattr(CandidateSet, "linearised", promise)
    options = replace(OPTIONS, prices=prices, learn_rate=0.01)
    growth = step(trained, check=data(200, 1), options=options, morphisms=(Split(),))
    assert growth.rewriting is None and list(dict.fromkeys(seen)) == tried


@pytest.mark.usefixtures("choose_four")
@pytest.mark.parametrize(("kept", "members"), [(1.0, 4), (0.5, 4), (0.1, 2)])
def test_theta_of_a_set_is_made_smaller_before_members_are_dropped(
    trained: Graph, monkeypatch: pytest.MonkeyPatch, kept: float, members: int
) -> None:
    scaled, made = CandidateSet.scaled, list[tuple[CandidateSet, float]]()

    def record(self: CandidateSet, factor: float) -> CandidateSet:
        made.append((scaled(self, factor), factor))
        return made[-1][0]

    def promise(self: CandidateSet, batches: object) -> float:
        factor = next((f for s, f in made if s is self), 1.0)
        return -1e-9 if factor == kept or len(self) < 4 else -100.0

    monkeypatch.setattr(CandidateSet, "scaled", record)
    monkeypatch.setattr(CandidateSet, "linearised", promise)
    options = replace(OPTIONS, learn_rate=0.01)
    growth = step(trained, check=data(200, 1), options=options, morphisms=(Split(),))
    assert len(growth.specs) == members and growth.realised < 0
    assert growth.scale == (kept if kept in SHRUNK else 1.0)
    tried = [factor for found, factor in made if len(found) == 4 and factor in SHRUNK]
    assert tried == {1.0: [], 0.5: [0.5], 0.1: [0.5, 0.25]}[kept]
    if kept in SHRUNK:
        inputs = data(50, 2).inputs
        assert torch.equal(growth.graph.module().eval()(inputs), made[-1][0].apply().module().eval()(inputs))


@pytest.mark.usefixtures("choose_four")
def test_a_set_predicted_to_raise_the_loss_is_not_even_built(trained: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one whose predicted fall is not worth its price committed, whatever the loss does."""
    built: list[int] = []

    def build(graph: Graph, members: Sequence[tuple[Morphism, Any]]) -> Patch:
        built.append(len(members))
        return rewrite_together(graph, members)

    monkeypatch.setattr(growth_module, "rewrite_together", build)

    def grown(promise: dict[int, float], price: float) -> tuple[int, list[int]]:
        built.clear()
        monkeypatch.setattr(CandidateSet, "linearised", lambda self, batches: promise[len(self)])
        options = replace(OPTIONS, prices=Prices(parameters=price), learn_rate=0.01)
        growth = step(trained, check=data(200, 1), options=options, morphisms=(Split(),))
        return len(growth.specs), list(built)

    assert grown({4: 0.013, 2: 0.0, 1: -1e-9}, 0.0) == (1, [1])
    assert grown({4: -1e-9, 2: 0.01, 1: 0.01}, 1e-9) == (0, [4, 4, 4])  # θ as learned, and twice made smaller
