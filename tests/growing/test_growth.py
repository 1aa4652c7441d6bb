"""One growth step: what is committed, what is made smaller or shortened first, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from archir.errors import NotFiniteError
from archir.growing import growth as growth_module
from archir.growing.examples import Examples
from archir.growing.growth import SHRUNK, Growth, grow_once
from archir.growing.options import GrowOptions
from archir.growing.step import StepContext
from archir.growing.training import evaluate
from archir.ir.graph import Graph
from archir.rewrite.morphism import Morphism
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


Told = Mapping[tuple[int, float], tuple[float, float]]
"""By number of members and scale of θ what a set does to the loss, and what is predicted of it."""

RISES, KEEPS = (1.0, -1.0), (-1.0, -1.0)


@pytest.mark.usefixtures("choose_four")
@pytest.mark.parametrize(
    ("told", "tried", "kept"),
    [
        ({(4, 1.0): KEEPS}, 1, (4, 1.0)),
        ({(4, 1.0): RISES, (4, 0.5): KEEPS}, 2, (4, 0.5)),
        ({(4, 1.0): (math.inf, -1.0), (4, 0.5): RISES, (4, 0.25): KEEPS}, 3, (4, 0.25)),
        ({(4, 1.0): (-1.0, 0.0), (4, 0.5): KEEPS}, 2, (4, 0.5)),  # not predicted to fall
        ({(4, 1.0): (-1.0, -9.0), (4, 0.5): (-2.0, -9.0), (4, 0.25): (-1.9, -9.0)}, 3, (4, 0.5)),  # does most there
        ({(4, 1.0): (-1.0, -9.0), (4, 0.5): (-2.0, -2.5), (4, 0.25): KEEPS}, 2, (4, 0.5)),  # 0.8 of it is enough
        ({(4, s): RISES for s in (1.0, *SHRUNK)} | {(2, 1.0): KEEPS}, 6, (2, 1.0)),
        ({(n, s): RISES for n in (4, 2, 1) for s in (1.0, *SHRUNK)}, 15, None),
    ],
)
def test_theta_is_made_smaller_while_that_helps_and_a_set_shortened_where_it_does_not(
    trained: Graph, monkeypatch: pytest.MonkeyPatch, told: Told, tried: int, kept: tuple[int, float] | None
) -> None:
    """θ is learned once, for the whole of it."""
    learned, scaled, applied = CandidateSet.learned, CandidateSet.scaled, growth_module._applied
    scales, wholes, seen = dict[int, tuple[CandidateSet, float]](), list[CandidateSet](), list[tuple[int, float]]()

    def learn(self: CandidateSet, *given: Any, **options: Any) -> CandidateSet:
        wholes.append(learned(self, *given, **options))
        return wholes[-1]

    def scale(self: CandidateSet, factor: float) -> CandidateSet:
        found = scaled(self, factor)
        scales[id(found)] = found, factor
        return found

    def key(together: CandidateSet) -> tuple[int, float]:
        return len(together), scales[id(together)][1]

    def apply(step: StepContext, together: CandidateSet, nothing: Growth) -> Growth:
        seen.append(key(together))
        return replace(applied(step, together, nothing), realised=told[key(together)][0])

    monkeypatch.setattr(CandidateSet, "learned", learn)
    monkeypatch.setattr(CandidateSet, "scaled", scale)
    monkeypatch.setattr(CandidateSet, "linearised", lambda self, batches: told[key(self)][1])
    monkeypatch.setattr(growth_module, "_applied", apply)
    growth = step(trained, options=replace(OPTIONS, learn_rate=0.01), morphisms=(Split(),))
    assert seen == list(told)[:tried] and growth.chosen == 4
    assert ((len(growth.specs), growth.scale) if growth.rewriting else None) == kept
    monkeypatch.undo()
    if kept is not None:
        assert (growth.realised, growth.expected, growth.predicted) == (told[kept][0], told[kept][1], told[kept][1])
        again = wholes[-1].first(kept[0]).scaled(kept[1]).apply().module().eval()
        assert torch.equal(growth.graph.module().eval()(data(50, 2).inputs), again(data(50, 2).inputs))


@pytest.mark.usefixtures("choose_four")
def test_a_set_whose_fall_is_not_worth_its_price_is_not_committed(
    trained: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the true fall nor the predicted one may be worth less."""

    def grown(expected: float, price: float) -> int:
        monkeypatch.setattr(CandidateSet, "linearised", lambda self, batches: expected)
        options = replace(OPTIONS, prices=Prices(parameters=price), learn_rate=0.01)
        return len(step(trained, check=data(200, 1), options=options, morphisms=(Split(),)).specs)

    assert grown(-1e-9, 0.0) == 4
    assert grown(-1e-9, 1e-9) == 0
    assert grown(-1e9, 1e-9) == 4
    assert grown(-1e9, 1e2) == 0


def test_a_set_that_leaves_the_numbers_is_made_smaller(trained: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is not finite is no reason to end a run."""
    context: list[StepContext] = []

    def select(self: StepContext, scores: Scores) -> Selection:
        context.append(self)
        return chosen(self, scores)

    chosen = StepContext.select
    monkeypatch.setattr(StepContext, "select", select)
    assert step(trained).rewriting is not None
    (one,) = context
    wild = trained.with_tensors(
        {n.parameter.names[0]: trained.tensors[n.id] * 1e38 for n in trained.parameters if n.parameter}
    )
    assert one.measure(wild) == math.inf
    with pytest.raises(NotFiniteError, match="the loss on"):
        replace(one, graph=wild, _measured={}).measure(wild)
