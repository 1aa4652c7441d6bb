"""Rules that say of each candidate what it would do to the loss alone: first order, Gauss-Newton, the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from archir.ir.graph import Graph
from archir.rewrite.morphism import Theta
from archir.rewrite.pipeline import apply_together
from archir.score.learn import learn
from archir.score.objective import Curvature
from archir.score.program import Program, number_of_examples
from archir.score.screen import screen
from archir.score.strategies.ranking import Ranking
from archir.score.strategies.task import Opinion, Task, collect


@dataclass(frozen=True)
class FirstOrder:
    """Predict with the first order alone, `ΔL ≈ a = mean_n g·Δ(θ)`, and let θ lower it within the trust region.

    Source: Wu, Liu, Stone, Liu 2020 (Firefly), whose step is also the steepest descent of the first order in a
        bounded neighbourhood; here Δ is exact in θ.
    """

    name: str = "first-order"
    summary: str = "the first order alone, θ learned on it"

    def __call__(self, task: Task) -> Ranking:
        """Rank the candidates of a task."""
        recipe = replace(task.recipe, curvature=Curvature.NONE)
        return _screened(
            self.name, task, learn(task.chunked, task.perturbations, task.learn, recipe).thetas, recipe.curvature
        )


@dataclass(frozen=True)
class AdditiveGaussNewton:
    """Predict for each candidate `a + G/2`, and for a set the sum: what a scorer of single candidates does.

    Source: Lawton, Galstyan, Ver Steeg 2024.
    """

    name: str = "additive"
    summary: str = "Gauss-Newton, each candidate alone"

    def __call__(self, task: Task) -> Ranking:
        """Rank the candidates of a task."""
        return _screened(self.name, task, task.learned, task.recipe.curvature)


@dataclass(frozen=True)
class BruteForce:
    """Apply every candidate, alone, with the θ the scorer learns, and measure the loss.

    Source: the truth about single candidates.
    """

    name: str = "brute-force"
    summary: str = "apply each and measure the loss; slow"

    def __call__(self, task: Task) -> Ranking:
        """Rank the candidates of a task."""
        before = mean_loss(task, task.graph)
        opinions = []
        for family, theta in zip(task.families, task.learned, strict=True):
            graphs = (apply_together(task.graph, [(m, theta or None)]) for m in family.site.members)
            true = torch.tensor([mean_loss(task, g) - before for g in graphs], dtype=torch.float64)
            opinions.append(Opinion(true, true, theta))
        return collect(self.name, task, opinions)


@torch.no_grad()
def mean_loss(task: Task, graph: Graph) -> float:
    """Return the mean loss of a graph over the batches that candidates are scored on.

    Raises:
        ScoreError: the graph is noisy in evaluation mode, or an operator rejects a batch.
    """
    program = Program(graph, batch_statistics=task.objective.program.batch_statistics)
    total, examples = 0.0, 0
    for inputs, targets in task.batches:
        outputs, count = program(program.bind(inputs)).outputs, number_of_examples(targets)
        total += float(task.objective.loss.mean(program.structure(outputs), targets)) * count
        examples += count
    return total / examples


def _screened(rule: str, task: Task, thetas: Sequence[Theta], curvature: Curvature) -> Ranking:
    found = screen(
        task.chunked, task.perturbations, thetas, task.batches, curvature=curvature, seed=task.recipe.seed + 1
    )
    pairs = zip(found, thetas, strict=True)
    return collect(rule, task, [Opinion(e.predicted, e.predicted, theta) for e, theta in pairs])
