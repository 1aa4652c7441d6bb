"""Sets of candidates of one graph: applied together, their cost and their effect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from archir.cost import Cost
from archir.ir.graph import Graph
from archir.rewrite.morphism import Morphism
from archir.rewrite.perturbation import Perturbation
from archir.rewrite.pipeline import apply_together
from archir.rewrite.set_cost import cost_of_set
from archir.rewrite.theta import Theta
from archir.scoring.batches import AnyBatch, BoundBatch, bind_batches
from archir.scoring.chunks import Group, Place
from archir.scoring.families import Candidate, Family
from archir.scoring.learn import learn
from archir.scoring.objective import Objective
from archir.scoring.options import ScoreOptions
from archir.scoring.refine import Refinement, refine
from archir.scoring.stream import streamed

SMALLEST_SCALE, LARGEST_SCALE = 0.1, 2.0
"""What θ is scaled by at least and at most before it is learned for a set; zero is a saddle point, which nothing
leaves."""

SCALINGS, ALIKE = 3, 1.25
"""The number of factors that are tried at most, each from where the last one was, and the ratio up to which two count
as one; the best is taken."""

SCALED_ON = 4
"""The number of batches that scale is found on."""


@dataclass(frozen=True)
class Member:
    """A candidate as it goes into sets.

    Attributes:
        candidate: the candidate.
        theta: θ of its family; None to leave the new units as they are born.
    """

    candidate: Candidate
    theta: Theta | None = field(repr=False)


@dataclass(frozen=True)
class CandidateSet:
    """Candidates of one graph that are applied together.

    Attributes:
        objective: the loss on top of the graph.
        members: the candidates, each with its θ.
        options: how they were scored.
    """

    objective: Objective = field(repr=False)
    members: tuple[Member, ...]
    options: ScoreOptions = field(repr=False)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def graph(self) -> Graph:
        """The graph they were found in."""
        return self.objective.graph

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
        return cost_of_set(self.graph, [m.candidate.morphism for m in self.members])

    def refine(self, batches: Iterable[AnyBatch]) -> Refinement:
        """Return the joint model of the members on any batches, in their order.

        Raises:
            ScoreError: there are no batches, or the loss does not fit one.
        """
        return self._refined(self._groups, bind_batches(self.objective.program, batches))

    def linearised(self, batches: Iterable[AnyBatch]) -> float:
        """Return the change of the linearised network's exact loss, on any batches, in nats.

        Raises:
            ScoreError: there are no batches, or the loss does not fit one.
        """
        if not self.members:
            return 0.0
        return self._refined([self._places], bind_batches(self.objective.program, batches)).linearised([0])

    def first(self, count: int) -> CandidateSet:
        """Return the set of its first members, θ as it is."""
        return replace(self, members=self.members[:count])

    def scaled(self, factor: float) -> CandidateSet:
        """Return the set with θ of every member times a factor; those that have none stay as they are."""
        return self._with([{n: t * factor for n, t in theta.items()} for theta in self._thetas])

    def learned(self, batches: Iterable[AnyBatch], options: ScoreOptions | None = None) -> CandidateSet:
        """Return the set with θ learned for all members together, from what each has learned alone.

        What was learned alone overshoots where several members go the same way. So θ is first scaled to about where the
        joint model of the set is lowest: Δ is best scaled by `α = −(Σ_l a + Σ_lf G) / Σ_ll G`, where l runs over the
        members that have θ and f over the others, which stand still. Δ grows with the square of θ where the function
        is kept to first order, so that θ is scaled by √α, and this again from there; the best of `SCALINGS` factors is
        taken.

        Args:
            batches: pairs of inputs and targets; the scale is found on the first of them. Where processes share the
                batches out, each gives its own, as many as the others.
            options: how to learn; as the members did alone if not given.

        Raises:
            ScoreError: there are no batches, or the loss does not fit one.

        Source: ours.
        """
        if not any(m.theta for m in self.members):
            return self
        options = self.options if options is None else options
        bound = bind_batches(self.objective.program, batches, most=max(options.steps, SCALED_ON))
        scale = self._scale(bound[:SCALED_ON])
        found = learn(
            self._streamed(bound),
            self._perturbations,
            bound,
            options,
            start=self._thetas,
            scale=scale,
            together=self._places,
        )
        return self._with(found.thetas)

    def _scale(self, batches: Sequence[BoundBatch]) -> float:
        """Return about the factor of all θ at which the joint model of the set is lowest on some batches.

        What the members that stand still do alone is the same for all factors, and left out.
        """
        learns, still = ([p for p in self._places if bool(self._thetas[p[0]]) is has] for has in (True, False))
        scale, values = 1.0, dict[float, float]()
        while len(values) < SCALINGS and all(max(scale / one, one / scale) > ALIKE for one in values):
            joint = self.scaled(scale)._refined([learns, still] if still else [learns], batches)
            pull, curvature = float(joint.first_order[0] + joint.gram[0, 1:].sum()), float(joint.gram[0, 0])
            values[scale] = pull + curvature / 2
            best = scale * max(-pull / max(curvature, 1e-30), 0.0) ** 0.5
            scale = min(max(best, SMALLEST_SCALE), LARGEST_SCALE)
        return min(values, key=lambda found: values[found])

    def _with(self, thetas: Sequence[Theta]) -> CandidateSet:
        """Return the set with another θ of each family."""
        found = dict(zip(self._families, thetas, strict=True))
        return replace(self, members=tuple(replace(m, theta=found[m.candidate.family] or None) for m in self.members))

    def _refined(self, groups: Sequence[Group], batches: Sequence[BoundBatch]) -> Refinement:
        return refine(self._streamed(batches), self._perturbations, self._thetas, groups, batches)

    def _streamed(self, batches: Sequence[BoundBatch]) -> Objective:
        return streamed(self.objective, self._perturbations, batches)

    @cached_property
    def _families(self) -> list[Family]:
        return list(dict.fromkeys(m.candidate.family for m in self.members))

    @cached_property
    def _perturbations(self) -> list[Perturbation]:
        return [f.perturbation for f in self._families]

    @cached_property
    def _thetas(self) -> list[Theta]:
        found = {m.candidate.family: m.theta for m in self.members}
        return [found[f] or {} for f in self._families]

    @cached_property
    def _groups(self) -> list[Group]:
        """The members of the families that each member of the set holds."""
        number = {f: i for i, f in enumerate(self._families)}
        return [[(number[m.candidate.family], i) for i in m.candidate.members] for m in self.members]

    @property
    def _places(self) -> list[Place]:
        return [place for group in self._groups for place in group]
