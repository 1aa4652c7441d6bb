"""How well is predicted what sets of fresh units do: each width of a small GPT and a small ViT, in sizes that double.

Each candidate has the θ it learned alone; it is built, and the true change of the loss measured on the examples it was
scored on. The networks are those of `fidelity`, early, in the middle and late in training.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from scipy.stats import spearmanr

from archir.axes.infer import infer_widths
from archir.cost import cost
from archir.growing.batches import Batches
from archir.ir.graph import Graph
from archir.scoring.budget import Budget
from archir.scoring.objective import make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.score import score
from passes.widen import Widen, adds_up
from tools.fidelity.measure import LOSS, truth
from tools.fidelity.subjects import Subject, stages, subject

SUBJECTS = {"text": "GPT", "patches": "ViT"}

LEARN, ROOM = 40, 1.3
"""Steps of learning θ, and the part of its parameters that a network may come to have."""


@dataclass(frozen=True)
class Widened:
    """A set of fresh units.

    Attributes:
        spec: its text.
        couples: whether they change what other units do.
        predicted: predicted change of the loss, in nats.
        true: true change of the loss, in sample.
    """

    spec: str
    couples: bool
    predicted: float
    true: float


def run(only: str = "", trials: int = 1, steps: int | None = None) -> Mapping[str, object]:
    """Return the figures.

    Args:
        only: networks, `text` and `patches`, with commas between; both if empty.
        trials: number of trainings of each.
        steps: steps of each training; as many as in `fidelity` if not given.
    """
    torch.set_num_threads(1)
    figures: dict[str, object] = {}
    for name in only.split(",") if only else SUBJECTS:
        every: list[Sequence[Widened]] = []
        for seed in range(trials):
            given = subject(name, seed=seed, data=None)
            given = given if steps is None else replace(given, steps=steps)
            for stage, graph, _ in stages(given, seed):
                every.append(list(widened(given, graph, seed)))
                print(f"{SUBJECTS[name]} {seed} {stage}: {_spearman(every[-1]):.3f}", file=sys.stderr, flush=True)
        figures[SUBJECTS[name]] = {
            "spearman_in_sample": sum(map(_spearman, every)) / len(every),
            "worst": min(map(_spearman, every)),
            "of_those_that_couple": sum(_spearman([w for w in one if w.couples]) for one in every) / len(every),
            "of_the_others": sum(_spearman([w for w in one if not w.couples]) for one in every) / len(every),
            "slope": _slope([w for one in every for w in one]),
            "candidates": sum(map(len, every)),
        }
    return figures


def widened(given: Subject, graph: Graph, seed: int) -> Iterator[Widened]:
    """Yield what is predicted and what is true of the sets of fresh units of a network."""
    change, widths = truth(graph, given), infer_widths(graph)
    learn = list(Batches(given.train, given.batch, seed))[:LEARN]
    scored = list(Batches(given.held[0], given.batch))
    budget = Budget(parameters=round(ROOM * cost(graph).parameters))
    options = ScoreOptions(steps=LEARN, refine=10**6, refine_most=10**6, budget=budget, seed=seed)
    scores = score(make_objective(graph, LOSS), scored, morphisms=(Widen(),), learn=learn, options=options)
    for found in scores:
        assert found.predicted is not None and found.refined
        couples = not adds_up(widths, widths[found.candidate.family.site.label])
        yield Widened(found.spec, couples, found.predicted, change(scores.apply([found]))[0])


def _spearman(found: Sequence[Widened]) -> float:
    return float(spearmanr([w.predicted for w in found], [w.true for w in found]).statistic)


def _slope(found: Sequence[Widened]) -> float:
    """Return the slope, through the origin, of true over predicted changes."""
    return sum(w.predicted * w.true for w in found) / sum(w.predicted**2 for w in found)
