"""Scoring thousands of candidates together: θ of those a budget may take is learned as one set, and all are graded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from archir.cost import cost
from archir.rewrite.morphism import WidthMorphism
from archir.rewrite.theta import Theta
from archir.scoring.budget import Budget
from archir.scoring.chunks import Place
from archir.scoring.families import Candidate, Family
from archir.scoring.grading import grade
from archir.scoring.joint import JointEstimate, screen_jointly
from archir.scoring.learn import Learned, learn
from archir.scoring.options import ScoreOptions
from archir.scoring.refine import Refinement
from archir.scoring.screen import Estimate, screen
from archir.scoring.set_models import Joint
from archir.scoring.sets import CandidateSet, Member
from archir.scoring.strategies.context import ScoringContext
from archir.scoring.strategies.result import JointResult, StrategyResult, screened
from archir.scoring.strategies.worth import worth_of

ALONE, TOGETHER = 1 / 2, 1 / 4
"""The parts of the steps of learning in which θ is learned for each candidate alone, and for some of them together."""

PROPOSED = 2
"""The multiple of the room in a budget that the candidates may fill whose θ is learned together."""

RANKED_ON = 2
"""The number of batches that the members of a family are ranked on."""


def graded(context: ScoringContext) -> StrategyResult:
    """Predict for sets of any number of candidates `Σ a + ½ Σ G`, the members of a family taken in grades.

    θ that was learned alone overshoots where thousands go the same way. After a time of that, those candidates that
    have θ are therefore proposed which would be taken, were all effects additive, if there were `PROPOSED` times
    the room, and learn together, as one set T. Members of a family are then ranked by their share of what this set
    does, `a_c + ½ G_cT` (the Shapley value of c in the joint model), on batches that θ was learned on, and put into
    grades. What is not proposed is scaled like the rest of its family. The joint model of the sets is found in reverse
    mode: it costs as much however many members there are.

    Args:
        context: the candidates, under a budget.

    Source: ours; Shapley 1953 for the value.
    """
    options, objective = context.options, context.streamed
    alone = learn(objective, context.perturbations, context.learn, _for(ALONE, options))
    estimates = screen(
        objective,
        context.perturbations,
        alone.thetas,
        context.batches,
        curvature=options.curvature,
        seed=options.seed + 1,
    )
    proposed = CandidateSet(context.objective, _proposed(context, estimates, alone), options)
    if options.steps:
        proposed = proposed.learned(context.learn, _for(TOGETHER, options))
    learned = {m.candidate.family: m.theta for m in proposed.members}
    thetas = [_shared(f, learned, theta) for f, theta in zip(context.families, alone.thetas, strict=True)]
    number = {f: i for i, f in enumerate(context.families)}
    together = [(number[m.candidate.family], i) for m in proposed.members for i in m.candidate.members]
    judge = partial(screen_jointly, objective, context.perturbations, thetas, curvature=options.curvature)
    shares = _shares(judge(context.learn[:RANKED_ON], groups=[together], seed=options.seed + 2), together)
    united = [f.united(range(min(2, len(f.site.members)))) is not None for f in context.families]
    sets = grade(_ranked(shares, united, options.refine_most), united, options.refine_most)
    found = judge(context.batches, groups=[[(f, m) for m in members] for f, members in sets], seed=options.seed + 1)
    refinement = Refinement(context.objective, found.groups.first_order, found.gram, found.groups.stderr, (), {})
    families = tuple(screened(e, theta) for e, theta in zip(found.families, thetas, strict=True))
    joint = JointResult(tuple(sets), refinement, Joint(refinement))
    return StrategyResult(families, joint, alone.estimates, context)


def _ranked(shares: Sequence[torch.Tensor], united: Sequence[bool], most: int) -> list[list[int]]:
    """Return the members of each family, the best first; of those that can only be alone no more than the best."""
    alone = [share for share, whole in zip(shares, united, strict=True) if not whole]
    last = torch.cat(alone).sort().values[:most][-1:] if alone else torch.zeros(0)
    return [
        [m for m in share.argsort(stable=True).tolist() if whole or bool((share[m] <= last).any())]
        for share, whole in zip(shares, united, strict=True)
    ]


def _shared(family: Family, learned: Mapping[Family, Theta | None], alone: Theta) -> Theta:
    """Return θ of a family that was learned together, or its part of that of a larger one, or what it learned alone."""
    if own := learned.get(family):
        return own
    (member, *_), site = family.site.members, family.site
    for other, theta in learned.items():
        larger, *_ = other.site.members
        if theta and type(larger) is type(member) and other.site.label == site.label:
            found = member.part_of(site.found, larger, theta)
            if found is not None:
                return found
    return alone


def _for(part: float, options: ScoreOptions) -> ScoreOptions:
    """Return the options with a part of the steps, one at least if there are any."""
    return replace(options, steps=min(options.steps, max(1, round(part * options.steps))))


def _proposed(context: ScoringContext, estimates: Sequence[Estimate], alone: Learned) -> tuple[Member, ...]:
    """Return the candidates that are to learn together, those of a family as one where that can be.

    Of rewrites that claim the same call, or give fresh units to the same width that do not add up, the best is taken.
    """
    options, now = context.options, cost(context.graph)
    assert options.budget is not None
    limits = {n: v + (PROPOSED - 1) * max(v - getattr(now, n), 0) for n, v in options.budget.scarce.items()}
    worth = worth_of(context.families, estimates, options, Budget(**limits))
    parts = torch.split(worth, [len(e.first_order) for e in estimates])
    found: list[Member] = []
    claimed: set[int | str] = set()
    best_first = sorted(zip(context.families, parts, alone.thetas, strict=True), key=lambda one: float(one[1].min()))
    for family, part, theta in best_first:
        members = (part < 0).nonzero().flatten().tolist() if theta else []
        on_width = isinstance(family.morphism, WidthMorphism)
        claims: frozenset[int | str] = frozenset(family.excluded if on_width else family.claims)
        if members and (claims or not on_width):
            members = [] if claimed & claims else [int(part.argmin())]
            claimed |= claims if members else frozenset()
        if members and family.united(members) is not None:
            found.append(Member(Candidate(family, tuple(members)), theta))
        else:
            found += (Member(Candidate(family, (member,)), theta) for member in members)
    return tuple(found)


def _shares(found: JointEstimate, together: Sequence[Place]) -> list[torch.Tensor]:
    """Return the share of each member in what a set does; of one outside, in what it does beside half of the set."""
    inside = [torch.zeros(len(e.first_order), dtype=torch.bool) for e in found.families]
    for family, member in together:
        inside[family][member] = True
    cross = torch.split(found.cross[:, 0], [len(i) for i in inside])
    return [
        e.first_order + torch.where(i, c, c + e.curvature) / 2
        for e, i, c in zip(found.families, inside, cross, strict=True)
    ]
