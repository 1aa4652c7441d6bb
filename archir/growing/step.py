"""What a growth step is taken on: a network, the batches bound to it, and how costs and losses are told."""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from weakref import WeakKeyDictionary

import torch

from archir.cost import Cost, cost
from archir.errors import NotFiniteError
from archir.growing.batches import Drawn
from archir.growing.flop_count import FlopCount
from archir.growing.latency import measure_latency
from archir.growing.options import GrowOptions
from archir.growing.ranks import first_for_all, in_step
from archir.growing.step_batches import StepBatches
from archir.growing.training import evaluate
from archir.ir.graph import Graph
from archir.rewrite.morphism import Morphism
from archir.scoring.batch_statistics import with_batch_statistics
from archir.scoring.batches import BoundBatch, bind_batches
from archir.scoring.budget import Budget, Prices
from archir.scoring.losses import Loss
from archir.scoring.objective import Objective, make_objective
from archir.scoring.processes import ALONE, Processes
from archir.scoring.propose import propose_composites
from archir.scoring.score import score
from archir.scoring.scores import Scores, Selection
from archir.scoring.set_models import Linearised
from archir.scoring.sets import CandidateSet
from archir.scoring.shrink import SHRINKING
from archir.scoring.strategies.registry import DEFAULT


@dataclass(frozen=True)
class StepContext:
    """A network that is about to be rewritten.

    Attributes:
        graph: the network, batch statistics recalibrated.
        batches: what θ is learned on, candidates are scored on, and the chosen set is checked on.
        loss: the loss.
        budget: hard limits on the cost of the network after the step.
        options: how it is grown.
        morphisms: the kinds of candidates.
        seed: seed of everything random in this step.
        processes: those that take the step together.
        flops: what the networks that were run on its way have taken, here.
    """

    graph: Graph
    batches: StepBatches = field(repr=False)
    loss: Loss
    budget: Budget
    options: GrowOptions
    morphisms: Sequence[Morphism]
    seed: int
    processes: Processes = ALONE
    flops: FlopCount = field(default_factory=FlopCount, repr=False)
    # Networks that were tried and given up go, with their weights.
    _measured: MutableMapping[Graph, float] = field(default_factory=WeakKeyDictionary, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the network is, and everything is computed."""
        return self.graph.device

    @cached_property
    def sharing(self) -> Processes:
        """The processes that share examples out: all, but each does all by itself where examples are coupled."""
        return ALONE if self.loss.coupled or self.options.batch_statistics else self.processes

    @property
    def every_flop(self) -> int:
        """What the networks that were run on its way have taken, in all of these processes."""
        return int(self.sharing.total(self.flops.total)[0])

    @cached_property
    def cost(self) -> Cost:
        """Cost of the network as it is."""
        return cost(self.graph)

    @property
    def contracts(self) -> bool:
        """Whether the network has to come down to the budget."""
        return not self.budget.allows(self.cost)

    @property
    def timed(self) -> bool:
        """Whether a budget or a price asks for latency."""
        return "latency" in self.budget.limits | self.options.prices.given

    @cached_property
    def latency(self) -> float:
        """Seconds of the forward pass of the network as it is; 0 where nothing asks for it."""
        return self.latency_of(self.graph)

    @cached_property
    def prices(self) -> Prices:
        """What cost is worth, where latency is taken to be proportional to FLOPs."""
        return self.options.prices.by_flops(self.latency / max(self.cost.flops, 1))

    @cached_property
    def objective(self) -> Objective:
        """The loss on top of the network."""
        found = make_objective(self.graph, self.loss, batch_statistics=self.options.batch_statistics)
        return replace(found, processes=self.sharing)

    @cached_property
    def scored(self) -> Sequence[BoundBatch]:
        """The batches candidates are scored on."""
        return self._bound(self.batches.scored_on(self.device, self.sharing))

    @cached_property
    def checked(self) -> Sequence[BoundBatch]:
        """The batches the set is checked on."""
        return self._bound(self._held_out)

    def learned_on(self, seed: int) -> Drawn:
        """Return the batches that θ is learned on, in the order of a seed."""
        return self.batches.learned_on(seed, self.device, self.sharing)

    def latency_of(self, graph: Graph) -> float:
        """Return the seconds of the forward pass of a network; 0 where nothing asks for it."""
        if not self.timed:
            return 0.0
        return first_for_all(self.processes, lambda: measure_latency(graph.module(), self.batches.timed_on))

    def measure(self, graph: Graph) -> float:
        """Return the true loss of a network on the examples that are checked on; each is run once.

        That of a rewritten one is infinite where it is not finite.

        Raises:
            NotFiniteError: that of the network as it is is not finite.
        """
        if graph not in self._measured:
            judged = with_batch_statistics(graph) if self.options.batch_statistics else graph
            with self.flops.counting():
                try:
                    found = evaluate(judged.module(), self._held_out, self.loss, coupled=self.objective.coupled).loss
                except NotFiniteError:
                    if graph is self.graph:
                        raise
                    found = math.inf
            self._measured[graph] = found
        return self._measured[graph]

    def score(self) -> Scores:
        """Return the scores of all candidates, proposed composites included.

        Raises:
            ScoreError: the loss is not finite, or the network cannot be scored.
        """
        found = self._score(self.morphisms)
        most = self.options.composites
        if most and (proposed := propose_composites(found, most)):
            found = self._score((*self.morphisms, *proposed))
        return found

    def select(self, scores: Scores) -> Selection:
        """Choose the set of candidates with the least predicted loss within the budget.

        A budget that nothing has a price beside is asked for: room that is left is taken as well.
        """
        runs, asked = isinstance(scores.model, Linearised), not self.options.prices.given
        with self.flops.counting() if runs else nullcontext():
            return scores.select(self.budget, price=self.prices.of, fill=asked)

    def learned(self, together: CandidateSet) -> CandidateSet:
        """Return a set with θ learned for all its members together."""
        with self.flops.counting():
            return together.learned(self._bound(self.learned_on(self.seed + 1), self.options.learn_steps))

    def linearised(self, together: CandidateSet, batches: Sequence[BoundBatch]) -> float:
        """Return what a set does to the linearised network's exact loss on some batches, in nats."""
        with self.flops.counting():
            return together.linearised(batches)

    def _score(self, morphisms: Sequence[Morphism]) -> Scores:
        options = self.options.scoring(self.prices.of, self.budget, self.seed, settled=self.contracts)
        with self.flops.counting():
            return score(
                self.objective,
                self.scored,
                morphisms=morphisms,
                learn=self._learn,
                strategy=self.options.rule or (SHRINKING if self.contracts else DEFAULT),
                options=options,
            )

    @cached_property
    def _learn(self) -> Sequence[BoundBatch]:
        return self._bound(self.learned_on(self.seed), self.options.learn_steps)

    @property
    def _held_out(self) -> Drawn:
        return self.batches.checked_on(self.device, self.sharing)

    def _bound(self, batches: Drawn, most: int | None = None) -> Sequence[BoundBatch]:
        """Return batches bound to the program, each a part of one that others have the rest of."""
        found = bind_batches(self.objective.program, in_step(self.sharing, batches.since(0, most)))
        around = [self.sharing.around(size) for size in batches.sizes[: len(found)]]
        return [replace(batch, around=one) for batch, one in zip(found, around, strict=True)]
