"""Sets of candidates of one graph: applied together, their cost, their effect, and how one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

import torch

from archir.cost import Cost, cost
from archir.ir.graph import Graph
from archir.rewrite.candidate import Candidate
from archir.rewrite.morphism import Morphism, Theta
from archir.rewrite.perturbation import Perturbation
from archir.rewrite.pipeline import apply_together
from archir.score.families import Family, compatible
from archir.score.learn import Recipe, learn
from archir.score.objective import Objective
from archir.score.refine import Refinement, refine
from archir.score.screen import Batch, moved
from archir.score.select import select
from archir.score.stream import streamed

Price = Callable[[Cost], float]
"""What a difference of cost is worth, in nats."""

Limit = Callable[[Cost], bool]
"""Says whether a graph of some cost may be made."""

DEFAULT_RECIPE = Recipe()
"""How θ is learned for a set where nothing else is said."""

SHORTER = 0.2
"""The rate at which θ is learned for a set, relative to that at which members learn alone."""

SMALLEST_SCALE = 0.1
"""The least that θ is scaled by before it is learned for a set; nought is a saddle point, which nothing leaves."""

SCALED_ON = 4
"""The number of batches that scale is found on."""


@dataclass(frozen=True)
class Member:
    """A candidate as it goes into sets.

    Attributes:
        candidate: the candidate.
        family: its family.
        theta: θ of the family; None to leave the new units as they are born.
    """

    candidate: Candidate
    family: Family
    theta: Theta | None

    @property
    def number(self) -> int:
        """Its number in the family."""
        return self.family.site.members.index(self.candidate.morphism)


@dataclass(frozen=True)
class CandidateSet:
    """Candidates of one graph that are applied together.

    Attributes:
        graph: the graph.
        objective: the loss on top of it.
        members: the candidates, each with its θ.
    """

    graph: Graph = field(repr=False)
    objective: Objective = field(repr=False)
    members: tuple[Member, ...]

    def __len__(self) -> int:
        return len(self.members)

    @property
    def specs(self) -> tuple[str, ...]:
        """The texts of the candidates."""
        return tuple(m.candidate.spec for m in self.members)

    @property
    def rewrites(self) -> list[tuple[Morphism, Theta | None]]:
        """The rewrites, each with its θ, as `apply_together` takes them."""
        return [(m.candidate.morphism, m.theta) for m in self.members]

    def apply(self) -> Graph:
        """Return the graph with the set applied, θ included.

        Raises:
            PassError: its members cannot be applied together.
        """
        return apply_together(self.graph, self.rewrites)

    def cost(self) -> Cost:
        """Return the exact cost of the graph with the set applied.

        Raises:
            PassError: its members cannot be applied together.
        """
        return cost(apply_together(self.graph, [(m.candidate.morphism, None) for m in self.members]))

    def refine(self, batches: Iterable[Batch]) -> Refinement:
        """Return the joint model of the members on any batches, in their order.

        Raises:
            ScoreError: there are no batches, or the loss does not fit one.
        """
        there = [moved(b, self.objective.program.device) for b in batches]
        objective = streamed(self.objective, self._perturbations, there)
        return refine(objective, self._perturbations, self._thetas, self._places, there)

    def linearised(self, batches: Iterable[Batch]) -> float:
        """Return the change of the linearised network's exact loss, on any batches, in nats.

        Raises:
            ScoreError: there are no batches, or the loss does not fit one.
        """
        return self.refine(batches).linearised(range(len(self))) if self.members else 0.0

    def scaled(self, factor: float) -> CandidateSet:
        """Return the set with θ of every member times a factor; those that have none stay as they are."""
        scaled = {id(m.family): {n: t * factor for n, t in (m.theta or {}).items()} or None for m in self.members}
        return replace(self, members=tuple(replace(m, theta=scaled[id(m.family)]) for m in self.members))

    def learned(self, batches: Iterable[Batch], recipe: Recipe = DEFAULT_RECIPE) -> CandidateSet:
        """Return the set with θ learned for all members together, from what each has learned alone.

        What was learned alone overshoots where several members go the same way. So θ is first scaled by
        `α = −(Σ_l a + Σ_lf G) / Σ_ll G`, at which the joint model of the set is lowest were Δ linear in θ, between
        `SMALLEST_SCALE` and 1; l runs over the members that have θ, f over the others, which stand still. Steps are
        then smaller than alone, `SHORTER` of the rate: θ is already good for something.

        Args:
            batches: pairs of inputs and targets; the scale is found on the first of them. Where processes share the
                batches out, each gives its own, as many as the others.
            recipe: how to learn.

        Raises:
            ScoreError: there are no batches, or the loss does not fit one.

        Source: ours.
        """
        if not any(m.theta for m in self.members):
            return self
        there = [moved(b, self.objective.program.device) for b in islice(batches, max(recipe.steps, 1))]
        joint = self.refine(there[:SCALED_ON])
        learns = torch.tensor([bool(m.theta) for m in self.members])
        pull = joint.first_order[learns].sum() + joint.gram[learns][:, ~learns].sum()
        scale = -float(pull) / max(float(joint.gram[learns][:, learns].sum()), 1e-30)
        scale = min(max(scale, SMALLEST_SCALE), 1.0)
        found = learn(
            streamed(self.objective, self._perturbations, there),
            self._perturbations,
            there,
            replace(recipe, rate=recipe.rate * SHORTER),
            start=self.scaled(scale)._thetas,
            together=self._places,
        )
        thetas = {id(f): theta for f, theta in zip(self._families, found.thetas, strict=True)}
        return replace(self, members=tuple(replace(m, theta=thetas[id(m.family)] or None) for m in self.members))

    @cached_property
    def _families(self) -> list[Family]:
        return list({id(m.family): m.family for m in self.members}.values())

    @property
    def _perturbations(self) -> list[Perturbation]:
        return [f.perturbation for f in self._families]

    @property
    def _thetas(self) -> list[Theta]:
        found = {id(m.family): m.theta for m in self.members}
        return [found[id(f)] or {} for f in self._families]

    @property
    def _places(self) -> list[tuple[int, int]]:
        number = {id(f): i for i, f in enumerate(self._families)}
        return [(number[id(m.family)], m.number) for m in self.members]


def choose(
    every: CandidateSet,
    after: Callable[[Sequence[int]], torch.Tensor] | None,
    *,
    k: int | None = None,
    budget: Limit | None = None,
    price: Price | None = None,
) -> list[int]:
    """Choose a set that can be applied together, one member after another.

    Args:
        every: what there is to choose from.
        after: gives, for a set, the predicted change of the loss with each member added, `[members]`: the one with the
            lowest objective is added, while it falls. None takes the members in their order; no price stops that.
        k: most members.
        budget: says whether a graph of some cost may be made; asked about the exact cost of every set on the way.
        price: what a difference of cost is worth, in nats.

    Returns:
        The numbers of the members as they were added: every prefix is a smaller set to fall back on.
    """
    members = every.members

    def fits(chosen: Sequence[int]) -> bool:
        return budget is None or budget(replace(every, members=tuple(members[c] for c in chosen)).cost())

    def go_together(chosen: Sequence[int]) -> bool:
        some = [members[c] for c in chosen]
        return compatible(every.graph, [m.family for m in some], [m.candidate.morphism for m in some])

    if after is None:
        chosen: list[int] = []
        for c in range(len(members)):
            if k is not None and len(chosen) >= k:
                break
            if go_together([*chosen, c]) and fits([*chosen, c]):
                chosen.append(c)
        return chosen
    costs = [m.candidate.cost for m in members]
    path = select(
        after,
        [0.0 if price is None else price(c) for c in costs],
        compatible=go_together,
        fits=fits,
        frees=[budget is not None and c.frees for c in costs],
        k=k,
    )
    return [step.candidate for step in path]
