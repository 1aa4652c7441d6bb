"""Scores: what every candidate rewrite of a graph, and any set of them, is predicted to do to the loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from archir.cost import Cost, cost
from archir.errors import ScoreError, suggest
from archir.ir.graph import Graph
from archir.rewrite.miss import Miss
from archir.rewrite.theta import Theta
from archir.scoring.batches import AnyBatch
from archir.scoring.budget import Budget, Prices
from archir.scoring.families import Candidate
from archir.scoring.objective import Objective
from archir.scoring.options import Limit, Price, ScoreOptions
from archir.scoring.refine import Refinement
from archir.scoring.selection import Ended, Pool, choose, choose_within
from archir.scoring.set_models import Additive, Joint, Linearised, SetModel
from archir.scoring.sets import CandidateSet, Member
from archir.scoring.spare_room import take_spare_room

MODELS = ("linearised", "joint", "additive")
"""The models a set can be chosen on, whatever the strategy, as far as they are there."""


@dataclass(frozen=True)
class Score:
    """What a strategy says of one candidate, alone; numbers are None where it predicts none.

    Attributes:
        candidate: the candidate.
        order: what it is ordered by, lower is better; its unit is the strategy's own.
        predicted: change of the mean loss, `first_order + curvature / 2`; in nats for likelihoods.
        stderr: its standard error over the examples, over batches where they are coupled; not a number for one alone.
        first_order: `a`, the mean of r·u.
        curvature: `G`, the mean of uᵀHu; a sampled estimate unless the candidate was refined.
        refined: whether it may be part of joint predictions.
        theta: θ of its family; None to leave the new units as they are born.
    """

    candidate: Candidate
    order: float
    predicted: float | None
    stderr: float | None
    first_order: float | None
    curvature: float | None
    refined: bool
    theta: Theta | None = field(repr=False)

    @property
    def spec(self) -> str:
        """Text of the candidate."""
        return self.candidate.spec


Subset = Sequence[Score | Candidate]
"""A set of candidates of one graph."""


@dataclass(frozen=True)
class Selection:
    """A set of candidates that was chosen under a budget, and how it came about.

    Attributes:
        path: its members: every prefix is a set to fall back on. Above the limits those come first that come down to
            them with the least loss for what they free; within them those that gain the most for the price.
        predicted: predicted change of the loss, in nats for likelihoods; None if the strategy predicts none.
        cost: exact cost of the graph with it.
        prices: the prices of what is scarce that were found, in nats a unit; 0 where no limit is tight.
        price: what all of the tight limits are worth, in nats: the sum of prices times limits.
        ended: why it holds no more.
        spare: how many members at the end of the path only take room that would be left.
    """

    path: tuple[Score, ...]
    predicted: float | None
    cost: Cost
    prices: Prices
    price: float
    ended: Ended
    spare: int = 0

    @property
    def reached(self) -> bool:
        """Whether the budget is what ended it: nothing more fits, or it has come down to it."""
        return self.ended is Ended.LIMIT

    @property
    def reason(self) -> str:
        """Why it holds no more, for people."""
        if self.ended is not Ended.UNREACHED:
            return self.ended.sentence
        found = f"{self.cost.parameters:,} parameters, {self.cost.flops:,} FLOPs, {self.cost.peak_bytes:,} peak bytes"
        return f"{self.ended.sentence}; the smallest that was found costs {found}"


@dataclass(frozen=True)
class Scores:
    """The scores of the candidates of a graph, best first; made by `score`.

    Attributes:
        objective: the loss on top of the graph.
        options: how they were scored.
        strategy: name of the strategy.
        candidates: number of candidates looked at.
        table: the scores of those the strategy has something to say of, best first.
        choice: those that sets are chosen from: the refined ones, numbered as in `refinement`, or else all.
        model: what the strategy predicts for sets, by their numbers in `choice`; None if it only gives an order.
        refinement: the joint model of the refined candidates; None if there are none.
        misses: the sites that are not scored, with the reasons.
        learning: predicted change of the loss, summed over all members, at each step of learning θ; in sample.
    """

    objective: Objective = field(repr=False)
    options: ScoreOptions = field(repr=False)
    strategy: str
    candidates: int
    table: tuple[Score, ...]
    choice: tuple[Score, ...] = field(repr=False)
    model: SetModel | None = field(repr=False)
    refinement: Refinement | None = field(repr=False)
    misses: tuple[tuple[str, Miss], ...] = field(repr=False)
    learning: torch.Tensor = field(repr=False)

    def __iter__(self) -> Iterator[Score]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, spec: str) -> Score:
        """Return the score of the candidate of a specification.

        Raises:
            ScoreError: there is none.
        """
        if spec not in self._by_spec:
            what = f"the strategy {self.strategy} scores no candidate {spec!r}"
            raise ScoreError(what, hint=suggest(spec, self._by_spec))
        return self._by_spec[spec]

    @property
    def graph(self) -> Graph:
        """The graph the candidates were found in."""
        return self.objective.graph

    @property
    def refined(self) -> int:
        """Number of candidates that may be part of joint predictions."""
        return 0 if self.refinement is None else len(self.choice)

    def additive(self, subset: Subset) -> float:
        """Return the sum of what each candidate is predicted to do alone: a baseline, seldom right for a set.

        Raises:
            ScoreError: nothing is predicted of them.
        """
        return sum(self._predicted(self._find(c)) for c in subset)

    def joint(self, subset: Subset) -> float:
        """Return `Σ a + ½ Σ G` over a set of refined candidates, in nats.

        Raises:
            ScoreError: a candidate was not refined.
        """
        numbers = self._refined(subset)
        return self.refinement.joint(numbers) if self.refinement and numbers else 0.0

    def linearised(self, subset: Subset) -> float:
        """Return the change of the linearised network's exact loss for a set of refined candidates, in nats.

        Where the outputs were too large to be kept (see `refine.LARGEST_STORED`) it is the joint model's.

        Raises:
            ScoreError: a candidate was not refined.
        """
        numbers = self._refined(subset)
        return self.refinement.linearised(numbers) if self.refinement and numbers else 0.0

    def predict(self, subset: Subset, batches: Iterable[AnyBatch]) -> float:
        """Return the change of the linearised network's exact loss for any set of candidates on other batches, in nats.

        A set looks better on the batches it was chosen on than on others.

        Raises:
            ScoreError: there are no batches, or the loss does not fit one.
        """
        return self.together(subset).linearised(batches)

    def choose(
        self,
        k: int | None = None,
        *,
        budget: Budget | Limit | None = None,
        price: Price | None = None,
        model: str | None = None,
    ) -> list[Score]:
        """Choose the set of candidates that is predicted to lower the loss plus the price the most.

        Where the strategy only gives an order they are taken in that order; no price stops that.

        Args:
            k: most candidates.
            budget: limits, above or below what the graph costs now: see `select`. Or a function that says whether a
                graph of some cost may be made; it is asked about the exact cost of every set on the way.
            price: what a difference of cost is worth, in nats.
            model: `linearised`, `joint`, or the baseline `additive`; that of the strategy if not given.

        Returns:
            The path of the selection: every prefix of it is a smaller set to fall back on.

        Raises:
            ScoreError: there is no such model.
        """
        if isinstance(budget, Budget):
            return list(self.select(budget, k=k, price=price, model=model).path)
        pool = self._pool(model, ())
        return [self.choice[c] for c in choose(pool, k=k, limit=budget, price=price)]

    def select(
        self,
        budget: Budget,
        *,
        k: int | None = None,
        price: Price | None = None,
        model: str | None = None,
        fill: bool = False,
    ) -> Selection:
        """Choose the set with the least predicted loss within a budget, growing and shrinking candidates together.

        Where the graph is within the budget, room is used where it lowers the loss the most, and freed elsewhere where
        that pays. Where it is above it, the set comes down to it with the least loss; candidates that were not refined
        may then be taken as well, for what they are predicted to do alone.

        Args:
            budget: the limits, or parts of what the graph costs now; one on latency is none here.
            k: most candidates.
            price: what a difference of cost is worth, in nats; added to the loss.
            model: `linearised`, `joint`, or the baseline `additive`; that of the strategy if not given.
            fill: whether room that is left is taken by candidates that are predicted to gain nothing, see
                `take_spare_room`.

        Raises:
            ScoreError: there is no such model.
        """
        now = cost(self.graph)
        budget = budget.resolved(now)
        above = not budget.allows(now)
        others = [s for s in self._unknown if s.predicted is not None] if self.refined and above else []
        pool = self._pool(model, others)
        found = choose_within(pool, budget, k=k, price=price)
        found = take_spare_room(pool, budget, found, k=k) if fill and not above else found
        every = (*self.choice, *others)
        return Selection(
            path=tuple(every[c] for c in found.path),
            predicted=found.predicted,
            cost=found.cost,
            prices=found.prices,
            price=found.price,
            ended=found.ended,
            spare=found.spare,
        )

    def together(self, subset: Subset) -> CandidateSet:
        """Return candidates as a set, each with θ as it was learned alone; `learned` learns it for them together.

        Raises:
            ScoreError: a candidate is not one of these.
        """
        members = (Member(s.candidate, s.theta) for s in map(self._find, subset))
        return CandidateSet(self.objective, tuple(members), self.options)

    def apply(self, subset: Subset) -> Graph:
        """Return the graph with a set of candidates applied together, θ included.

        Raises:
            PassError: they cannot be applied together.
            ScoreError: a candidate is not one of these.
        """
        return self.together(subset).apply()

    def cost_of(self, subset: Subset) -> Cost:
        """Return the exact cost of the graph with a set of candidates applied.

        Raises:
            PassError: they cannot be applied together.
            ScoreError: a candidate is not one of these.
        """
        return self.together(subset).cost()

    @cached_property
    def _by_candidate(self) -> Mapping[Candidate, Score]:
        return {s.candidate: s for s in self.table}

    @cached_property
    def _by_spec(self) -> Mapping[str, Score]:
        return {s.spec: s for s in self.table}

    @cached_property
    def _unknown(self) -> list[Score]:
        """The scores of candidates of which nothing is known together with others, not even as part of a set."""
        known = {(s.candidate.family, member) for s in self.choice for member in s.candidate.members}
        return [s for s in self.table if not all((s.candidate.family, m) in known for m in s.candidate.members)]

    @cached_property
    def _numbers(self) -> Mapping[Candidate, int]:
        return {s.candidate: i for i, s in enumerate(self.choice)}

    def _pool(self, model: str | None, others: Sequence[Score]) -> Pool:
        """Return what sets are chosen from: those of `choice`, and others that only free room."""
        return Pool(
            graph=self.graph,
            candidates=[s.candidate for s in (*self.choice, *others)],
            model=self.model if model is None else self._model(model),
            beyond=torch.tensor([self._predicted(s) for s in others], dtype=torch.float64),
            shortlist=self.options.shortlist,
            unrefined=bool(self.refined and self._unknown),
        )

    def _find(self, given: Score | Candidate) -> Score:
        """Return the score of a candidate; one of other scores is found by its text."""
        candidate = given.candidate if isinstance(given, Score) else given
        return self._by_candidate.get(candidate) or self[candidate.spec]

    def _predicted(self, found: Score) -> float:
        if found.predicted is None:
            raise ScoreError(f"the strategy {self.strategy} predicts nothing of {found.spec}")
        return found.predicted

    def _refined(self, subset: Subset) -> list[int]:
        found = [self._find(c) for c in subset]
        if self.refinement is None and found:
            raise self._unrefined(found[0])
        for s in found:
            if s.candidate not in self._numbers:
                raise self._unrefined(s)
        return [self._numbers[s.candidate] for s in found]

    def _unrefined(self, found: Score) -> ScoreError:
        return ScoreError(
            f"{found.spec} was not refined, so nothing is known of it together with others",
            why=f"the best {self.refined} of {len(self)} candidates were",
            hint="score by the strategy linearised with a larger refine=",
        )

    def _model(self, name: str) -> SetModel:
        if name not in MODELS:
            raise ScoreError(f"there is no model {name!r}", hint=suggest(name, MODELS))
        if name == "additive" or not self.choice:
            return Additive(torch.tensor([self._predicted(s) for s in self.choice], dtype=torch.float64))
        if self.refinement is None:
            raise self._unrefined(self.choice[0])
        return Joint(self.refinement) if name == "joint" else Linearised(self.refinement)
