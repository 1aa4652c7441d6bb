"""The strategies that score candidates together: each given those already chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from archir.cost import cost
from archir.scoring.budget import Budget
from archir.scoring.families import Family
from archir.scoring.options import ScoreOptions
from archir.scoring.refine import Refinement, refine
from archir.scoring.screen import Estimate, screen
from archir.scoring.set_models import Joint, Linearised, SetModel
from archir.scoring.strategies.context import ScoringContext
from archir.scoring.strategies.result import JointResult, StrategyResult, screened

ENOUGH = 3
"""How many candidates are refined for each that a budget seems to ask for."""

HALVINGS = 40
"""How often the interval in which a price lies is halved."""

HIGHEST = 1e6
"""The highest price of all of a limit, in nats."""


@dataclass(frozen=True)
class JointGaussNewton:
    """Predict for a set `Σ a + ½ Σ G` over all pairs of its candidates.

    Sets are made of refined candidates alone.

    Source: ours.
    """

    name: str = "joint"
    summary: str = "Gauss-Newton, each candidate given those chosen before"
    running_statistics: bool = False

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph."""
        return _refined(context, Joint)


@dataclass(frozen=True)
class LinearisedNetwork:
    """Predict for a set the change of the linearised network's exact loss.

    Sets are made of refined candidates alone.

    Source: ours.
    """

    name: str = "linearised"
    summary: str = "the linearised network's loss, each candidate given those chosen before"
    running_statistics: bool = False

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph."""
        return _refined(context, Linearised)


def _refined(context: ScoringContext, model: Callable[[Refinement], SetModel]) -> StrategyResult:
    """Screen all candidates in reverse mode, and refine the best in forward mode."""
    options, objective = context.options, context.streamed
    perturbations, thetas = context.perturbations, context.thetas
    estimates = screen(
        objective, perturbations, thetas, context.batches, curvature=options.curvature, seed=options.seed + 1
    )
    best = best_of(context.families, estimates, options)
    joint = JointResult((), None, None)
    if best:
        found = refine(objective, perturbations, thetas, best, context.batches, chunk=options.chunk)
        joint = JointResult(tuple(best), found, model(found))
        for number, (f, m) in enumerate(best):
            estimates[f].first_order[m] = found.first_order[number]
            estimates[f].curvature[m] = found.gram[number, number]
            estimates[f].stderr[m] = found.stderr[number]
    families = [screened(e, theta) for e, theta in zip(estimates, thetas, strict=True)]
    return StrategyResult(tuple(families), joint, context.learned.estimates)


def best_of(families: Sequence[Family], estimates: Sequence[Estimate], options: ScoreOptions) -> list[tuple[int, int]]:
    """Return the candidates to refine, as numbers of family and member, by predicted change of the loss plus price.

    Under a budget what is scarce has a price as well (`scarcity`), and if it takes many candidates to use it up, or to
    come down to it, three times as many are refined.
    """
    places = [(f, m) for f, estimate in enumerate(estimates) for m in range(len(estimate.first_order))]
    if not places:
        return []
    extra = [0.0 if options.price is None else options.price(f.cost) for f in families]
    worth, count = torch.cat([e.predicted + x for e, x in zip(estimates, extra, strict=True)]), options.refine
    if options.budget is not None and count:
        sizes = torch.tensor([len(e.first_order) for e in estimates])
        worth = worth + scarcity(families, worth, sizes, options.budget)
        count = max(count, min(ENOUGH * int((worth < 0).sum()), options.refine_most))
    return [places[i] for i in worth.argsort(stable=True)[:count].tolist()]


def scarcity(families: Sequence[Family], worth: torch.Tensor, sizes: torch.Tensor, budget: Budget) -> torch.Tensor:
    """Return the price of what each candidate takes of what is scarce, negative where it frees some; `[candidates]`.

    The limits are priced in turn, each given the others, so that all candidates with a negative worth together are
    just within it: costs and worths are taken to be additive.

    Args:
        families: the families, of one graph.
        worth: predicted change of the loss plus price; `[candidates]`.
        sizes: number of members of each family.
        budget: the limits.
    """
    found, now = torch.zeros_like(worth), cost(families[0].measured)
    parts = {}
    for name, limit in budget.scarce.items():
        each = torch.tensor([float(getattr(f.cost, name)) for f in families], dtype=torch.float64)
        parts[name] = each.repeat_interleave(sizes) / max(limit, 1.0)
    paid = dict.fromkeys(parts, 0.0)
    for name in (*parts, *parts) if len(parts) > 1 else parts:
        part, room = parts[name], 1 - getattr(now, name) / max(budget.limits[name], 1.0)
        others = worth + found - paid[name] * part

        def over(at: float, others: torch.Tensor = others, part: torch.Tensor = part, room: float = room) -> bool:
            return float(part[others + at * part < 0].sum()) > room

        low, high = 0.0, 1e-9
        while over(high) and high < HIGHEST:
            low, high = high, 2 * high
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if over(middle) else (low, middle)
        found = found + ((high if over(0.0) else 0.0) - paid[name]) * part
        paid[name] = high if over(0.0) else 0.0
    return found
