"""One growth step: learn θ, score, select a set, check its true loss on held-out examples, apply."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from archir.cost import Cost, cost
from archir.growing.batches import Batches
from archir.growing.examples import Examples
from archir.growing.latency import measure_latency
from archir.growing.options import GrowOptions
from archir.growing.training import evaluate
from archir.ir.graph import Graph, Patch
from archir.rewrite.morphism import Morphism
from archir.rewrite.pipeline import rewrite_together
from archir.scoring.batch_statistics import with_batch_statistics
from archir.scoring.batches import BoundBatch, bind_batches
from archir.scoring.budget import Budget
from archir.scoring.losses import Loss
from archir.scoring.objective import make_objective
from archir.scoring.propose import propose_composites
from archir.scoring.score import score
from archir.scoring.scores import Score, Scores
from archir.scoring.sets import CandidateSet

TOLERANCE = 1e-3
"""The largest rise of the loss, relative to it, that is let pass where the rule predicts nothing: rewrites that keep
the function but for rounding, or for noise that tells new units apart, would else be refused by chance."""

SHRUNK = (0.5, 0.25)
"""What θ of a set is multiplied with in turn before members are dropped: all units stay, and training moves them on."""


@dataclass(frozen=True)
class Growth:
    """What a growth step did.

    Attributes:
        graph: the grown graph, or the old one if nothing was committed.
        rewriting: how it was rewritten, None if nothing was committed.
        specs: the committed candidates.
        rule: the rule they were chosen by.
        predicted: change of the linearised network's loss on the examples they were selected on, in nats; None if the
            rule predicts none, or nothing was committed.
        expected: change of the linearised network's loss on the held-out examples they were checked on, where it owes
            nothing to the selection; None where `predicted` is.
        realised: true change of the loss on these.
        scale: what θ of the set was multiplied with after it was learned for all of it together, see `SHRUNK`.
        chosen: number of candidates selected, before backing off.
        candidates: number of candidates screened.
        ranked: number of candidates the rule chose from.
        cost: cost of the graph.
        latency: seconds of its forward pass of one example; None where neither a budget nor a price asks for it.
        seconds: wall-clock time.
    """

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
    seconds: float


def grow_once(
    graph: Graph,
    *,
    train: Examples,
    selection: Examples,
    check: Examples,
    loss: Loss,
    budget: Budget,
    options: GrowOptions,
    morphisms: Sequence[Morphism],
    seed: int,
) -> Growth:
    """Grow a network by the best set of candidates under a budget.

    θ is learned on training batches and the set is selected on other examples. Its θ is then learned again, for all of
    it together, and its true effect is measured on a third set of examples. While the loss there rises, is predicted to
    rise, or falls by less than `options.agreement` of what is predicted there, its θ is made smaller (`SHRUNK`), and
    then the set is shortened along the path it was selected on. Where no set keeps its promise the first of these that
    lowers the loss is taken; one that raises it is never committed. A rule that predicts nothing promises nothing,
    keeps its own θ, and need not pay prices: its sets may only not raise the loss by more than `TOLERANCE`.

    Latency is measured where a budget or a price asks for it: what candidates add to it is taken to be proportional to
    their FLOPs, but a set is committed only if what is measured then is within the budget and worth its price.

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

    Raises:
        ScoreError: the loss is not finite, or the network cannot be scored.
    """
    started, size = time.monotonic(), options.batch_size
    objective = make_objective(graph, loss, batch_statistics=options.batch_statistics)
    held_out = Batches(check, size)
    scored, checked = (bind_batches(objective.program, b) for b in (Batches(selection, size), held_out))
    learn = bind_batches(objective.program, Batches(train, size, seed), most=options.learn_steps)
    timed = "latency" in budget.limits | options.prices.given

    def latency_of(of: Graph) -> float:
        return measure_latency(of.module(), check) if timed else 0.0

    old, old_latency = cost(graph), latency_of(graph)
    prices = options.prices.by_flops(old_latency / max(old.flops, 1))

    def score_all(morphisms: Sequence[Morphism]) -> Scores:
        scoring = options.scoring(prices.of, budget, seed)
        return score(objective, scored, morphisms=morphisms, learn=learn, strategy=options.rule, options=scoring)

    def measure(graph: Graph) -> float:
        judged = with_batch_statistics(graph) if options.batch_statistics else graph
        return evaluate(judged.module(), held_out, loss).loss

    scores = score_all(morphisms)
    if options.composites and (proposed := propose_composites(scores, options.composites)):
        scores = score_all((*morphisms, *proposed))
    path = scores.choose(budget=budget, price=prices.of)
    chosen, before = len(path), measure(graph)
    rejected = Growth(
        graph=graph,
        rewriting=None,
        specs=(),
        rule=scores.strategy,
        predicted=None,
        expected=None,
        realised=0.0,
        scale=1.0,
        chosen=chosen,
        candidates=scores.candidates,
        ranked=len(scores.choice),
        cost=old,
        latency=old_latency if timed else None,
        seconds=0.0,
    )
    found = rejected
    again = bind_batches(objective.program, Batches(train, size, seed + 1), most=options.learn_steps)
    for together, scale in _fallbacks(scores, path, again):
        expected = None if scores.model is None else together.linearised(checked)
        if expected is not None and not expected < 0:
            continue
        rewriting = rewrite_together(graph, together.rewrites)
        grown, latency = cost(rewriting.after), latency_of(rewriting.after)
        realised = measure(rewriting.after) - before
        if expected is None:
            allowed, agrees = realised <= TOLERANCE * abs(before), True
        else:
            price = options.prices.of(grown - old) + options.prices.latency * (latency - old_latency)
            allowed, agrees = max(realised, expected) < min(0.0, -price), realised <= options.agreement * expected
        if allowed and budget.allows_latency(latency) and (agrees or found is rejected):
            found = replace(
                rejected,
                graph=rewriting.after,
                rewriting=rewriting,
                specs=together.specs,
                predicted=None if expected is None else together.linearised(scored),
                expected=expected,
                realised=realised,
                scale=scale,
                cost=grown,
                latency=latency if timed else None,
            )
            if agrees:
                break
    return replace(found, seconds=time.monotonic() - started)


def _fallbacks(
    scores: Scores, path: Sequence[Score], batches: Sequence[BoundBatch]
) -> Iterator[tuple[CandidateSet, float]]:
    """Yield the sets to try in turn: a path and its halves, each learned together, its θ shrunk before the next.

    With each comes what its θ was multiplied with.
    """
    while path:
        together = scores.together(path)
        if scores.model is None:
            yield together, 1.0
        else:
            learned = together.learned(batches)
            yield learned, 1.0
            if any(m.theta for m in learned.members):
                yield from ((learned.scaled(factor), factor) for factor in SHRUNK)
        path = path[: len(path) // 2]
