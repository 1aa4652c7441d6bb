"""The joint model of all candidates in reverse mode: what sets of them do, from the passes of a screening."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch

from archir.rewrite.perturbation import Perturbation
from archir.rewrite.theta import Theta
from archir.scoring.adaptation import FOLDS, WeightGradients, left_over
from archir.scoring.batches import AnyBatch
from archir.scoring.chunks import Group
from archir.scoring.objective import Curvature, Objective
from archir.scoring.processes import Around, Processes
from archir.scoring.screen import Estimate, Moments, Screened, every_part


def screen_jointly(
    objective: Objective,
    perturbations: Sequence[Perturbation],
    thetas: Sequence[Theta],
    batches: Iterable[AnyBatch],
    *,
    curvature: Curvature = Curvature.SAMPLED,
    groups: Sequence[Group] | None = None,
    settled: Sequence[bool] | None = None,
    adapted: Sequence[bool] | None = None,
    seed: int = 0,
) -> JointEstimate:
    """Predict what every member of every family would do to the loss, alone and with any others, in reverse mode.

    The products `q_c = Σ g̃·Δ_c` of an example, which screening squares, are those of a linear map of all Δ: with
    `E[g̃ g̃ᵀ] = Jᵀ H J` the mean of `q_c q_d` is `G_cd`, whatever the number of members; that of a group is their sum.
    No tangent is pushed.

    Args:
        objective: the loss; its program gives the graph.
        perturbations: the families.
        thetas: θ of each family.
        batches: the batches, bound or as pairs of inputs and targets.
        curvature: how g̃ is chosen.
        groups: groups of members that are predicted as one, as numbers of family and member; each member alone, of one
            family after another, if not given.
        settled: for each family whether the loss counts as flat for it, `a = 0`; for none if not given. Where it does
            for all, no gradient of the loss is made, and one backward pass a batch is enough.
        adapted: for each family whether q is what is left once the weights have adapted, see `left_over`; for none if
            not given. Where g̃ is no root of H, as for a loss of one's own of many outputs, q stays what it is; weights
            beyond wide outputs that are made in chunks stay.
        seed: of the samples.

    Raises:
        ScoreError: the loss is not finite or does not fit a batch, or there are no batches.

    Source: ours.
    """
    screened = every_part(objective, perturbations, thetas, batches, curvature, seed, settled)
    members = [p.members for p in perturbations]
    starts = list(accumulate(members, initial=0))
    owners = _Owners(groups, starts)
    flags = [False] * len(perturbations) if adapted is None else adapted
    adapts = torch.tensor([flag for count, flag in zip(members, flags, strict=True) for _ in range(count)]).bool()
    gradients = WeightGradients(objective, seed) if any(flags) else None
    if gradients is not None and not gradients.weights:
        gradients = None
    parts: Iterable[_Part] = (_part(found, gradients) for found in screened if perturbations)
    if gradients is not None:
        parts = _adapted(list(parts), adapts, objective.processes)
    families, together = [slice(a, b) for a, b in pairwise(starts)], Moments(len(owners))
    alone = [Moments(count) for count in members]
    cross, examples = torch.zeros(starts[-1], len(owners), dtype=torch.float64), 0
    for part in parts:
        examples += part.examples
        second = (part.left * part.right).sum(0)
        for moments, family in zip(alone, families, strict=True):
            moments.add(part.first[:, family], second[:, family], part.examples)
        left, right = owners(part.left), owners(part.right)
        together.add(owners(part.first), (left * right).sum(0), part.examples)
        found = part.left.flatten(0, 1).mT @ right.flatten(0, 1)
        cross += found + (found if part.left is part.right else part.right.flatten(0, 1).mT @ left.flatten(0, 1))
    if not perturbations:
        return JointEstimate((), Estimate(*torch.zeros(3, 0, dtype=torch.float64)), cross, cross)
    (cross,), (count,) = objective.processes.sum(cross), objective.processes.total(examples)
    cross = cross / (2 * count)
    gram, every = owners(cross.mT), tuple(moments.estimate(objective.processes) for moments in alone)
    return JointEstimate(every, together.estimate(objective.processes), cross, (gram + gram.mT) / 2)


@dataclass(frozen=True)
class JointEstimate:
    """What all candidates of some families are predicted to do, alone and in groups.

    `G` is exact where the curvature is, and an unbiased estimate else.

    Attributes:
        families: of each family, what its members do alone.
        groups: what each group does.
        cross: `G` between members, of one family after another, and groups; `[members, groups]`.
        gram: `G` between groups; `[groups, groups]`.
    """

    families: tuple[Estimate, ...]
    groups: Estimate
    cross: torch.Tensor
    gram: torch.Tensor


class _Owners:
    """Sums over the members of each group."""

    def __init__(self, groups: Sequence[Group] | None, starts: Sequence[int]) -> None:
        """Find out where the members lie; `starts` are the numbers of the first member of each family."""
        self._groups = groups
        self._count = starts[-1] if groups is None else len(groups)
        places = [(starts[f] + m, g) for g, group in enumerate(groups or ()) for f, m in group]
        self._members, self._owners = torch.tensor(places, dtype=torch.long).reshape(-1, 2).unbind(1)

    def __len__(self) -> int:
        return self._count

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Return for values of all members `[..., members]` their sums; `[..., groups]`."""
        if self._groups is None:
            return values
        found = values.new_zeros(*values.shape[:-1], self._count)
        return found.index_add_(-1, self._owners, values[..., self._members])


@dataclass(frozen=True)
class _Part:
    """What all candidates do on a part of a batch, in float64 on the CPU.

    Attributes:
        first: `a`; `[units, members]`.
        left: products with the first of each pair of vectors; `[pairs, units, members]`.
        right: the same with the second, often one and the same.
        gradients: products with the derivatives in the weights, where these may adapt; `[pairs, units, directions]`.
        examples: number of examples.
        around: how many units of the batch other processes have.
    """

    first: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    gradients: torch.Tensor | None
    examples: int
    around: Around


def _part(screened: Screened, gradients: WeightGradients | None) -> _Part:
    first = _wide([term.first for term in screened.terms])

    def side(which: int) -> torch.Tensor:
        rows = [_wide([term.pairs[k][which] for term in screened.terms]) for k in range(len(screened.vectors))]
        return torch.stack(rows) if rows else first.new_zeros(0, *first.shape)

    left, roots = side(0), all(one is other for one, other in screened.vectors)
    found = None
    if gradients is not None and screened.vectors and roots:
        found = torch.stack([gradients(screened.part, one) for one, _ in screened.vectors]).to("cpu", torch.float64)
    return _Part(first, left, left if roots else side(1), found, screened.part.examples, screened.part.around)


def _wide(families: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(families), 1).to("cpu", torch.float64)


def _adapted(parts: Sequence[_Part], which: torch.Tensor, processes: Processes) -> list[_Part]:
    """Return what is left of the effects of some members once the weights have adapted on other units."""
    known = [part.gradients for part in parts if part.gradients is not None]
    if len(known) < len(parts):
        return list(parts)
    effects = torch.cat([part.left.flatten(0, 1)[:, which] for part in parts])
    folds, units, start = [], 0, 0
    for part in parts:  # rows of one unit are in one fold
        units += part.around.before
        folds.append(((units + torch.arange(len(part.first))) % FOLDS).repeat(len(part.left)))
        units += len(part.first) + part.around.after
    every, own = processes.gather(effects)
    gradients, _ = processes.gather(torch.cat([g.flatten(0, 1) for g in known]))
    left = left_over(every, gradients, processes.gather(torch.cat(folds))[0], processes)[own]
    found = []
    for part in parts:
        products, count = part.left.clone(), len(part.left) * len(part.first)
        products[:, :, which] = left[start : start + count].reshape(*products.shape[:2], -1)
        found.append(replace(part, left=products, right=products))
        start += count
    return found
