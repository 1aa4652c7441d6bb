"""Rules for pruning: the magnitude of weights, and gradient times activation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from archir.axes.infer import infer_widths
from archir.rewrite.equations import Miss
from archir.rewrite.region import region_of
from archir.score.families import Family
from archir.score.objective import Curvature
from archir.score.program import number_of_examples
from archir.score.screen import Reductions, backward, no_batches, tapped_program
from archir.score.strategies.ranking import Ranking
from archir.score.strategies.task import Opinion, Task, collect, only
from archir.score.strategies.unit_vectors import unit_vectors


@dataclass(frozen=True)
class Magnitude:
    """Remove the units with the smallest incoming weights: `mean w²`, over its l2 norm over the width.

    Source: Molchanov et al. 2017, section 2.2 (minimum weight), and their normalisation of each layer.
    """

    name: str = "magnitude"
    summary: str = "prune: the smallest weights first"

    def __call__(self, task: Task) -> Ranking:
        """Rank the candidates of a task."""
        return collect(self.name, task, [only("prune", f) or _magnitude(task, f) for f in task.families])


@dataclass(frozen=True)
class Taylor:
    """Remove the units whose activations and gradients have the smallest products.

    `mean_n |Σ g·h|` over the positions of an example, over its l2 norm over the width.

    Source: Molchanov et al. 2017, equations 7 and 8; with several consumers of a width the products are summed.
    """

    name: str = "taylor"
    summary: str = "prune: the smallest product of gradient and activation first"

    def __call__(self, task: Task) -> Ranking:
        """Rank the candidates of a task."""
        ranked = [i for i, f in enumerate(task.families) if only("prune", f) is None]
        perturbations = [task.perturbations[i] for i in ranked]
        program, reductions = tapped_program(task.chunked.program, perturbations), Reductions()
        totals = [torch.zeros(p.members, dtype=torch.float64) for p in perturbations]
        examples, generator = 0, torch.Generator()
        for inputs, targets in task.batches:
            count = number_of_examples(targets)
            evaluation = program(program.bind(inputs))
            gradient, _ = backward(task.chunked, evaluation, targets, Curvature.NONE, generator)
            with torch.no_grad():
                for i, p in enumerate(perturbations):
                    products = reductions.total(i, p, gradient, p.delta(evaluation.values, {}), count)
                    totals[i] += products.abs().sum(0).to("cpu", torch.float64)
            examples += count
        if not examples:
            raise no_batches()
        opinions: list[Opinion | Miss] = [only("prune", f) or Opinion(torch.zeros(0)) for f in task.families]
        for i, total in zip(ranked, totals, strict=True):
            opinions[i] = Opinion(_normalised(total / examples))
        return collect(self.name, task, opinions)


def _magnitude(task: Task, family: Family) -> Opinion | Miss:
    widths = infer_widths(task.graph)
    width = widths[family.site.label]
    region = region_of(widths, width)
    if isinstance(region, Miss):
        return region
    if not region.weights:
        return Miss("no trainable weight makes its units")
    packed = unit_vectors(widths, width, region.weights).pack(task.graph.tensors)
    return Opinion(_normalised(packed.double().square().mean(1).cpu()))


def _normalised(values: torch.Tensor) -> torch.Tensor:
    """Return values over their l2 norm; as they are where all are nought."""
    norm = values.norm()
    return values / norm if norm > 0 else values
