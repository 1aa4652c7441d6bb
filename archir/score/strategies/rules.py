"""The rules by name, and the ranking of all candidates of a graph by one of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from archir.errors import ScoreError, suggest
from archir.ir.graph import Graph
from archir.rewrite.morphism import Morphism
from archir.score.learn import Recipe
from archir.score.losses import Loss, LossFunction, find_loss
from archir.score.objective import Curvature, Objective
from archir.score.program import Program
from archir.score.screen import Batch, moved, no_batches
from archir.score.sets import Price
from archir.score.strategies.data_free import Cheapest, Net2Net, Random, Uniform
from archir.score.strategies.gradmax import GradMax
from archir.score.strategies.joint import JointGaussNewton, Linearised
from archir.score.strategies.pruning import Magnitude, Taylor
from archir.score.strategies.ranking import Ranking
from archir.score.strategies.single import AdditiveGaussNewton, BruteForce, FirstOrder
from archir.score.strategies.splitting import SplittingIndex
from archir.score.strategies.task import Rule, Task

_ALL: tuple[Rule, ...] = (
    Linearised(),
    JointGaussNewton(),
    AdditiveGaussNewton(),
    FirstOrder(),
    BruteForce(),
    Random(),
    Uniform(),
    Cheapest(),
    Net2Net(),
    SplittingIndex(),
    GradMax(),
    Magnitude(),
    Taylor(),
)

RULES: Mapping[str, Rule] = MappingProxyType({rule.name: rule for rule in _ALL})
"""Every rule by its name."""

DEFAULT = "linearised"
"""The rule that is used unless another is asked for."""

JOINT = ("linearised", "joint")
"""The rules of the scorer itself, which can take the statistics of the batch."""


def find_rule(name: str) -> Rule:
    """Return the rule of a name.

    Raises:
        ScoreError: there is none.
    """
    if name not in RULES:
        raise ScoreError(f"there is no rule {name!r}", mend=suggest(name, RULES))
    return RULES[name]


def rank(
    graph: Graph,
    batches: Iterable[Batch],
    *,
    rule: str | Rule = DEFAULT,
    morphisms: Sequence[Morphism],
    loss: str | LossFunction | Loss = "cross_entropy",
    learn: Iterable[Batch] | None = None,
    steps: int = 100,
    rate: float = 0.05,
    radius: float = 0.5,
    refine: int = 64,
    price: Price | None = None,
    curvature: Curvature = Curvature.SAMPLED,
    batch_statistics: bool = False,
    seed: int = 0,
) -> Ranking:
    """Rank the candidate rewrites of a graph by a rule.

    Args:
        graph: the graph, batch statistics recalibrated.
        batches: pairs (inputs, targets) to score on.
        rule: name of a rule, see `RULES`, or one of your own.
        morphisms: the kinds of rewrite.
        loss: name of a loss, or a callable of outputs and targets.
        learn: batches to find θ on; those scored on if not given.
        steps: steps of learning θ, one batch each.
        rate: step size of Adam, relative to the root mean square of the weight θ is added to.
        radius: trust region, bound of ‖θ‖ relative to ‖w‖.
        refine: for the joint rules, the number of candidates to refine and rank.
        price: for the joint rules, what decides with the loss which these are.
        curvature: how the second order is estimated in learning and screening.
        batch_statistics: for the joint rules, normalise by the statistics of the batch, as in training.
        seed: seed of everything random.

    Raises:
        ScoreError: there is no such rule or loss, the rule takes running statistics alone, the loss is not finite or
            does not fit a batch, there are no batches, or the graph is noisy in evaluation mode.
    """
    found = find_rule(rule) if isinstance(rule, str) else rule
    if batch_statistics and found.name not in JOINT:
        raise ScoreError(f"the rule {found.name} takes running statistics, not those of the batch")
    program = Program(graph, batch_statistics=batch_statistics)
    scored = [moved(b, program.device) for b in batches]
    some = itertools.islice(learn, max(steps, 1)) if learn is not None else ()
    learned_on = scored if learn is None else [moved(b, program.device) for b in some]
    if not scored or not learned_on:
        raise no_batches()
    recipe = Recipe(steps, rate, radius, curvature, seed)
    task = Task(Objective(program, find_loss(loss)), tuple(morphisms), scored, learned_on, recipe, refine, price)
    return replace(found(task), graph=graph)
