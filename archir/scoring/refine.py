"""Refinement in forward mode: what candidates, or groups of them, do to the outputs, alone and together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from archir.errors import ScoreError
from archir.ir.precision import in_float32
from archir.rewrite.perturbation import Perturbation
from archir.rewrite.theta import Theta
from archir.scoring.batches import AnyBatch, BoundBatch, bind_batches
from archir.scoring.chunks import Group, Groups, chunk_size
from archir.scoring.downstream import Downstream
from archir.scoring.forward import Linearisation
from archir.scoring.objective import Objective
from archir.scoring.parts import Parts
from archir.scoring.program import Evaluation, number_of_examples
from archir.scoring.screen import Moments
from archir.scoring.targets import Targets

LARGEST_STORED = 2**27
"""The largest number of elements of `u` that are kept; beyond it only `a` and `G` are."""


@dataclass(frozen=True)
class LinearBatch:
    """One batch of the linearised network.

    Attributes:
        outputs: the outputs of the network.
        flat: the same side by side, `[examples, outputs]`.
        targets: the targets.
        pushed: `u`, how each candidate moves the outputs, `[candidates, examples, outputs]`; where these are made in
            chunks (`stream.StreamedObjective`), how it moves the features they are made from.
    """

    outputs: Sequence[Any]
    flat: torch.Tensor
    targets: Targets
    pushed: torch.Tensor


@dataclass(frozen=True)
class Refinement:
    """The linearised effects of some candidates, each a member of a family or a group of members.

    Attributes:
        objective: the loss.
        first_order: `a_c = mean_n r·u_c`, `[candidates]`, in nats for likelihoods.
        gram: `G_cd = mean_n u_cᵀ H u_d`, `[candidates, candidates]`.
        stderr: standard error of `a + G/2` of each over the units (see `Objective.united`), `[candidates]`.
        batches: the linearised network; empty if it would take too much memory.
        methods: how operators were differentiated; see `forward.Linearisation.methods`.
    """

    objective: Objective
    first_order: torch.Tensor
    gram: torch.Tensor
    stderr: torch.Tensor
    batches: tuple[LinearBatch, ...] = field(repr=False)
    methods: Mapping[str, str]

    @property
    def quadratic(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`a + G/2` of each candidate, and G."""
        return self.first_order + self.gram.diagonal() / 2, self.gram

    def joint(self, chosen: Sequence[int]) -> float:
        """Return `Σ a_c + ½ Σ G_cd` over a set of candidates."""
        index = torch.tensor(chosen, dtype=torch.long)
        return float(self.first_order[index].sum() + self.gram[index][:, index].sum() / 2)

    @torch.no_grad()
    def linearised(self, chosen: Sequence[int]) -> float:
        """Return `mean_n [ℓ(o + Σ u_c) − ℓ(o)]`; the joint model where the outputs were too large to be kept."""
        if not self.batches:
            return self.joint(chosen)
        total, examples = 0.0, 0
        for batch in self.batches:
            count = len(batch.flat)
            moved = batch.flat + batch.pushed[list(chosen)].sum(0) if chosen else batch.flat
            total += self._loss(batch, moved) * count - self._loss(batch, batch.flat) * count
            examples += count
        total, every = self.objective.processes.total(total, examples)
        return total / every

    def _loss(self, batch: LinearBatch, flat: torch.Tensor) -> float:
        return float(self.objective.mean(flat, batch.outputs, batch.targets))


@in_float32()
def refine(
    objective: Objective,
    perturbations: Sequence[Perturbation],
    thetas: Sequence[Theta],
    groups: Sequence[Group],
    batches: Iterable[AnyBatch],
    *,
    chunk: int | None = None,
) -> Refinement:
    """Find what groups of candidates do to the outputs, by one tangent each, however many members they have.

    Args:
        objective: the loss; its program gives the graph.
        perturbations: the families.
        thetas: θ of each family.
        groups: the groups, of one candidate or more, as numbers of family and member; those of `chunks.singly`, say.
        batches: the batches, bound or as pairs of inputs and targets.
        chunk: most tangents that are pushed through what lies downstream at once; `chunk_size` if None, and half as
            many where memory runs out. Results are the same up to rounding.

    Raises:
        ScoreError: an operator downstream cannot be differentiated, the loss is not finite or does not fit a batch,
            there are no batches, a chunk is to hold no tangent, or there is no memory for one.

    Source: the joint Gauss-Newton model is ours.
    """
    if chunk is not None and chunk < 1:
        raise ScoreError(f"a chunk holds one tangent or more, not {chunk}")
    ordered = Groups(objective.program.graph, perturbations, thetas, groups)
    used = [perturbations[f] for f in ordered.families]
    downstream = Downstream(objective.program.graph, [e for p in used for e in p.edges])
    program = objective.program.tapped(keep=downstream.needs | frozenset(v for p in used for v in p.needs))
    moments, gram = Moments(len(groups)), torch.zeros(len(groups), len(groups), dtype=torch.float64)
    kept: list[LinearBatch] = []
    methods: dict[str, str] = {}
    examples, stored = 0, 0

    def refined(part: BoundBatch) -> _Refined:
        size = chunk or chunk_size(objective.program, part.examples)
        batch, found = _linearised(objective, downstream, program(part.inputs), part.targets, ordered, size)
        pushed = batch.pushed
        _, gradient = objective.gradient(batch.outputs, part.targets)
        curved = objective.hessian_product(batch.outputs, part.targets, pushed)
        first, second = (objective.united((pushed * by).sum(2).mT) for by in (gradient, curved))
        return _Refined(batch, found, first, second, (pushed.flatten(1) @ curved.flatten(1).mT))

    for found in Parts(objective).each(bind_batches(objective.program, batches), refined):
        methods |= found.methods
        moments.add(found.first, found.second, len(found.batch.flat))
        gram += found.gram.to("cpu", torch.float64)
        examples += len(found.batch.flat)
        stored += found.batch.pushed.numel()
        kept = [*kept, found.batch] if stored <= LARGEST_STORED else []
    estimate = moments.estimate(objective.processes)
    (gram,) = objective.processes.sum(gram)
    every, too_large = objective.processes.total(examples, stored > LARGEST_STORED)
    gram = (gram + gram.mT) / (2 * every)
    if too_large:  # on some process, and all have to do the same
        kept = []
    return Refinement(objective, estimate.first_order, gram, estimate.stderr, tuple(kept), methods)


@dataclass(frozen=True)
class _Refined:
    """What is found on a part of a batch.

    Attributes:
        batch: the linearised network.
        methods: how operators were differentiated.
        first: first order of each group, `[units, groups]`.
        second: curvature of each, `[units, groups]`.
        gram: `Σ_n u_cᵀ H u_d`, `[groups, groups]`.
    """

    batch: LinearBatch
    methods: Mapping[str, str]
    first: torch.Tensor
    second: torch.Tensor
    gram: torch.Tensor


def _linearised(
    objective: Objective,
    downstream: Downstream,
    evaluation: Evaluation,
    targets: Targets,
    groups: Groups,
    size: int,
) -> tuple[LinearBatch, Mapping[str, str]]:
    """Return a batch with the tangents of its outputs, and how operators were differentiated."""
    count = number_of_examples(targets)
    objective.check(evaluation.outputs, targets)
    linear = Linearisation(downstream, evaluation.values)
    flat = objective.flatten(evaluation.outputs, count)
    pushed = torch.zeros(len(groups), *flat.shape, dtype=flat.dtype, device=flat.device)
    for numbers, moved in groups.pushed(evaluation.values, count, size, linear):
        for i, number in enumerate(numbers):
            filled = [
                o if not isinstance(o, torch.Tensor) else torch.zeros_like(o) if t is None else t[i]
                for o, t in zip(evaluation.outputs, moved, strict=True)
            ]
            pushed[number] = objective.flatten(filled, count)
    return LinearBatch(evaluation.outputs, flat, targets, pushed), linear.methods
