"""Sets of candidates of one graph: applied together, their cost, their effect, and how one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from archir.cost import Cost, cost
from archir.ir.graph import Graph
from archir.rewrite.candidate import Candidate
from archir.rewrite.morphism import Theta
from archir.rewrite.perturbation import Perturbation
from archir.rewrite.pipeline import apply_together
from archir.score.family import Family, compatible
from archir.score.head import Head
from archir.score.refine import refine
from archir.score.screen import Batch, moved
from archir.score.select import select
from archir.score.stream import streamed

Price = Callable[[Cost], float]
"""What a difference of cost is worth, in nats."""

Limit = Callable[[Cost], bool]
"""Says whether a graph of some cost may be made."""


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


def apply_set(graph: Graph, members: Sequence[Member]) -> Graph:
    """Return the graph with a set applied together, θ included.

    Raises:
        PassError: its members cannot be applied together.
    """
    return apply_together(graph, [(m.candidate.morphism, m.theta) for m in members])


def cost_of_set(graph: Graph, members: Sequence[Member]) -> Cost:
    """Return the exact cost of the graph with a set applied.

    Raises:
        PassError: its members cannot be applied together.
    """
    return cost(apply_together(graph, [(m.candidate.morphism, None) for m in members]))


def linearised_loss(head: Head, members: Sequence[Member], batches: Iterable[Batch]) -> float:
    """Return the change of the linearised network's exact loss for a set, on any batches, in nats.

    Raises:
        ScoreError: there are no batches, or the loss does not fit one.
    """
    if not members:
        return 0.0
    families: dict[int, int] = {}
    perturbations: list[Perturbation] = []
    thetas: list[Theta] = []
    places: list[tuple[int, int]] = []
    for m in members:
        number = families.setdefault(id(m.family), len(families))
        if number == len(perturbations):
            perturbations.append(m.family.perturbation)
            thetas.append(m.theta or {})
        places.append((number, m.family.site.members.index(m.candidate.morphism)))
    there = [moved(b, head.program.device) for b in batches]
    chunked = streamed(head, perturbations, there)
    return refine(chunked, perturbations, thetas, places, there).linearised(range(len(places)))


def choose(
    graph: Graph,
    members: Sequence[Member],
    after: Callable[[Sequence[int]], torch.Tensor] | None,
    *,
    k: int | None = None,
    budget: Limit | None = None,
    price: Price | None = None,
) -> list[int]:
    """Choose a set that can be applied together, one member after another.

    Args:
        graph: the graph.
        members: what there is to choose from.
        after: gives, for a set, the predicted change of the loss with each member added, `[members]`: the one with the
            lowest objective is added, while it falls. None takes the members in their order; no price stops that.
        k: most members.
        budget: says whether a graph of some cost may be made; asked about the exact cost of every set on the way.
        price: what a difference of cost is worth, in nats.

    Returns:
        The numbers of the members as they were added: every prefix is a smaller set to fall back on.
    """

    def fits(chosen: Sequence[int]) -> bool:
        return budget is None or budget(cost_of_set(graph, [members[c] for c in chosen]))

    def go_together(chosen: Sequence[int]) -> bool:
        some = [members[c] for c in chosen]
        return compatible(graph, [m.family for m in some], [m.candidate.morphism for m in some])

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
