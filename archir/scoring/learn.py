"""Learning θ of all families at once on the predicted change of the loss, weights frozen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from archir.ir.node import Value
from archir.ir.precision import in_float32
from archir.ir.seeds import derived_seed
from archir.ir.tensor_map import along
from archir.rewrite.perturbation import Edge, Perturbation
from archir.rewrite.theta import Added, Key, Theta
from archir.scoring.batches import AnyBatch, BoundBatch, bind_batches
from archir.scoring.objective import Objective
from archir.scoring.options import ScoreOptions
from archir.scoring.parts import Parts
from archir.scoring.program import Program
from archir.scoring.reduction import Reductions
from archir.scoring.tapped import Gradient, TappedProgram, backward, tapped_program


@dataclass(frozen=True)
class Learned:
    """What came out of learning.

    Attributes:
        thetas: θ of each family; empty where there is nothing to learn.
        estimates: sum over all members of the predicted change of the loss at each step; `[steps]`, in nats.
    """

    thetas: tuple[Theta, ...]
    estimates: torch.Tensor


Sums = tuple[torch.Tensor, torch.Tensor]
"""Inner products of Δ with both vectors of a pair."""


@dataclass(frozen=True)
class _Differentiated:
    """A batch the network has been run on, and differentiated once.

    Attributes:
        values: of the network, at least those that the families need.
        first: `g`, the gradients of every example's loss on edges.
        pairs: `g̃`, those of the vectors of the curvature.
        examples: number of examples.
    """

    values: Mapping[Value, torch.Tensor]
    first: Gradient
    pairs: Sequence[tuple[Gradient, Gradient]]
    examples: int


class Learner:
    """Takes learning steps; made once for a graph and its families."""

    def __init__(
        self,
        objective: Objective,
        perturbations: Sequence[Perturbation],
        options: ScoreOptions,
        *,
        start: Sequence[Theta] | None = None,
        scale: float = 1.0,
        together: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Set θ to its starting point.

        Args:
            objective: the loss; its program gives the graph.
            perturbations: the families; those without parameters have nothing to learn.
            options: how to learn.
            start: θ of each family to start from; small and random if not given.
            scale: what that is multiplied with.
            together: the members of a set, as numbers of family and member, whose θ is learned for the set as a whole;
                that of all others stands still. If not given, every member learns as if it were alone.
        """
        self._objective, self._options = objective, options
        self._perturbations = tuple(perturbations)
        self._set = None if together is None else _members(together, perturbations, _like(objective.program))
        used = range(len(perturbations)) if self._set is None else list(self._set)
        self._learnable = [i for i in used if perturbations[i].theta]
        tapped = self._learnable if self._set is None else used
        self._program: TappedProgram = tapped_program(objective.program, [perturbations[i] for i in tapped])
        self._generator = torch.Generator().manual_seed(objective.processes.seed(options.seed))
        self._parts, self._reductions = Parts(objective, self._generator), Reductions()
        stored = {Value(i): t for i, t in objective.program.graph.tensors.items()}
        self._thetas: list[dict[Key, torch.Tensor]] = []
        for i, p in enumerate(perturbations):
            first = p.initial_theta(stored, derived_seed(options.seed, i)) if start is None else start[i]
            learns = i in self._learnable
            self._thetas.append({node: (t * scale).requires_grad_(learns) for node, t in first.items()})
        keys = [(i, key) for i in self._learnable for key in self._thetas[i]]
        every = [(perturbations[i].theta[key], self._thetas[i][key]) for i, key in keys]
        paces = [_pace(key, like) for (_, key), (like, _) in zip(keys, every, strict=True)]
        self._rates = [options.rate * _scale(like) * pace for (like, _), pace in zip(every, paces, strict=True)]
        groups = [{"params": [t], "lr": rate} for (_, t), rate in zip(every, self._rates, strict=True)]
        self._region = [(t, _limit(like, options.radius)) for like, t in every]
        self._optimiser = _adam(groups) if groups else None
        self._taken = 0

    @property
    def thetas(self) -> tuple[Theta, ...]:
        """θ of each family as it stands."""
        return tuple({n: t.detach().clone() for n, t in theta.items()} for theta in self._thetas)

    def step(self, batch: AnyBatch) -> float:
        """Take one step and return the predicted change of the loss before it, summed over all members, or of the set.

        Raises:
            ScoreError: the loss is not finite or does not fit the batch, or there is too little memory.
        """
        if self._optimiser is None:
            return 0.0
        (bound,) = bind_batches(self._objective.program, [batch])
        self._optimiser.zero_grad()
        added = self._parts.each([bound], lambda part: self._added(self._differentiated(part)))
        total = self._share(sum(added, 0.0), bound.examples)
        progress = self._taken / max(self._options.steps, 1)
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        self._optimiser.step()
        self._taken += 1
        with torch.no_grad():
            for theta_tensor, limit in self._region:
                _project(theta_tensor, limit)
        return total

    def _differentiated(self, batch: BoundBatch) -> _Differentiated:
        evaluation = self._program(batch.inputs)
        curvature, outputs = self._options.curvature, evaluation.outputs
        vectors = self._objective.pairs(outputs, batch.targets, curvature, self._generator, batch.around)
        first, second = backward(self._objective, evaluation, batch.targets, list(vectors))
        return _Differentiated(evaluation.values, first, list(second), batch.examples)

    def _added(self, batch: _Differentiated) -> float:
        """Do what `_accumulate` does, or leave the gradients as they are where that fails."""
        tensors = [tensor for theta in self._thetas for tensor in theta.values()]
        before = [tensor.grad for tensor in tensors]
        for tensor in tensors:
            tensor.grad = None
        try:
            value = self._accumulate(batch)
        except Exception:
            for tensor, gradient in zip(tensors, before, strict=True):
                tensor.grad = gradient
            raise
        for tensor, gradient in zip(tensors, before, strict=True):
            if gradient is not None:
                tensor.grad = gradient if tensor.grad is None else gradient + tensor.grad
        return value

    def _accumulate(self, batch: _Differentiated) -> float:
        """Add the gradient of θ on some examples, summed over them, and return their predicted changes of the loss."""
        if self._set is None:
            return sum(self._pull(i, batch, self._deltas(i, batch)) for i in self._learnable)
        # Δ of what learns is needed for the sums of the set, and then for each family.
        kept = {i: self._deltas(i, batch) for i in self._learnable}
        value, sums = self._totals(batch, kept)
        for i in self._learnable:
            self._pull(i, batch, kept.pop(i), sums)
        return value + sum(float((s * t).sum()) for s, t in sums) / 2

    def _deltas(self, i: int, batch: _Differentiated) -> Mapping[Edge, torch.Tensor]:
        """Return Δ of the members of one family as a function of its θ."""
        return self._perturbations[i].delta(batch.values, self._thetas[i])

    @torch.no_grad()
    def _share(self, total: float, examples: int) -> float:
        """Make the gradients of θ, and the predicted change, means over the examples of all processes."""
        processes = self._objective.processes
        total, every = processes.total(total, examples)
        pulled = [(t, t.grad) for theta in self._thetas for t in theta.values() if t.grad is not None]
        for (tensor, _), found in zip(pulled, processes.sum(*(g for _, g in pulled)), strict=True):
            tensor.grad = found / every
        return total / every

    @torch.no_grad()
    def _totals(
        self, batch: _Differentiated, kept: Mapping[int, Mapping[Edge, torch.Tensor]]
    ) -> tuple[float, list[Sums]]:
        """Return `Σ g·Δ` of the set, summed over examples, and `Σ g̃·Δ` of it for each unit; `[units, 1]`."""
        assert self._set is not None
        linear, sums = 0.0, [(torch.zeros(()), torch.zeros(()))] * len(batch.pairs)
        for i, mask in self._set.items():
            deltas = kept[i] if i in kept else self._deltas(i, batch)
            first = self._reductions.total(i, self._perturbations[i], batch.first, deltas, batch.examples)
            linear += float((first @ mask).sum())
            found = self._sums(i, batch, deltas)
            sums = [(s + one @ mask, t + other @ mask) for (s, t), (one, other) in zip(sums, found, strict=True)]
        return linear, sums

    def _sums(self, i: int, batch: _Differentiated, deltas: Mapping[Edge, torch.Tensor]) -> list[Sums]:
        """Return `Σ g̃·Δ` for each unit and member of one family; `[units, members]`."""
        p, united, sums = self._perturbations[i], self._objective.united, []
        for left, right in batch.pairs:
            one = united(self._reductions.total(i, p, left, deltas, batch.examples))
            other = one if left is right else united(self._reductions.total(i, p, right, deltas, batch.examples))
            sums.append((one, other))
        return sums

    @torch.no_grad()
    def _pull(
        self,
        i: int,
        batch: _Differentiated,
        deltas: Mapping[Edge, torch.Tensor],
        of_set: Sequence[Sums] | None = None,
    ) -> float:
        """Add to the gradient of θ of one family and return its predicted change of the loss, summed over examples.

        With `s = Σ g̃·Δ` for each unit, over the positions of each member or of the whole set, the gradient of the
        estimate in Δ is `g + s g̃`: formed here in one pass, so that only Δ(θ) itself is ever differentiated.
        """
        p, theta = self._perturbations[i], self._thetas[i]
        if of_set is None:
            sums = self._sums(i, batch, deltas)
        else:
            sums = [(s.expand(-1, p.members), t.expand(-1, p.members)) for s, t in of_set]
        value = sum(float((s * t).sum()) for s, t in sums) / 2
        ends, cotangents = [], []
        for edge, delta in deltas.items():
            if edge not in batch.first or not delta.requires_grad:
                continue
            cotangent = batch.first[edge]
            reduction = self._reductions.find(i, p, edge, delta, batch.examples)
            value += _inner(delta, reduction.onto(cotangent))
            for (left, right), (s, t) in zip(batch.pairs, sums, strict=True):
                if left is right:
                    cotangent = torch.addcmul(cotangent, left[edge], reduction.spread(s))
                else:
                    mixed = left[edge] * reduction.spread(t) + right[edge] * reduction.spread(s)
                    cotangent = cotangent + mixed / 2
            if self._set is not None:
                cotangent = cotangent * reduction.spread(self._set[i].mT)
            ends.append(delta)
            cotangents.append(reduction.onto(cotangent))
        if ends:
            found = torch.autograd.grad(ends, list(theta.values()), cotangents, allow_unused=True)
            for tensor, gradient in zip(theta.values(), found, strict=True):
                if gradient is not None:
                    tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient
        return value


@in_float32()
def learn(
    objective: Objective,
    perturbations: Sequence[Perturbation],
    batches: Iterable[AnyBatch],
    options: ScoreOptions,
    *,
    start: Sequence[Theta] | None = None,
    scale: float = 1.0,
    together: Sequence[tuple[int, int]] | None = None,
) -> Learned:
    """Learn θ of all families at once, each member as if it were alone; or that of a set, for the set as a whole.

    Args:
        objective: the loss; its program gives the graph.
        perturbations: the families.
        batches: the batches, bound or as pairs of inputs and targets; used again when they run out.
        options: how to learn.
        start: θ of each family to start from; small and random if not given.
        scale: what that is multiplied with.
        together: the members of the set, as numbers of family and member. Its estimate has one sum over the whole set
            where that of a single member has one over its own positions, so that members stop short where others go
            the same way.

    Raises:
        ScoreError: the loss is not finite or does not fit a batch, or there are no batches.

    Source: Adam (Kingma and Ba 2015) on the estimate of Lawton, Galstyan, Ver Steeg 2024; the trust region and sets are
        ours.
    """
    learner = Learner(objective, perturbations, options, start=start, scale=scale, together=together)
    if not options.steps:
        return Learned(learner.thetas, torch.zeros(0, dtype=torch.float64))
    bound = bind_batches(objective.program, batches, most=options.steps)
    estimates = [learner.step(batch) for batch in itertools.islice(itertools.cycle(bound), options.steps)]
    return Learned(learner.thetas, torch.tensor(estimates, dtype=torch.float64))


def _members(
    chosen: Sequence[tuple[int, int]], perturbations: Sequence[Perturbation], like: torch.Tensor
) -> dict[int, torch.Tensor]:
    """Return for each family of a set ones at its chosen members; `[members, 1]`."""
    found: dict[int, torch.Tensor] = {}
    for family, member in sorted(chosen):
        mask = found.setdefault(family, like.new_zeros(perturbations[family].members, 1))
        mask[member] = 1
    return found


def _like(program: Program) -> torch.Tensor:
    """Return some stored tensor of real numbers, for the element type and the device of others."""
    return next(t for t in program.graph.tensors.values() if t.is_floating_point())


def _adam(groups: Sequence[Mapping[str, Any]]) -> torch.optim.Adam:
    """Return Adam with groups of parameters that are known to be disjoint.

    PyTorch compares each with all before it, which for the θ of thousands of families takes longer than learning them.
    """
    found = torch.optim.Adam([dict(groups[0])], eps=1e-12)
    found.param_groups += [{**found.defaults, **group} for group in groups[1:]]
    return found


def _inner(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return `Σ a·b`, without a copy where both lie in memory alike."""
    if a.stride() == b.stride() and a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return float(torch.dot(a.reshape(-1), b.reshape(-1)))


def _scale(weight: torch.Tensor) -> float:
    """Return the root mean square of a weight, 1 where it is zero."""
    found = float(weight.square().mean().sqrt())
    return found if found > 0 else 1.0


def _pace(key: Key, like: torch.Tensor) -> float:
    """Return by how much steps are shorter for a new layer than for copies: 3/√fan-in.

    A step of Adam moves all weights of a unit by as much, so that inputs add up, and a layer of many inputs that starts
    at zero would overshoot. Copies of units start and move in pairs that cancel, and need no such care.

    Source: Yang and Hu 2021 for the scaling; the constant, the root of a 3x3 kernel, is ours.
    """
    fan_in = like[0].numel() if like.dim() > 1 else 1
    return min(1.0, 3 / math.sqrt(fan_in)) if isinstance(key, Added) else 1.0


def _limit(like: torch.Tensor, radius: float) -> torch.Tensor:
    """Return the largest norm of each row of θ, `[rows]`; of all of θ where it is a vector, `[]`."""
    found: torch.Tensor = radius * (like.flatten(1).norm(dim=1) if like.dim() > 1 else like.norm())
    return found.detach()


def _project(theta: torch.Tensor, limit: torch.Tensor) -> None:
    """Scale rows that are too long back to the limit."""
    norm = theta.norm() if limit.dim() == 0 else theta.flatten(1).norm(dim=1)
    factor = (limit / norm.clamp(min=1e-30)).clamp(max=1)
    theta *= along(0, factor, theta.dim()) if limit.dim() else factor
