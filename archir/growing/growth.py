"""One growth step: learn θ, score, select a set within a budget, check its true loss on held-out examples, apply."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from archir.cost import Cost, cost
from archir.growing.examples import Split
from archir.growing.mending import mend
from archir.growing.options import GrowOptions
from archir.growing.ranks import check_same_graph
from archir.growing.step import StepContext
from archir.growing.step_batches import SplitBatches
from archir.ir.graph import Graph, Patch
from archir.ir.precision import in_float32
from archir.rewrite.morphism import Morphism
from archir.rewrite.pipeline import rewrite_together
from archir.scoring.budget import Budget
from archir.scoring.losses import Loss
from archir.scoring.processes import ALONE, Processes
from archir.scoring.scores import Scores, Selection
from archir.scoring.sets import CandidateSet

TOLERANCE = 1e-3
"""The largest rise of the loss, relative to it, that is let pass where the rule predicts nothing: rewrites that keep
the function but for rounding, or for noise that tells new units apart, would else be refused by chance."""

ENOUGH = 0.9
"""The part of its budget that a growth step has to use or else says why it does not."""

SHRUNK = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
"""What θ of a set is multiplied with in turn before members are dropped: all units stay, and training moves them on."""


@dataclass(frozen=True)
class Growth:
    """What a growth step did.

    Attributes:
        before: cost of the graph before.
        graph: the grown graph, or the old one if nothing was committed.
        rewriting: how it was rewritten, None if nothing was committed.
        specs: the committed candidates.
        rule: the rule they were chosen by.
        predicted: change of the linearised network's loss on the examples they were selected on, in nats, or what the
            rule predicts of a contraction; None if it predicts none, or nothing was committed.
        expected: change of the linearised network's loss on the held-out examples they were checked on, where it owes
            nothing to the selection; None where `predicted` is, and in contractions.
        realised: true change of the loss on these.
        scale: what θ of the set was multiplied with after it was learned for all of it together, see `SHRUNK`.
        chosen: number of candidates selected, before backing off.
        candidates: number of candidates screened.
        ranked: number of candidates the rule chose from.
        cost: cost of the graph.
        latency: seconds of its forward pass of one example; None where neither a budget nor a price asks for it.
        budget: limits of the step.
        price: what all of the limits that are tight are worth, in nats, as the selection found it.
        mended: what was done after units were removed, see `archir.growing.mending`.
        why: why the set holds no more, or why nothing was committed.
        flops: FLOPs of the networks that were run to learn, score, choose, mend and check.
        seconds: wall-clock time.
    """

    before: Cost
    graph: Graph
    rewriting: Patch | None
    specs: tuple[str, ...]
    rule: str
    predicted: float | None
    expected: float | None
    realised: float
    scale: float
    chosen: int
    candidates: int
    ranked: int
    cost: Cost
    latency: float | None
    budget: Budget
    price: float
    mended: tuple[str, ...]
    why: str
    flops: int
    seconds: float

    @property
    def contracts(self) -> bool:
        """Whether the network had to come down to the budget."""
        return not self.budget.allows(self.before)

    @property
    def note(self) -> str:
        """What a user would want to be told of where it ended, and why; empty if it ended where it should."""
        share = self.budget.share(self.cost)
        if self.contracts:
            return f"still at {share:.0%} of the budget: {self.why}" if share > 1 else ""
        if self.rewriting is None:
            return f"nothing was committed: {self.why}"
        if self.cost.parameters < self.before.parameters and self.cost.flops < self.before.flops:
            return f"it removed more than it added: {self.why}"
        return f"{share:.0%} of the budget is used: {self.why}" if share < ENOUGH else ""


def grow_once(
    graph: Graph,
    *,
    train: Split,
    selection: Split,
    check: Split,
    loss: Loss,
    budget: Budget,
    options: GrowOptions,
    morphisms: Sequence[Morphism],
    seed: int,
    processes: Processes = ALONE,
) -> Growth:
    """Take a growth step on examples of splits; see `take_step`.

    Args:
        graph: the network, batch statistics recalibrated.
        train: examples that θ is learned on.
        selection: held-out examples the candidates are scored on.
        check: other held-out examples the chosen set is checked on.
        loss: the loss.
        budget: hard limits on the cost of the grown network.
        options: how it is grown.
        morphisms: the kinds of candidates.
        seed: seed of everything random in this step.
        processes: those that take the step together: each scores, learns and checks on its part of every batch, and all
            come to the same.

    Raises:
        ScoreError: the loss is not finite, or the network cannot be scored.
        ProcessError: another process has failed or ended, or has come to something else.
    """
    batches = SplitBatches(train, selection, check, options.batch_size)
    growth, _ = take_step(StepContext(graph, batches, loss, budget, options, morphisms, seed, processes))
    return growth


@in_float32()
def take_step(step: StepContext) -> tuple[Growth, Scores]:
    """Rewrite a network by the best set of candidates under a budget, above or below what it costs now.

    Within the budget it grows, units for units where there is no more room. θ is learned on training batches and the
    set is selected on other examples. Its θ is then learned again, for all of it together, and its true effect is
    measured on a third set of examples. While the loss there rises, is predicted to rise, or falls by less than
    `options.agreement` of what is predicted there, its θ is made smaller (`SHRUNK`), as long as that lowers the loss
    further. Where none of these lowers it the set is shortened along the path it was selected on, with θ as the whole
    of it has learned. One that raises it is never committed. A rule that predicts nothing promises nothing, keeps its
    own θ, and need not pay prices: its sets may only not raise the loss by more than `TOLERANCE`.

    Above the budget it comes down to it with the least predicted loss, and is mended (`archir.growing.mending`); that
    is committed whatever the loss does.

    Latency is measured where a budget or a price asks for it: what candidates add to it is taken to be proportional to
    their FLOPs, but a set is committed only if what is measured then is within the budget and worth its price.

    Args:
        step: what it is taken on.

    Returns:
        What it does, and the scores of the candidates.

    Raises:
        ScoreError: the loss is not finite, or the network cannot be scored.
        ProcessError: another process has failed or ended, or has come to something else.
    """
    started = time.monotonic()
    scores = step.score()
    chosen = step.select(scores)
    nothing = Growth(
        before=step.cost,
        graph=step.graph,
        rewriting=None,
        specs=(),
        rule=scores.strategy,
        predicted=None,
        expected=None,
        realised=0.0,
        scale=1.0,
        chosen=len(chosen.path),
        candidates=scores.candidates,
        ranked=len(scores.choice),
        cost=step.cost,
        latency=step.latency if step.timed else None,
        budget=step.budget,
        price=chosen.price,
        mended=(),
        why=chosen.reason,
        flops=0,
        seconds=0.0,
    )
    take = _shrink if step.contracts else _grow
    found = take(step, scores, chosen, nothing)
    check_same_graph(step.processes, found.graph, found.specs)
    return replace(found, flops=step.every_flop, seconds=time.monotonic() - started), scores


def _grow(step: StepContext, scores: Scores, chosen: Selection, nothing: Growth) -> Growth:
    """Return what the longest set does that lowers the loss, or nothing."""
    for together in _sets(step, scores, chosen):
        found = _kept(step, together, nothing) if scores.model is None else _scaled(step, together, nothing)
        if found is not None:
            return found
    return replace(nothing, why="no set lowers the loss on the examples it is checked on") if chosen.path else nothing


def _kept(step: StepContext, together: CandidateSet, nothing: Growth) -> Growth | None:
    """Return what a set of which nothing is predicted does, None if it raises the loss or takes too long."""
    found = _applied(step, together, nothing)
    allowed = found.realised <= TOLERANCE * abs(step.measure(step.graph))
    return found if allowed and step.budget.allows_latency(found.latency or 0.0) else None


def _scaled(step: StepContext, together: CandidateSet, nothing: Growth) -> Growth | None:
    """Return what a set does at the first scale at which it keeps its promise, or else at which it does most.

    None if it pays at none. Where it does less than at the last scale, still smaller ones are not tried.
    """
    best: Growth | None = None
    for scale in (1.0, *(SHRUNK if any(m.theta for m in together.members) else ())):
        smaller = together.scaled(scale)
        found = replace(_applied(step, smaller, nothing), scale=scale)
        if best is not None and found.realised >= best.realised:
            break
        if not _pays(step, found, found.realised):  # it costs less to know than what is predicted
            continue
        expected = step.linearised(smaller, step.checked)
        if _pays(step, found, expected):
            best = replace(found, expected=expected)
            if found.realised <= step.options.agreement * expected:
                break
    return best and replace(best, predicted=step.linearised(together.scaled(best.scale), step.scored))


def _pays(step: StepContext, grown: Growth, change: float) -> bool:
    """Return whether a change of the loss is a fall worth what a network then costs more, which is fast enough."""
    prices = step.options.prices
    price = prices.of(grown.cost - step.cost) + prices.latency * ((grown.latency or 0.0) - step.latency)
    return change < min(0.0, -price) and step.budget.allows_latency(grown.latency or 0.0)


def _shrink(step: StepContext, scores: Scores, chosen: Selection, nothing: Growth) -> Growth:
    """Return what the set does that comes down to the budget, or as near to it as can be."""
    if not chosen.path:
        return nothing
    together = step.learned(scores.together(chosen.path))
    mended = mend(step, together.rewrites, rewrite_together(step.graph, together.rewrites))
    done = _applied(step, together, nothing, mended.patch)
    return replace(done, predicted=chosen.predicted, mended=mended.how)


def _applied(step: StepContext, together: CandidateSet, nothing: Growth, rewriting: Patch | None = None) -> Growth:
    """Return what a set does, its true effect included; what it is rewritten by if that is more than the set."""
    rewriting = rewriting or rewrite_together(step.graph, together.rewrites)
    return replace(
        nothing,
        graph=rewriting.after,
        rewriting=rewriting,
        specs=together.specs,
        realised=step.measure(rewriting.after) - step.measure(step.graph),
        cost=cost(rewriting.after),
        latency=step.latency_of(rewriting.after) if step.timed else None,
    )


def _sets(step: StepContext, scores: Scores, chosen: Selection) -> Iterator[CandidateSet]:
    """Yield the sets to try in turn.

    They are a path, learned together, the same without what only takes spare room, and the halves of that, with θ as
    the whole path has learned it.
    """
    whole, size, spare = scores.together(chosen.path), len(chosen.path), chosen.spare
    if size and scores.model is not None:
        whole = step.learned(whole)
    while size:
        yield whole.first(size)
        size, spare = size - spare if spare else size // 2, 0
