"""Scoring: the candidates of a graph as a strategy sees them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from archir.errors import ScoreError
from archir.ir.precision import in_float32
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.scoring.batches import AnyBatch
from archir.scoring.families import Candidate
from archir.scoring.objective import Objective
from archir.scoring.options import ScoreOptions
from archir.scoring.refine import Refinement
from archir.scoring.scores import Score, Scores
from archir.scoring.set_models import Additive
from archir.scoring.strategies.context import ScoringContext, make_context
from archir.scoring.strategies.registry import DEFAULT, find_strategy
from archir.scoring.strategies.result import FamilyResult
from archir.scoring.strategies.strategy import Strategy


def score(
    objective: Objective,
    batches: Iterable[AnyBatch],
    *,
    morphisms: Sequence[Morphism],
    learn: Iterable[AnyBatch] | None = None,
    strategy: str | Strategy = DEFAULT,
    options: ScoreOptions,
) -> Scores:
    """Predict what every candidate rewrite of a graph would do to the loss.

    θ of all candidates is learned at once on some batches, weights frozen. All candidates are then screened on others
    in reverse mode; the best are refined in forward mode, and only these may be part of joint predictions. Other
    strategies do otherwise.

    Args:
        objective: the loss on top of the graph, batch statistics recalibrated.
        batches: what candidates are scored on: pairs (inputs, targets), inputs a tensor, a tuple of arguments, or a
            mapping by name, targets a tensor, or several nested in tuples, lists and mappings if the loss is a
            callable, which gets them as they are.
        morphisms: the kinds of rewrite.
        learn: batches to learn θ on; those scored on if not given, and the predictions are then optimistic.
        strategy: name of the strategy that scores and chooses them, see `strategies.registry`, or one of your own.
        options: how they are scored.

    Raises:
        ScoreError: the loss is not finite, or does not fit a batch; there are no batches; there is no such strategy, or
            it takes running statistics alone.
    """
    context = make_context(objective, batches, morphisms=morphisms, learn=learn, options=options)
    return score_by(find_strategy(strategy), context)


@in_float32()
def score_by(strategy: Strategy, context: ScoringContext) -> Scores:
    """Return the scores that a strategy gives the candidates of a context.

    Raises:
        ScoreError: it takes running statistics alone, the loss is not finite, or does not fit a batch.
    """
    if context.objective.program.batch_statistics and strategy.running_statistics:
        raise ScoreError(f"the strategy {strategy.name} takes running statistics, not those of the batch")
    result = strategy(context)
    context = result.context or context
    places = () if result.joint is None else result.joint.places
    refined = set(places)
    found: dict[tuple[int, tuple[int, ...]], Score] = {}
    misses = list(context.misses)
    for f, (family, said) in enumerate(zip(context.families, result.families, strict=True)):
        if isinstance(said, Miss):
            misses.append((family.label, said))
            continue
        columns = said.predicted, said.stderr, said.first_order, said.curvature
        given = [[None] * len(said.order) if c is None else c.tolist() for c in columns]
        for candidate, order, predicted, stderr, first_order, curvature in zip(
            family.candidates, said.order.tolist(), *given, strict=True
        ):
            if not math.isinf(order) or predicted is not None:
                place = f, candidate.members
                found[place] = Score(
                    candidate=candidate,
                    order=order,
                    predicted=predicted,
                    stderr=stderr,
                    first_order=first_order,
                    curvature=curvature,
                    refined=place in refined,
                    theta=said.theta or None,
                )
    for number, (f, members) in enumerate(places):
        if len(members) > 1:
            said, joint = result.families[f], result.joint
            assert not isinstance(said, Miss) and joint is not None and joint.refinement is not None
            found[f, members] = _of_set(Candidate(context.families[f], members), joint.refinement, number, said)
    table = tuple(sorted(found.values(), key=lambda s: s.order))
    alone = [s.predicted for s in table if s.predicted is not None]
    additive = Additive(torch.tensor(alone, dtype=torch.float64)) if table and len(alone) == len(table) else None
    joint = result.joint
    return Scores(
        objective=context.objective,
        options=context.options,
        strategy=strategy.name,
        candidates=sum(len(f.site.members) for f in context.families),
        table=table,
        choice=table if joint is None else tuple(found[place] for place in places),
        model=additive if joint is None else joint.model,
        refinement=None if joint is None else joint.refinement,
        misses=tuple(misses),
        learning=result.learning,
    )


def _of_set(candidate: Candidate, refinement: Refinement, number: int, said: FamilyResult) -> Score:
    """Return the score of members of a family that are taken together."""
    first_order, curvature = float(refinement.first_order[number]), float(refinement.gram[number, number])
    predicted = first_order + curvature / 2
    return Score(
        candidate=candidate,
        order=predicted,
        predicted=predicted,
        stderr=float(refinement.stderr[number]),
        first_order=first_order,
        curvature=curvature,
        refined=True,
        theta=said.theta or None,
    )
