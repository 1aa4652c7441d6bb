"""Rules that do not look at the data to choose: random, uniform, cheapest, Net2Net."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from archir.ir.node import Value
from archir.ir.seeds import derived_seed
from archir.rewrite.equations import Miss
from archir.score.strategies.ranking import Ranking
from archir.score.strategies.task import Opinion, Task, collect, only


@dataclass(frozen=True)
class Random:
    """Take candidates at random.

    θ is learned as by the scorer, so that only the choice is another.

    Source: the usual control.
    """

    name: str = "random"
    summary: str = "at random, θ learned"

    def __call__(self, task: Task) -> Ranking:
        """Rank the candidates of a task."""
        generator = torch.Generator().manual_seed(task.recipe.seed)
        orders = [_uniform(len(f.site.members), generator) for f in task.families]
        return collect(self.name, task, [Opinion(o, None, t) for o, t in zip(orders, task.learned, strict=True)])


@dataclass(frozen=True)
class Uniform:
    """Spread the set over the families, in proportion to their sizes: the network keeps its shape.

    The members of a family of n are ordered by `(i + ε) / n`, `i` a random permutation of them and ε uniform in
    [0, 1). θ is learned as by the scorer.

    Source: the usual practice of scaling all widths by one factor.
    """

    name: str = "uniform"
    summary: str = "spread over widths in proportion to their sizes, θ learned"

    def __call__(self, task: Task) -> Ranking:
        """Rank the candidates of a task."""
        generator = torch.Generator().manual_seed(task.recipe.seed)
        opinions: list[Opinion] = []
        for family, theta in zip(task.families, task.learned, strict=True):
            count = len(family.site.members)
            place = torch.randperm(count, generator=generator)
            opinions.append(Opinion((place + _uniform(count, generator)) / count, None, theta))
        return collect(self.name, task, opinions)


@dataclass(frozen=True)
class Cheapest:
    """Take the candidates that add the fewest parameters, ties at random.

    θ is learned as by the scorer.

    Source: ours; it shows what prices alone do.
    """

    name: str = "cheapest"
    summary: str = "the fewest parameters first, θ learned"

    def __call__(self, task: Task) -> Ranking:
        """Rank the candidates of a task."""
        generator = torch.Generator().manual_seed(task.recipe.seed)
        # Costs are whole numbers, so that a part of one only decides between equal costs.
        orders = [f.cost.parameters + _uniform(len(f.site.members), generator) / 2 for f in task.families]
        return collect(self.name, task, [Opinion(o, None, t) for o, t in zip(orders, task.learned, strict=True)])


@dataclass(frozen=True)
class Net2Net:
    """Split units at random; the children differ by small noise.

    Source: Chen, Goodfellow, Shlens 2016 (Net2WiderNet); our noise is symmetric, ±θ.
    """

    name: str = "net2net"
    summary: str = "split: at random, children that differ by small noise"

    def __call__(self, task: Task) -> Ranking:
        """Rank the candidates of a task."""
        seed = task.recipe.seed
        generator = torch.Generator().manual_seed(seed)
        stored = {Value(i): t for i, t in task.graph.tensors.items()}
        opinions: list[Opinion | Miss] = []
        for i, family in enumerate(task.families):
            order = _uniform(len(family.site.members), generator)
            noise = family.perturbation.initial_theta(stored, derived_seed(seed, i))
            opinions.append(only("split", family) or Opinion(order, None, noise))
        return collect(self.name, task, opinions)


def _uniform(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64)
