"""Criteria: what scores of the units of a wide network say of allocations that were trained from the start."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from archir.axes.infer import infer_widths
from archir.growing.batches import Batches, stream
from archir.growing.checks import held_out
from archir.growing.recalibration import recalibrate
from archir.growing.trainer import Trainer
from archir.ir.graph import Graph
from archir.scoring.objective import make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.score import score
from archir.scoring.scores import Scores
from passes.prune import Prune
from tools.growth.figures import Predictions
from tools.growth.records import Record
from tools.growth.tasks import Sizes, Task


@dataclass(frozen=True)
class Criterion:
    """How the removal of units is judged.

    Attributes:
        strategy: what scores them.
        settled: see `ScoreOptions`.
        adapted: the same.
        together: whether a set is judged by all pairs of its units, or by the sum of what each is judged alone.
    """

    strategy: str
    settled: bool = False
    adapted: bool = False
    together: bool = False


CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {
        "magnitude": Criterion("magnitude"),
        "taylor": Criterion("taylor"),
        "a + G/2 alone": Criterion("sampled"),
        "a + G/2 together": Criterion("sampled", together=True),
        "G/2 alone": Criterion("sampled", settled=True),
        "G/2 together": Criterion("sampled", settled=True, together=True),
        "G/2 adapted, alone": Criterion("sampled", settled=True, adapted=True),
        "G/2 adapted, together": Criterion("sampled", settled=True, adapted=True, together=True),
    }
)
"""The criteria by name."""


def wide_network(task: Task, allocations: Sequence[Sizes], seed: int, rate: float) -> Graph:
    """Return a network that holds all allocations, trained until a run would contract it for the first time."""
    sizes = {name: max(a[name] for a in allocations) for name in allocations[0]}
    options, (first, *_) = task.training(seed, rate), task.options.growth_at()
    trainer = Trainer(task.network(sizes, seed), options)
    torch.manual_seed(seed)
    batches = stream(Batches(task.dataset.train, options.batch_size, seed, options.augmentation))
    trainer.train(itertools.islice(batches, first), task.loss)
    trainer = trainer.averaged(task.dataset.train)
    recalibrate(trainer.module, itertools.islice(batches, options.recalibrate_batches))
    return trainer.graph()


def predictions(task: Task, wide: Graph, allocations: Sequence[Sizes], seed: int) -> dict[str, list[float]]:
    """Return by criterion what it would cost to contract a wide network to each allocation, lower is better.

    Width by width as many units go as the allocation asks for: those of least cost, one after another.

    Raises:
        ValueError: units have to go that nothing removes, as those that a layer norm runs over.
    """
    objective = make_objective(wide, task.loss)
    seen, _ = held_out(task.dataset.validation, task.loss, task.options.score_examples, seed)
    widths = infer_widths(wide)
    removed = [{w.name: max(w.size - sizes[w.name], 0) for w in widths} for sizes in allocations]
    found: dict[str, list[float]] = {}
    kept: dict[tuple[str, bool, bool], Scores] = {}
    for name, how in CRITERIA.items():
        key = how.strategy, how.settled, how.adapted
        if key not in kept:
            options = ScoreOptions(settled=how.settled, adapted=how.adapted, seed=seed)
            batches = Batches(seen, task.options.batch_size)
            kept[key] = score(objective, batches, morphisms=(Prune(),), strategy=how.strategy, options=options)
        found[name] = [_cost(kept[key], counts, how.together) for counts in removed]
    return found


def _cost(scores: Scores, removed: Mapping[str, int], together: bool) -> float:
    """Return what the removal of so many units of each width costs."""
    units = [s.candidate for s in scores.choice]
    widths = [unit.family.site.label for unit in units]
    quota = {name: count for name, count in removed.items() if count}
    if stuck := quota.keys() - set(widths):
        raise ValueError(f"no candidate removes units of {', '.join(sorted(stuck))}")
    alone = np.array([s.order for s in scores.choice])
    pairs = np.zeros((len(units), len(units)))
    if together:
        assert scores.refinement is not None
        alone, pairs = (t.numpy().copy() for t in scores.refinement.quadratic)
    marginal, total = alone.copy(), 0.0
    free = np.array([name in quota for name in widths])
    while free.any():
        best = int(np.flatnonzero(free)[marginal[free].argmin()])
        total += float(marginal[best])
        marginal += pairs[best]
        free[best] = False
        quota[widths[best]] -= 1
        if not quota[widths[best]]:
            free &= np.array([name != widths[best] for name in widths])
    return total


def judged(task: Task, records: Sequence[Record], seed: int = 0) -> Predictions:
    """Return what all criteria say of the allocations of some records, by the wide network that holds them all."""
    if not records:
        return {}
    allocations = [r.sizes for r in records]
    found = predictions(task, wide_network(task, allocations, seed, task.rate), allocations, seed)
    return {name: {r.key.arm: v for r, v in zip(records, values, strict=True)} for name, values in found.items()}
