"""Rankings: what a rule says of every candidate of a graph, and the sets it would choose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch

from archir.errors import ScoreError, suggest
from archir.ir.graph import Graph
from archir.rewrite.candidate import Candidate
from archir.rewrite.equations import Miss
from archir.rewrite.morphism import Theta
from archir.score.families import Family
from archir.score.objective import Objective
from archir.score.sets import CandidateSet, Limit, Member, Price, choose


@dataclass(frozen=True)
class Ranked:
    """What a rule says of one candidate.

    Attributes:
        candidate: the candidate.
        order: what it is ordered by, lower is better; its unit is the rule's own.
        predicted: predicted change of the loss, in nats for likelihoods; None if the rule predicts none.
        theta: θ of its family; None where the rule leaves the new units as they are born.
    """

    candidate: Candidate
    order: float
    predicted: float | None
    theta: Theta | None = field(repr=False)

    @property
    def spec(self) -> str:
        """Text of the candidate."""
        return self.candidate.spec


class SetModel(Protocol):
    """Predicts the change of the loss for sets of candidates, which are given by their numbers."""

    def predict(self, chosen: Sequence[int]) -> float:
        """Return the predicted change of the loss for a set."""
        ...

    def after(self, chosen: Sequence[int]) -> torch.Tensor:
        """Return the same for a set with each candidate added to it; `[candidates]`."""
        ...


@dataclass(frozen=True)
class Additive:
    """Predicts for a set the sum of what each candidate is predicted to do alone.

    Attributes:
        alone: predicted change of the loss for each candidate; `[candidates]`.
    """

    alone: torch.Tensor

    def predict(self, chosen: Sequence[int]) -> float:
        """Return the sum over a set."""
        return float(self.alone[list(chosen)].sum())

    def after(self, chosen: Sequence[int]) -> torch.Tensor:
        """Return the sum over a set with each candidate added to it; `[candidates]`."""
        return self.alone + self.alone[list(chosen)].sum()


@dataclass(frozen=True)
class Ranking:
    """The candidates of a graph in the order of a rule; made by `rank`.

    Attributes:
        rule: name of the rule.
        graph: the graph the candidates were found in.
        objective: the loss on top of the graph.
        candidates: number of candidates looked at.
        table: the candidates the rule ranks, best first.
        families: the family of each of them, by spec.
        model: what the rule predicts for sets, by their numbers in the table; None if it only gives an order.
        misses: the sites the rule does not rank, with the reasons.
    """

    rule: str
    graph: Graph = field(repr=False)
    objective: Objective = field(repr=False)
    candidates: int
    table: tuple[Ranked, ...]
    families: Mapping[str, Family] = field(repr=False)
    model: SetModel | None = field(repr=False)
    misses: tuple[tuple[str, Miss], ...] = field(repr=False)

    def __iter__(self) -> Iterator[Ranked]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, spec: str) -> Ranked:
        """Return what is said of the candidate of a specification.

        Raises:
            ScoreError: it is not ranked.
        """
        return self.table[self._number(spec)]

    def choose(self, k: int | None = None, *, budget: Limit | None = None, price: Price | None = None) -> list[Ranked]:
        """Choose a set of candidates that can be applied together, one after another.

        A rule that predicts the change of the loss adds the candidate with the lowest objective, given those before
        it, while the objective falls. Any other takes the candidates in its order; no price can stop it.

        Args:
            k: most candidates.
            budget: says whether a graph of some cost may be made; asked about the exact cost of every set on the way.
            price: what a difference of cost is worth, in nats.

        Returns:
            The path of the selection: every prefix of it is a smaller set to fall back on.
        """
        after = None if self.model is None else self.model.after
        path = choose(self.together(self.table), after, k=k, budget=budget, price=price)
        return [self.table[c] for c in path]

    def predict(self, subset: Sequence[Ranked | Candidate]) -> float | None:
        """Return the predicted change of the loss for a set, in nats; None if the rule predicts none.

        Raises:
            ScoreError: a candidate is not ranked.
        """
        numbers = [self._number(c.spec) for c in subset]
        return None if self.model is None else self.model.predict(numbers)

    def together(self, subset: Sequence[Ranked | Candidate]) -> CandidateSet:
        """Return candidates as a set, each with the θ the rule gives it.

        Raises:
            ScoreError: a candidate is not ranked.
        """
        ranked = [self[c.spec] for c in subset]
        members = [Member(r.candidate, self.families[r.spec], r.theta) for r in ranked]
        return CandidateSet(self.graph, self.objective, tuple(members))

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        return {r.spec: i for i, r in enumerate(self.table)}

    def _number(self, spec: str) -> int:
        if spec not in self._numbers:
            raise ScoreError(f"the rule {self.rule} ranks no candidate {spec!r}", mend=suggest(spec, self._numbers))
        return self._numbers[spec]
