"""The rules of the scorer itself: each candidate given those already chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from archir.score.refine import Refinement
from archir.score.score import score
from archir.score.strategies.ranking import Ranked, Ranking
from archir.score.strategies.task import Task


@dataclass(frozen=True)
class _Numbered:
    """A model of sets whose candidates have other numbers in a refinement.

    Attributes:
        alone: predicts for a set, by numbers in the refinement.
        added: predicts for a set with each candidate added, by the same.
        numbers: the number of each candidate in the refinement.
    """

    alone: Callable[[Sequence[int]], float]
    added: Callable[[Sequence[int]], torch.Tensor]
    numbers: torch.Tensor

    def predict(self, chosen: Sequence[int]) -> float:
        return self.alone(self.numbers[list(chosen)].tolist()) if chosen else 0.0

    def after(self, chosen: Sequence[int]) -> torch.Tensor:
        return self.added(self.numbers[list(chosen)].tolist())[self.numbers]


@dataclass(frozen=True)
class JointGaussNewton:
    """Predict for a set `Σ a + ½ Σ G` over all pairs of its candidates.

    Only refined candidates are ranked.

    Source: ours.
    """

    name: str = "joint"
    summary: str = "Gauss-Newton, each candidate given those chosen before"

    def __call__(self, task: Task) -> Ranking:
        """Rank the candidates of a task."""
        return _ranked(self.name, task, lambda r: (r.joint, r.after_joint))


@dataclass(frozen=True)
class Linearised:
    """Predict for a set the change of the linearised network's exact loss.

    Only refined candidates are ranked.

    Source: ours.
    """

    name: str = "linearised"
    summary: str = "the linearised network's loss, each candidate given those chosen before"

    def __call__(self, task: Task) -> Ranking:
        """Rank the candidates of a task."""
        return _ranked(self.name, task, lambda r: (r.linearised, r.after_linearised))


_Predictors = tuple[Callable[[Sequence[int]], float], Callable[[Sequence[int]], torch.Tensor]]


def _ranked(rule: str, task: Task, predictors: Callable[[Refinement], _Predictors]) -> Ranking:
    recipe = task.recipe
    scores = score(
        task.graph,
        task.batches,
        morphisms=task.morphisms,
        loss=task.objective.loss,
        learn=task.learn,
        steps=recipe.steps,
        rate=recipe.rate,
        radius=recipe.radius,
        refine=task.refine,
        price=task.price,
        curvature=recipe.curvature,
        batch_statistics=task.objective.program.batch_statistics,
        seed=recipe.seed,
    )
    refined = [s for s in scores if s.refined]
    table = tuple(Ranked(s.candidate, s.predicted, s.predicted, scores.theta(s.spec)) for s in refined)
    model = None
    if scores.refinement is not None:
        numbers = torch.tensor([scores.numbers[s.spec] for s in refined], dtype=torch.long)
        model = _Numbered(*predictors(scores.refinement), numbers)
    families = {s.spec: scores.family(s.spec) for s in refined}
    return Ranking(rule, scores.graph, scores.objective, len(scores), table, families, model, scores.misses)
