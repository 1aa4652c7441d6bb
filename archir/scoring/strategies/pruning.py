"""Strategies for pruning: the magnitude of weights, and gradient times activation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from archir.axes.infer import infer_widths
from archir.rewrite.miss import Miss
from archir.rewrite.subgraph import weighted_subgraph_of
from archir.scoring.families import Family
from archir.scoring.reduction import Reductions
from archir.scoring.strategies.context import ScoringContext, only
from archir.scoring.strategies.result import FamilyResult, StrategyResult
from archir.scoring.strategies.unit_vectors import unit_vectors
from archir.scoring.tapped import backward, tapped_program


@dataclass(frozen=True)
class Magnitude:
    """Remove the units with the smallest incoming weights: `mean w²`, over its l2 norm over the width.

    Source: Molchanov et al. 2017, section 2.2 (minimum weight), and their normalisation of each layer.
    """

    name: str = "magnitude"
    summary: str = "prune: the smallest weights first"
    running_statistics: bool = True

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph."""
        return StrategyResult(tuple(only("prune", f) or _magnitude(context, f) for f in context.families))


@dataclass(frozen=True)
class Taylor:
    """Remove the units whose activations and gradients have the smallest products.

    `mean_n |Σ g·h|` over the positions of an example, over its l2 norm over the width.

    Source: Molchanov et al. 2017, equations 7 and 8; with several consumers of a width the products are summed.
    """

    name: str = "taylor"
    summary: str = "prune: the smallest product of gradient and activation first"
    running_statistics: bool = True

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph."""
        perturbations = [f.perturbation for f in context.families if only("prune", f) is None]
        program, reductions = tapped_program(context.streamed.program, perturbations), Reductions()
        totals = [torch.zeros(p.members, dtype=torch.float64) for p in perturbations]
        examples = 0
        for batch in context.batches:
            evaluation = program(batch.inputs)
            gradient, _ = backward(context.streamed, evaluation, batch.targets)
            with torch.no_grad():
                for i, p in enumerate(perturbations):
                    products = reductions.total(i, p, gradient, p.delta(evaluation.values, {}), batch.examples)
                    totals[i] += products.abs().sum(0).to("cpu", torch.float64)
            examples += batch.examples
        processes = context.objective.processes
        (every,), found = processes.total(examples), iter(processes.sum(*totals))
        families = (only("prune", f) or FamilyResult(_normalised(next(found) / every)) for f in context.families)
        return StrategyResult(tuple(families))


def _magnitude(context: ScoringContext, family: Family) -> FamilyResult | Miss:
    widths = infer_widths(context.graph)
    width = widths[family.site.label]
    subgraph = weighted_subgraph_of(widths, width)
    if isinstance(subgraph, Miss):
        return subgraph
    packed = unit_vectors(widths, width, subgraph.weights).pack(context.graph.tensors)
    return FamilyResult(_normalised(packed.double().square().mean(1).cpu()))


def _normalised(values: torch.Tensor) -> torch.Tensor:
    """Return values over their l2 norm; as they are where all are zero."""
    norm = values.norm()
    return values / norm if norm > 0 else values
