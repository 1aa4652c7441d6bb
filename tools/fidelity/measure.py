"""Scores the candidates of one network and builds them, alone and in sets, to find out what they truly do."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from archir.cost import cost
from archir.growing.batches import Batches
from archir.growing.growth import grow_once
from archir.growing.options import GrowOptions
from archir.growing.training import evaluate
from archir.ir.graph import Graph
from archir.rewrite.compose import Compose
from archir.rewrite.morphism import Morphism
from archir.scoring.batches import Batch
from archir.scoring.budget import Budget
from archir.scoring.combination import Combination
from archir.scoring.losses import LOSSES
from archir.scoring.objective import make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.propose import propose_composites
from archir.scoring.score import score, score_by
from archir.scoring.scores import Score, Scores
from archir.scoring.strategies.context import make_context
from archir.scoring.strategies.registry import STRATEGIES
from passes.catalog import MORPHISMS
from passes.prune import Prune
from passes.split import Split as SplitUnits
from tools.fidelity.records import Committed, Moment, Ruled, Single, Together
from tools.fidelity.subjects import Subject, stages

KINDS: tuple[Morphism, ...] = tuple(kind() for kind in MORPHISMS if issubclass(kind, Morphism) and kind is not Compose)
"""Every morphism, with default options; composites are made of these."""

THREE = ("additive", "joint", "linearised")
LOSS = LOSSES["cross_entropy"]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        morphisms: kinds of candidates.
        composites: pairs of those that score best, to score again as one candidate each.
        steps: steps of learning θ.
        singles: candidates of each morphism, half of them the best, the others drawn.
        refine: candidates that sets are made of.
        sizes: numbers of candidates of random sets and of prefixes of chosen ones.
        draws: random sets of each size.
        learned: those of them whose θ is then learned for the set together, too.
        together: number of candidates each rule is asked for.
        growth: part of its parameters that a network may gain in a growth step.
    """

    morphisms: tuple[Morphism, ...] = KINDS
    composites: int = 0
    steps: int = 40
    singles: int = 10
    refine: int = 64
    sizes: tuple[int, ...] = (4, 8, 16, 32)
    draws: int = 4
    learned: int = 2
    together: int = 16
    growth: float = 0.3


def measure(subject: Subject, seed: int, plan: Plan) -> Iterator[Moment]:
    """Yield what is measured at every stage of a training."""
    for stage, graph, loss in stages(subject, seed):
        yield _moment(subject, graph, loss, stage, seed, plan)


def _moment(subject: Subject, graph: Graph, loss: float, stage: str, seed: int, plan: Plan) -> Moment:
    true = truth(graph, subject)
    learn = list(Batches(subject.train, subject.batch, seed))[: plan.steps]
    scored = list(Batches(subject.held[0], subject.batch))
    kinds, scores = plan.morphisms, _scores(graph, plan.morphisms, scored, learn, seed, plan)
    if plan.composites:
        kinds = *kinds, *propose_composites(scores, plan.composites)
        scores = _scores(graph, kinds, scored, learn, seed, plan)
    draw = random.Random(f"{subject.name} {seed} {stage}")
    return Moment(
        subject.name,
        subject.data,
        seed,
        stage,
        loss,
        len(scores),
        tuple(_singles(scores, kinds, scored, true, draw, plan)),
        tuple(_sets(scores, scored, learn, true, draw, seed, plan)),
        tuple(_rules(graph, scored, learn, true, seed, plan)),
        _committed(subject, graph, true, seed, plan),
    )


def _scores(
    graph: Graph, kinds: Sequence[Morphism], scored: Sequence[Batch], learn: Sequence[Batch], seed: int, plan: Plan
) -> Scores:
    options = ScoreOptions(steps=plan.steps, refine=plan.refine, seed=seed)
    return score(make_objective(graph, LOSS), scored, morphisms=kinds, learn=learn, options=options)


Truth = Callable[[Graph], tuple[float, float]]
"""Gives the true change of the loss from the old graph to a new one: on the examples scored on, and on others."""


def truth(graph: Graph, subject: Subject) -> Truth:
    def losses(of: Graph) -> list[float]:
        module = of.module()
        return [evaluate(module, part, LOSS).loss for part in subject.held[:2]]

    before = losses(graph)

    def change(of: Graph) -> tuple[float, float]:
        one, other = (after - old for after, old in zip(losses(of), before, strict=True))
        return one, other

    return change


def _singles(
    scores: Scores, kinds: Sequence[Morphism], batches: Sequence[Batch], truth: Truth, draw: random.Random, plan: Plan
) -> Iterator[Single]:
    chosen: list[Score] = []
    for name in dict.fromkeys(kind.name for kind in kinds):
        found = [s for s in scores if s.candidate.morphism.name == name]
        best, others = found[: plan.singles // 2], found[plan.singles // 2 :]
        chosen += best + draw.sample(others, min(len(others), plan.singles - len(best)))
    exact = scores.together(chosen).refine(batches)
    predicted = exact.first_order + exact.gram.diagonal() / 2
    for s, value, stderr in zip(chosen, predicted.tolist(), exact.stderr.tolist(), strict=True):
        yield Single(s.candidate.morphism.name, s.spec, value, stderr, *truth(scores.apply([s])))


def _sets(
    scores: Scores,
    scored: Sequence[Batch],
    learn: Sequence[Batch],
    truth: Truth,
    draw: random.Random,
    seed: int,
    plan: Plan,
) -> Iterator[Together]:
    def alone(chosen: str, subset: Sequence[Score]) -> Together:
        predicted = scores.additive(subset), scores.joint(subset), scores.linearised(subset)
        return Together(chosen, "alone", len(subset), *predicted, *truth(scores.apply(subset)))

    def together(chosen: str, subset: Sequence[Score]) -> Together:
        found = scores.together(subset).learned(learn)
        joint, every = found.refine(scored), range(len(found))
        additive = float((joint.first_order + joint.gram.diagonal() / 2).sum())
        predicted = additive, joint.joint(every), joint.linearised(every)
        return Together(chosen, "together", len(found), *predicted, *truth(found.apply()))

    for model in THREE:
        path = scores.choose(model=model)
        for size in [*(k for k in plan.sizes if k < len(path)), len(path)]:
            if size:
                yield alone(model, path[:size])
        if path:
            yield together(model, path)
    pool = scores.choice
    for size in plan.sizes:
        for i in range(plan.draws):
            subset = _draw(scores, draw.sample(pool, len(pool)), size)
            yield alone("random", subset)
            if i < plan.learned:
                yield together("random", subset)


def _draw(scores: Scores, pool: Sequence[Score], size: int) -> list[Score]:
    """Return the first candidates of a pool that can be applied together."""
    subset: list[Score] = []
    combination = Combination(scores.graph)
    for s in pool:
        more = combination.plus(s.candidate)
        if more is not None:
            combination = more
            subset.append(s)
        if len(subset) == size:
            break
    return subset


def _rules(
    graph: Graph, scored: Sequence[Batch], learn: Sequence[Batch], truth: Truth, seed: int, plan: Plan
) -> Iterator[Ruled]:
    """Yield what rules do with splits and prunes of single units; brute force, and the joint model's, take too long."""
    options, kinds = ScoreOptions(steps=plan.steps, refine=plan.refine, seed=seed), (SplitUnits(), Prune())
    context = make_context(make_objective(graph, LOSS), scored, morphisms=kinds, learn=learn, options=options)
    for name, strategy in STRATEGIES.items():
        if name in ("brute-force", "joint"):
            continue
        scores = score_by(strategy, context)
        subset = scores.choose(plan.together)
        yield Ruled(name, len(subset), *(truth(scores.apply(subset)) if subset else (0.0, 0.0)))


def _committed(subject: Subject, graph: Graph, truth: Truth, seed: int, plan: Plan) -> Committed:
    selection, _, check = subject.held
    growth = grow_once(
        graph,
        train=subject.train,
        selection=selection,
        check=check,
        loss=LOSS,
        budget=Budget(parameters=round(cost(graph).parameters * (1 + plan.growth))),
        options=GrowOptions(
            batch_size=subject.batch, learn_steps=plan.steps, refine=plan.refine, composites=plan.composites
        ),
        morphisms=plan.morphisms,
        seed=seed,
    )
    if growth.predicted is None or growth.expected is None:
        return Committed(0, growth.chosen, 0.0, 0.0, 0.0, 0.0, 0.0)
    in_sample, held_out = truth(growth.graph)
    return Committed(
        len(growth.specs), growth.chosen, growth.predicted, in_sample, growth.expected, growth.realised, held_out
    )
