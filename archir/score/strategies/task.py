"""What a rule is given, and what it says of one family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch

from archir.ir.graph import Graph
from archir.rewrite.candidate import Candidate
from archir.rewrite.equations import Miss
from archir.rewrite.morphism import Morphism, Theta
from archir.rewrite.perturbation import Perturbation
from archir.score.families import Family, find_families
from archir.score.learn import Recipe, learn
from archir.score.objective import Objective
from archir.score.screen import Batch
from archir.score.sets import Price
from archir.score.strategies.ranking import Additive, Ranked, Ranking
from archir.score.stream import streamed


@dataclass(frozen=True)
class Task:
    """The candidates of a graph that are to be ranked, and the batches to rank them by.

    Attributes:
        objective: the loss on top of the graph.
        morphisms: the kinds of candidates.
        batches: pairs of inputs and targets that candidates are scored on.
        learn: those that θ is found on.
        recipe: how θ is learned, and the seed of everything random.
        refine: for the joint models, the number of candidates that are refined.
        price: for the joint models, what decides with the loss which these are.
    """

    objective: Objective
    morphisms: tuple[Morphism, ...]
    batches: Sequence[Batch] = field(repr=False)
    learn: Sequence[Batch] = field(repr=False)
    recipe: Recipe = field(default_factory=Recipe)
    refine: int = 64
    price: Price | None = None

    @property
    def graph(self) -> Graph:
        """The graph the candidates were found in."""
        return self.objective.program.graph

    @property
    def families(self) -> tuple[Family, ...]:
        """The families of candidates."""
        return self._found[0]

    @property
    def misses(self) -> tuple[tuple[str, Miss], ...]:
        """The sites that cannot be scored, with the reasons."""
        return self._found[1]

    @property
    def perturbations(self) -> tuple[Perturbation, ...]:
        """What each family does to the activations."""
        return tuple(f.perturbation for f in self.families)

    @cached_property
    def chunked(self) -> Objective:
        """The objective that all families are scored with: it makes wide outputs in chunks where it can."""
        return streamed(self.objective, self.perturbations, [*self.learn, *self.batches])

    @cached_property
    def learned(self) -> tuple[Theta, ...]:
        """θ of each family as the Gauss-Newton scorer learns it; empty where there is nothing to learn."""
        return learn(self.chunked, self.perturbations, self.learn, self.recipe).thetas

    @cached_property
    def _found(self) -> tuple[tuple[Family, ...], tuple[tuple[str, Miss], ...]]:
        families, misses = find_families(self.graph, self.morphisms)
        return tuple(families), tuple(misses)


class Rule(Protocol):
    """A way to rank candidates. An implementation is a frozen dataclass, whose fields are its options."""

    @property
    def name(self) -> str:
        """Its name on the command line and in configurations."""
        ...

    @property
    def summary(self) -> str:
        """One line for people."""
        ...

    def __call__(self, task: Task) -> Ranking:
        """Rank the candidates of a task.

        Raises:
            ScoreError: the loss is not finite or does not fit a batch, or there are no batches.
        """
        ...


@dataclass(frozen=True)
class Opinion:
    """What a rule says of the members of one family.

    Attributes:
        order: what they are ordered by, lower is better, infinite for those the rule would never take; `[members]`.
        predicted: predicted change of the loss of each alone, in nats; None if the rule predicts none.
        theta: θ of the family; None or empty to leave the new units as they are born.
    """

    order: torch.Tensor
    predicted: torch.Tensor | None = None
    theta: Theta | None = None


def collect(rule: str, task: Task, opinions: Sequence[Opinion | Miss]) -> Ranking:
    """Return the ranking that follows from what a rule says of each family.

    Args:
        rule: name of the rule.
        task: what was to be ranked.
        opinions: for each family what is said of it, or why nothing is.
    """
    ranked: list[Ranked] = []
    by_spec: dict[str, Family] = {}
    misses = list(task.misses)
    for family, opinion in zip(task.families, opinions, strict=True):
        if isinstance(opinion, Miss):
            misses.append((f"{family.morphism.name} {family.site.label}", opinion))
            continue
        values = [None] * len(opinion.order) if opinion.predicted is None else opinion.predicted.tolist()
        for member, order, predicted in zip(family.site.members, opinion.order.tolist(), values, strict=True):
            if math.isinf(order):
                continue
            candidate = Candidate(member, family.cost)
            ranked.append(Ranked(candidate, order, predicted, opinion.theta or None))
            by_spec[candidate.spec] = family
    ranked.sort(key=lambda r: r.order)
    alone = [r.predicted for r in ranked if r.predicted is not None]
    model = Additive(torch.tensor(alone, dtype=torch.float64)) if alone and len(alone) == len(ranked) else None
    candidates = sum(len(f.site.members) for f in task.families)
    return Ranking(rule, task.graph, task.objective, candidates, tuple(ranked), by_spec, model, tuple(misses))


def only(kind: str, family: Family) -> Miss | None:
    """Return why a rule for one kind of rewrite does not rank a family, or None if it does."""
    return None if family.morphism.name == kind else Miss(f"the rule ranks {kind} only")
