"""Strategies that do not look at the data to choose: random, uniform, cheapest, Net2Net."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from archir.ir.node import Value
from archir.ir.seeds import derived_seed
from archir.rewrite.miss import Miss
from archir.scoring.strategies.context import ScoringContext, only
from archir.scoring.strategies.result import FamilyResult, StrategyResult


@dataclass(frozen=True)
class Random:
    """Take candidates at random.

    θ is learned as by the scorer, so that only the choice is another.

    Source: the usual control.
    """

    name: str = "random"
    summary: str = "at random, θ learned"
    running_statistics: bool = True

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph."""
        generator = torch.Generator().manual_seed(context.options.seed)
        orders = [_uniform(len(f.site.members), generator) for f in context.families]
        return StrategyResult(tuple(FamilyResult(o, theta=t) for o, t in zip(orders, context.thetas, strict=True)))


@dataclass(frozen=True)
class Uniform:
    """Spread the set over the families, in proportion to their sizes: the network keeps its shape.

    The members of a family of n are ordered by `(i + ε) / n`, `i` a random permutation of them and ε uniform in
    [0, 1). θ is learned as by the scorer.

    Source: the usual practice of scaling all widths by one factor.
    """

    name: str = "uniform"
    summary: str = "spread over widths in proportion to their sizes, θ learned"
    running_statistics: bool = True

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph."""
        generator = torch.Generator().manual_seed(context.options.seed)
        families: list[FamilyResult] = []
        for family, theta in zip(context.families, context.thetas, strict=True):
            count = len(family.site.members)
            place = torch.randperm(count, generator=generator)
            families.append(FamilyResult((place + _uniform(count, generator)) / count, theta=theta))
        return StrategyResult(tuple(families))


@dataclass(frozen=True)
class Cheapest:
    """Take the candidates that add the fewest parameters, ties at random.

    θ is learned as by the scorer.

    Source: ours; it shows what prices alone do.
    """

    name: str = "cheapest"
    summary: str = "the fewest parameters first, θ learned"
    running_statistics: bool = True

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph."""
        generator = torch.Generator().manual_seed(context.options.seed)
        # Costs are whole numbers, so that a part of one only decides between equal costs.
        orders = [f.cost.parameters + _uniform(len(f.site.members), generator) / 2 for f in context.families]
        return StrategyResult(tuple(FamilyResult(o, theta=t) for o, t in zip(orders, context.thetas, strict=True)))


@dataclass(frozen=True)
class Net2Net:
    """Split units at random; the children differ by small noise.

    Source: Chen, Goodfellow, Shlens 2016 (Net2WiderNet); our noise is symmetric, ±θ.
    """

    name: str = "net2net"
    summary: str = "split: at random, children that differ by small noise"
    running_statistics: bool = True

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph."""
        seed = context.options.seed
        generator = torch.Generator().manual_seed(seed)
        stored = {Value(i): t for i, t in context.graph.tensors.items()}
        families: list[FamilyResult | Miss] = []
        for i, family in enumerate(context.families):
            order = _uniform(len(family.site.members), generator)
            noise = family.perturbation.initial_theta(stored, derived_seed(seed, i))
            families.append(only("split", family) or FamilyResult(order, theta=noise))
        return StrategyResult(tuple(families))


def _uniform(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64)
