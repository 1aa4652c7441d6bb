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
from archir.scoring.objective import Curvature, Objective
from archir.scoring.screen import Estimate, Moments, Screened, every_part


def screen_jointly(
    objective: Objective,
    perturbations: Sequence[Perturbation],
    thetas: Sequence[Theta],
    batches: Iterable[AnyBatch],
    *,
    curvature: Curvature = Curvature.SAMPLED,
    settled: Sequence[bool] | None = None,
    adapted: Sequence[bool] | None = None,
    seed: int = 0,
) -> tuple[list[Estimate], torch.Tensor]:
    """Predict what every member of every family would do to the loss, alone and with any others, in reverse mode.

    The products `q_c = Σ g̃·Δ_c` of an example, which screening squares, are those of a linear map of all Δ: with
    `E[g̃ g̃ᵀ] = Jᵀ H J` the mean of `q_c q_d` is `G_cd`, whatever the number of members. No tangent is pushed.

    Args:
        objective: the loss; its program gives the graph.
        perturbations: the families.
        thetas: θ of each family.
        batches: the batches, bound or as pairs of inputs and targets.
        curvature: how g̃ is chosen.
        settled: for each family whether the loss counts as flat for it, `a = 0`; for none if not given. Where it does
            for all, no gradient of the loss is made, and one backward pass a batch is enough.
        adapted: for each family whether q is what is left once the weights have adapted, see `left_over`; for none if
            not given. Where g̃ is no root of H, as for a loss of one's own of many outputs, q stays what it is; weights
            beyond wide outputs that are made in chunks stay; so do, with several processes, those of the others.
        seed: of the samples.

    Returns:
        One estimate a family, and `G`, exact where the curvature is, an unbiased estimate else; `[members, members]`,
        of one family after another.

    Raises:
        ScoreError: the loss is not finite or does not fit a batch, or there are no batches.

    Source: ours.
    """
    every = every_part(objective, perturbations, thetas, batches, curvature, seed, settled)
    if not perturbations:
        for _ in every:  # which checks the batches
            pass
        return [], torch.zeros(0, 0, dtype=torch.float64)
    flags = [False] * len(perturbations) if adapted is None else adapted
    adapts = torch.tensor([flag for p, flag in zip(perturbations, flags, strict=True) for _ in range(p.members)])
    gradients = WeightGradients(objective, seed) if any(flags) else None
    if gradients is not None and not gradients.weights:
        gradients = None
    parts: Iterable[_Part] = (_part(screened, gradients) for screened in every)
    if gradients is not None:
        parts = _adapted(list(parts), adapts)
    moments = [Moments(p.members) for p in perturbations]
    families = [slice(a, b) for a, b in pairwise(accumulate((p.members for p in perturbations), initial=0))]
    gram, examples = torch.zeros(len(adapts), len(adapts), dtype=torch.float64), 0
    for part in parts:
        examples += part.examples
        second = (part.left * part.right).sum(0)
        for moment, family in zip(moments, families, strict=True):
            moment.add(part.first[:, family], second[:, family], part.examples)
        gram += part.left.flatten(0, 1).mT @ part.right.flatten(0, 1)
    (gram,), (count,) = objective.processes.sum(gram), objective.processes.total(examples)
    return [m.estimate(objective.processes) for m in moments], (gram + gram.mT) / (2 * count)


@dataclass(frozen=True)
class _Part:
    """What all candidates do on a part of a batch, in float64 on the CPU.

    Attributes:
        first: `a`; `[units, members]`.
        left: products with the first of each pair of vectors; `[pairs, units, members]`.
        right: the same with the second, often one and the same.
        gradients: products with the derivatives in the weights, where these may adapt; `[pairs, units, directions]`.
        examples: number of examples.
    """

    first: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    gradients: torch.Tensor | None
    examples: int


def _part(screened: Screened, gradients: WeightGradients | None) -> _Part:
    first = _wide([term.first for term in screened.terms])

    def side(which: int) -> torch.Tensor:
        rows = [_wide([term.pairs[k][which] for term in screened.terms]) for k in range(len(screened.vectors))]
        return torch.stack(rows) if rows else first.new_zeros(0, *first.shape)

    left, roots = side(0), all(one is other for one, other in screened.vectors)
    found = None
    if gradients is not None and screened.vectors and roots:
        found = torch.stack([gradients(screened.part, one) for one, _ in screened.vectors]).to("cpu", torch.float64)
    return _Part(first, left, left if roots else side(1), found, screened.part.examples)


def _wide(families: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(families), 1).to("cpu", torch.float64)


def _adapted(parts: Sequence[_Part], which: torch.Tensor) -> list[_Part]:
    """Return what is left of the effects of some members once the weights have adapted on other units."""
    known = [part.gradients for part in parts if part.gradients is not None]
    if len(known) < len(parts):
        return list(parts)
    effects = torch.cat([part.left.flatten(0, 1)[:, which] for part in parts])
    folds, units, start = [], 0, 0
    for part in parts:  # rows of one unit are in one fold
        folds.append(((units + torch.arange(len(part.first))) % FOLDS).repeat(len(part.left)))
        units += len(part.first)
    left = left_over(effects, torch.cat([g.flatten(0, 1) for g in known]), torch.cat(folds))
    found = []
    for part in parts:
        products, count = part.left.clone(), len(part.left) * len(part.first)
        products[:, :, which] = left[start : start + count].reshape(*products.shape[:2], -1)
        found.append(replace(part, left=products, right=products))
        start += count
    return found
