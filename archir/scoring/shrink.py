"""Shrinking without training: units are chosen in rounds, each scored on what the rounds before it have left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from archir.axes.infer import infer_widths
from archir.axes.terms import leaves
from archir.axes.widths import Width, Widths
from archir.cost import Cost, cost
from archir.errors import ScoreError
from archir.ir.graph import Graph
from archir.rewrite.morphism import UnitMorphism
from archir.rewrite.pipeline import apply_together
from archir.rewrite.spec import format_spec
from archir.scoring.batches import AnyBatch
from archir.scoring.budget import Budget
from archir.scoring.compensate import compensated
from archir.scoring.losses import Loss
from archir.scoring.objective import make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.program import Inputs
from archir.scoring.score import score
from archir.scoring.strategies.strategy import Strategy

ROUNDS = 4
"""In how many rounds units are chosen where no other number is asked for."""

SHRINKING = "sampled"
"""The strategy that chooses them: it scores all pairs, and there is nothing to learn."""

_Place = tuple[int, int, int]


@dataclass(frozen=True)
class Shrunk:
    """What a network has been shrunk to.

    Attributes:
        graph: the smaller network.
        prunes: what was removed, one rewrite for each width; together they are done to the network it was.
        cost: cost of the smaller network.
        predicted: the predicted change of the loss in each round, in nats for likelihoods; None where none is.
    """

    graph: Graph = field(repr=False)
    prunes: tuple[UnitMorphism, ...]
    cost: Cost
    predicted: tuple[float | None, ...]

    @property
    def specs(self) -> tuple[str, ...]:
        """The texts of what was removed."""
        return tuple(map(format_spec, self.prunes))


def shrink(
    graph: Graph,
    budget: Budget,
    *,
    prune: UnitMorphism,
    loss: Loss,
    batches: Sequence[AnyBatch],
    compensate: Sequence[tuple[Inputs, object]] | None = None,
    strategy: str | Strategy = SHRINKING,
    options: ScoreOptions | None = None,
    rounds: int = ROUNDS,
) -> Shrunk:
    """Remove the units of a trained network whose going raises the loss the least, until it is within a budget.

    The budgets of the rounds are spaced geometrically. In each, the units that are left are scored on the network that
    all removed so far have left behind: the weights of the first network, compensated for all of them at once, so that
    errors do not add up.

    Args:
        graph: the network.
        budget: what it is to be within, or parts of what it costs; that on latency is not looked at.
        prune: the kind of rewrite that removes units, which has an option `units`.
        loss: the loss.
        batches: batches to score on.
        compensate: batches that compensation looks at; none for no compensation.
        strategy: the strategy that scores and chooses.
        options: how units are scored; `settled` is taken to be true.
        rounds: number of rounds, from 1.

    Raises:
        ScoreError: there are no rounds, or the network cannot be scored.

    Source: ours.
    """
    if rounds < 1:
        raise ScoreError(f"units cannot be chosen in {rounds} rounds", hint="choose them in one round or more")
    options = ScoreOptions(steps=0) if options is None else options
    begun, widths = cost(graph), infer_widths(graph)
    budget = budget.resolved(begun)
    names = {_place(w): w.name for w in widths}
    kept = {w.name: list(range(w.size)) for w in widths}
    now, prunes, predicted = graph, list[UnitMorphism](), list[float | None]()
    for number in range(1, rounds + 1):
        stage = budget.stage(begun, number, rounds)
        if stage.allows(cost(now)):
            continue
        found = score(
            make_objective(now, loss, batch_statistics=options.batch_statistics),
            batches,
            morphisms=(prune,),
            learn=batches,
            strategy=strategy,
            options=replace(options, budget=stage, settled=True),
        ).select(stage, price=options.price)
        for name, units in _removed(infer_widths(now), [s.candidate.morphism for s in found.path]).items():
            first = kept[names[_place(infer_widths(now)[name])]]
            first[:] = [unit for i, unit in enumerate(first) if i not in units]
        predicted.append(found.predicted)
        prunes = _prunes(prune, widths, kept)
        now = _done(graph, prunes, compensate)
    return Shrunk(now, tuple(prunes), cost(now), tuple(predicted))


def _done(graph: Graph, prunes: Sequence[UnitMorphism], batches: Iterable[tuple[Inputs, object]] | None) -> Graph:
    if batches is None:
        return apply_together(graph, [(p, None) for p in prunes])
    return compensated(graph, batches, prunes)


def _removed(widths: Widths, rewrites: Iterable[object]) -> dict[str, set[int]]:
    """Return the units that rewrites remove, by width."""
    found: dict[str, set[int]] = {}
    for rewrite in rewrites:
        assert isinstance(rewrite, UnitMorphism)
        width = widths[rewrite.width]
        gone = set(range(width.size)) - set(rewrite.change(width).source)
        found.setdefault(width.name, set()).update(gone)
    return found


def _prunes(prune: UnitMorphism, widths: Widths, kept: dict[str, list[int]]) -> list[UnitMorphism]:
    """Return one rewrite for each width that takes it down to the units that are kept."""
    gone = {name: tuple(sorted(set(range(widths[name].size)) - set(units))) for name, units in kept.items()}
    return [replace(prune, width=name, units=units) for name, units in gone.items() if units]  # type: ignore[call-arg]


def _place(width: Width) -> _Place:
    """Return where a width stands first, which stays as it is while units are removed; names may not."""
    place = width.places[0]
    return place.node, place.axis, list(leaves(place.term)).index(width.atom)
