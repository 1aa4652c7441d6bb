"""What a strategy is given: the candidates of a graph, and the batches to score them on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from archir.cost import cost
from archir.ir.graph import Graph
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.perturbation import Perturbation
from archir.rewrite.theta import Theta
from archir.scoring.batches import AnyBatch, BoundBatch, bind_batches
from archir.scoring.families import Family, find_families
from archir.scoring.learn import Learned, learn
from archir.scoring.objective import Objective
from archir.scoring.options import ScoreOptions
from archir.scoring.stream import streamed


@dataclass(frozen=True)
class ScoringContext:
    """The candidates of a graph that are to be scored; made by `make_context`.

    Attributes:
        objective: the loss on top of the graph.
        families: the families of candidates.
        misses: the sites that cannot be scored, with the reasons.
        batches: what candidates are scored on.
        learn: what θ is found on.
        options: how they are scored.
    """

    objective: Objective = field(repr=False)
    families: tuple[Family, ...]
    misses: tuple[tuple[str, Miss], ...]
    batches: Sequence[BoundBatch] = field(repr=False)
    learn: Sequence[BoundBatch] = field(repr=False)
    options: ScoreOptions

    @property
    def graph(self) -> Graph:
        """The graph they are measured in: that of the objective's program."""
        return self.objective.program.graph

    @property
    def perturbations(self) -> tuple[Perturbation, ...]:
        """What each family does to the activations."""
        return tuple(f.perturbation for f in self.families)

    @cached_property
    def in_sizes(self) -> ScoringContext:
        """The same with what comes in any size in sizes that double, as long as each alone is within the budget."""
        budget, now = self.options.budget, cost(self.graph)
        if budget is None:
            return self
        larger: list[Family] = []
        for family in self.families:
            more = family.doubled
            while more is not None and budget.allows(now + more.cost):
                larger.append(more)
                more = more.doubled
        return replace(self, families=(*self.families, *larger)) if larger else self

    @cached_property
    def streamed(self) -> Objective:
        """The objective that all families are scored with: it makes wide outputs in chunks where it can."""
        return streamed(self.objective, self.perturbations, [*self.learn, *self.batches])

    @cached_property
    def learned(self) -> Learned:
        """θ of each family as it is learned on the Gauss-Newton estimate."""
        return learn(self.streamed, self.perturbations, self.learn, self.options)

    @property
    def thetas(self) -> tuple[Theta, ...]:
        """The same alone; empty where there is nothing to learn."""
        return self.learned.thetas


def make_context(
    objective: Objective,
    batches: Iterable[AnyBatch],
    *,
    morphisms: Sequence[Morphism],
    learn: Iterable[AnyBatch] | None = None,
    options: ScoreOptions,
) -> ScoringContext:
    """Return the candidates of a graph, and the batches bound to it.

    Args:
        objective: the loss on top of the graph.
        batches: what candidates are scored on.
        morphisms: the kinds of rewrite.
        learn: what θ is found on, no more batches than there are steps; those scored on if not given.
        options: how they are scored.

    Raises:
        ScoreError: there are no batches, or one does not fit the graph.
    """
    program = objective.program
    scored = bind_batches(program, batches)
    learned_on = scored if learn is None else bind_batches(program, learn, most=max(options.steps, 1))
    families, misses = find_families(objective.graph, morphisms, measured=program.graph)
    return ScoringContext(objective, tuple(families), tuple(misses), scored, learned_on, options)


def only(kind: str, family: Family) -> Miss | None:
    """Return why a strategy for one kind of rewrite does not score a family, or None if it does."""
    return None if family.morphism.name == kind else Miss(f"the strategy scores {kind} only")
