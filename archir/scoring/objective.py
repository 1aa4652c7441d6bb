"""The objective, a loss on top of a program: as a function of the outputs, its gradient, Hessian and a root of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch.distributed import ProcessGroup

from archir.errors import ArchirError, ScoreError
from archir.ir.graph import Graph
from archir.scoring.losses import (
    LOSSES,
    Loss,
    LossFunction,
    check_class_probabilities,
    check_loss,
    class_axis,
    find_loss,
    label_weights,
)
from archir.scoring.processes import WHOLE, Around, Processes
from archir.scoring.program import Program, number_of_examples
from archir.scoring.targets import Targets

LARGEST_DENSE = 64
"""The number of outputs of an example, or of a batch under a coupled loss, up to which Hessians are computed densely.

Only for losses whose Hessian has no root in closed form.
"""

Pair = tuple[torch.Tensor, torch.Tensor]
"""Two vectors for each example, `[examples, outputs]` each, with `E[v wᵀ] = H`; often one and the same.

Under a coupled loss it is one vector of the whole batch, in the same shape.
"""


class Curvature(Enum):
    """How the curvature is estimated in reverse mode.

    Attributes:
        SAMPLED: one random vector an example, whose outer product has the Hessian as its mean.
        EXACT: one vector for each output of an example, of the batch where it is coupled; the cost grows with it.
        NONE: the second order is left out.
    """

    SAMPLED = "sampled"
    EXACT = "exact"
    NONE = "none"


@dataclass(frozen=True)
class Objective:
    """A loss on top of a program, on outputs flattened to `[examples, outputs]`; made by `make_objective`.

    Attributes:
        graph: the graph that is scored.
        program: what gives the outputs: the graph, with the statistics of the batch where these are asked for.
        loss: the loss.
        processes: those over whose batches everything is a mean.
    """

    graph: Graph
    program: Program
    loss: Loss
    processes: Processes = field(default_factory=Processes)

    @property
    def coupled(self) -> bool:
        """Whether what is predicted for one example depends on the others of its batch."""
        return self.loss.coupled or self.program.coupled

    def united(self, sums: torch.Tensor) -> torch.Tensor:
        """Return sums over each example, `[examples, ...]`, as sums over each unit: a batch `[1, ...]` if coupled.

        Units are what does not depend on each other; inner products are squared after they are summed over one.
        """
        return sums.sum(0, keepdim=True) if self.coupled else sums

    def flatten(self, outputs: Sequence[Any], examples: int) -> torch.Tensor:
        """Return all real outputs side by side; `[examples, outputs]`.

        Raises:
            ScoreError: there is none, or the first axis of one does not run over the examples.
        """
        return torch.cat([outputs[i].reshape(examples, -1) for i in self.real(outputs, examples)], 1)

    def real(self, outputs: Sequence[Any], examples: int) -> list[int]:
        """Return the numbers of the outputs that are real tensors.

        Raises:
            ScoreError: there is none, or the first axis of one does not run over the examples.
        """
        found = [i for i, o in enumerate(outputs) if isinstance(o, torch.Tensor) and o.is_floating_point()]
        if not found:
            raise ScoreError("the model returns no real tensor, so it has no loss to be scored by")
        for i in found:
            if outputs[i].shape[:1] != (examples,):
                raise ScoreError(f"output {i} is {list(outputs[i].shape)}, which does not fit {examples} examples")
        return found

    def split(self, flat: torch.Tensor, outputs: Sequence[Any]) -> list[Any]:
        """Return flat outputs, or anything shaped like them, in the shapes of the outputs; others as they are."""
        result = list(outputs)
        start = 0
        for i in self.real(outputs, len(flat)):
            size = outputs[i][0].numel()
            result[i] = flat[:, start : start + size].reshape(outputs[i].shape)
            start += size
        return result

    def mean(self, flat: torch.Tensor, outputs: Sequence[Any], targets: Targets) -> torch.Tensor:
        """Return the mean loss for flat outputs, or that of the batch where it is coupled; `[]`."""
        return self.loss.mean(self.program.structure(self.split(flat, outputs)), targets)

    def means(self, flat: torch.Tensor, outputs: Sequence[Any], targets: Targets) -> torch.Tensor:
        """Return the mean loss for each of several flat outputs, all at once where the loss allows it.

        Args:
            flat: `[sets, examples, outputs]`.
            outputs: the outputs of the program.
            targets: the targets.

        Returns:
            `[sets]`.
        """
        if len(flat) == 1:
            return self.mean(flat[0], outputs, targets)[None]
        if LOSSES.get(self.loss.name) is self.loss:  # the examples of all sets make one batch
            assert isinstance(targets, torch.Tensor), "a loss with a name takes one tensor"
            every = targets.expand(len(flat), *targets.shape).flatten(0, 1)
            losses = self.loss.per_example(flat.reshape(len(every), *outputs[0].shape[1:]), every)
            return losses.reshape(len(flat), -1).mean(1)
        try:
            with warnings.catch_warnings(action="error"):  # such as that of an operator that is slow so
                return torch.vmap(lambda one: self.mean(one, outputs, targets))(flat)
        except (ArchirError, RuntimeError, Warning):  # a callable that looks at the numbers it gets
            return torch.stack([self.mean(one, outputs, targets) for one in flat])

    def check(self, outputs: Sequence[Any], targets: Targets) -> None:
        """Check the loss on a batch.

        Raises:
            ScoreError: it is not finite, or does not fit outputs and targets.
        """
        check_loss(self.loss, self.program.structure(outputs), targets)

    def gradient(self, outputs: Sequence[Any], targets: Targets) -> Pair:
        """Return the flat outputs and the gradient of each example's loss in them; `[examples, outputs]` each.

        Under a coupled loss it is the gradient of the batch's loss times the number of its examples, so that it
        counts by that number.

        Args:
            outputs: the outputs of the program.
            targets: the targets.

        Raises:
            ScoreError: the loss does not depend on the outputs, or is not finite.
        """
        flat, found = self._recorded(outputs, targets, record=False)
        return flat.detach(), found

    def hessian_product(self, outputs: Sequence[Any], targets: Targets, u: torch.Tensor) -> torch.Tensor:
        """Return `H u` for vectors in the space of the flat outputs.

        Args:
            outputs: the outputs of the program.
            targets: the targets.
            u: `[vectors, examples, outputs]`.

        Returns:
            `[vectors, examples, outputs]`.

        Raises:
            ScoreError: the loss does not depend on the outputs, or is not finite.
        """
        flat, gradient = self._recorded(outputs, targets, record=True)
        if not gradient.requires_grad:
            return torch.zeros_like(u)
        products = (torch.autograd.grad(gradient, flat, one, retain_graph=True, materialize_grads=True)[0] for one in u)
        return torch.stack(list(products))

    def _recorded(self, outputs: Sequence[Any], targets: Targets, *, record: bool) -> Pair:
        """Return the flat outputs and the gradient in them, which can be differentiated again if it was recorded."""
        examples = number_of_examples(targets)
        flat = self.flatten([o.detach() if isinstance(o, torch.Tensor) else o for o in outputs], examples)
        flat.requires_grad_()
        with torch.enable_grad():
            total = self.mean(flat, outputs, targets) * examples
            if not bool(torch.isfinite(total)):
                raise ScoreError(
                    f"the loss {self.loss.name} is {float(total.detach())} on a batch",
                    hint="check the weights, the inputs and the targets for infinite values",
                )
            if not total.requires_grad:
                raise ScoreError(f"the loss {self.loss.name} does not depend on the outputs of the model")
            (found,) = torch.autograd.grad(total, flat, create_graph=record)
        return flat, found

    def pairs(
        self,
        outputs: Sequence[Any],
        targets: Targets,
        curvature: Curvature,
        generator: torch.Generator,
        around: Around = WHOLE,
    ) -> Iterator[Pair]:
        """Yield vectors whose outer products, summed over all that are yielded, have the Hessian as their mean.

        Where the Hessian has a known root R, the sampled vector is `R ε` with random signs ε: its square is exact for
        one output, and for two classes nearly so, where sampling a label from the model is right but noisy.
        Any other loss with few outputs has its Hessian decomposed, negative eigenvalues set to zero; with many, the
        pair is (ε, H ε). Under a coupled loss the Hessian is that of the whole batch. Wherever the batch is coupled, a
        vector's inner products are to be summed over the examples before they are squared.

        Args:
            outputs: the outputs of the program.
            targets: the targets.
            curvature: how the vectors are chosen.
            generator: draws the signs.
            around: for how many examples besides these they are drawn.

        Raises:
            ScoreError: the exact curvature is asked for with more than `LARGEST_DENSE` outputs.

        Source: Hutchinson (1990) for random signs; the root for cross-entropy is ours.
        """
        if curvature is Curvature.NONE:
            return
        plain = [o.detach() if isinstance(o, torch.Tensor) else o for o in outputs]
        first = plain[self.real(plain, number_of_examples(targets))[0]]
        named = LOSSES.get(self.loss.name) is self.loss
        if curvature is Curvature.SAMPLED and named:
            assert isinstance(targets, torch.Tensor), "a loss with a name takes one tensor"
            root = _ROOTS[self.loss.name](first, targets, random_signs(first, generator, around)).reshape(
                number_of_examples(targets), -1
            )
            yield root, root
            return
        flat = self.flatten(plain, number_of_examples(targets))
        units = 1 if self.loss.coupled else len(flat)
        count = flat.numel() // units
        if count <= LARGEST_DENSE:
            roots = _dense_root(self, plain, targets, units)
            if curvature is Curvature.SAMPLED:
                signs = random_signs(flat, generator, around).reshape(units, 1, count)
                roots = (roots * signs).sum(2, keepdim=True)
            elif self.coupled:
                # What is summed over the batch before it is squared has no products of different examples in the mean.
                alone = torch.eye(units, dtype=roots.dtype, device=roots.device)[:, None, :, None]
                roots = (alone * roots[:, :, None]).reshape(units, count, -1)
            for column in roots.unbind(2):
                vector = column.reshape(flat.shape)
                yield vector, vector
        elif curvature is Curvature.SAMPLED:
            signs = random_signs(flat, generator, around)
            yield signs, self.hessian_product(plain, targets, signs[None])[0]
        else:
            raise ScoreError(
                f"the exact curvature of {count} outputs {'a batch' if self.loss.coupled else 'an example'} "
                "is not computed",
                hint=f"use the sampled one; {LARGEST_DENSE} outputs are the most",
            )


def make_objective(
    graph: Graph,
    loss: str | LossFunction | Loss,
    *,
    batch_statistics: bool = False,
    group: ProcessGroup | None = None,
) -> Objective:
    """Return a loss on top of a graph.

    Args:
        graph: the graph.
        loss: name of a loss, or a callable of outputs and targets.
        batch_statistics: normalise by the mean and the variance of the batch, as in training.
        group: processes of `torch.distributed` that share the batches out among them.

    Raises:
        ScoreError: there is no such loss, or the graph is noisy in evaluation mode.
    """
    return Objective(graph, Program(graph, batch_statistics=batch_statistics), find_loss(loss), Processes(group))


def random_signs(like: torch.Tensor, generator: torch.Generator, around: Around = WHOLE) -> torch.Tensor:
    """Return ones with random signs, in the shape and element type of `like`.

    Those of rows around these are drawn, too.
    """
    rows = around.before + len(like) + around.after
    bits = torch.randint(0, 2, (rows, *like.shape[1:]), generator=generator, dtype=torch.int8)
    return (2 * around.cut(bits) - 1).to(like)


def _dense_root(objective: Objective, outputs: Sequence[Any], targets: Targets, units: int) -> torch.Tensor:
    """Return R with `R Rᵀ = H` for every unit, negative eigenvalues left out; `[units, outputs, outputs]`."""
    flat = objective.flatten(outputs, number_of_examples(targets))
    count = flat.numel() // units
    basis = torch.eye(count, dtype=flat.dtype, device=flat.device)[:, None, :].expand(count, units, count)
    products = objective.hessian_product(outputs, targets, basis.reshape(count, *flat.shape))
    hessian = products.reshape(count, units, count).transpose(0, 1)
    values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
    found: torch.Tensor = vectors * values.clamp(min=0).sqrt()[:, None, :]
    return found


def cross_entropy_root(outputs: torch.Tensor, targets: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """Return `√p∘ε − p (√p·ε)`, whose second moment is `diag(p) − p pᵀ`, weighted as positions are in the loss.

    Raises:
        ScoreError: targets do not fit the outputs.
    """
    soft = targets.is_floating_point()
    if soft:
        check_class_probabilities(outputs, targets)
    axis = 1 if soft else class_axis(outputs, targets)
    p = outputs.softmax(axis)
    root = p.sqrt() * signs
    root = root - p * root.sum(axis, keepdim=True)
    if soft:
        positions = outputs[0].numel() // outputs.shape[axis]
        weights = targets.sum(axis, keepdim=True).clamp(min=0) / positions
    else:
        weights = label_weights(targets).unsqueeze(axis).to(root)
    return root * weights.sqrt()


def _mse_root(outputs: torch.Tensor, targets: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    return signs * math.sqrt(2 / outputs[0].numel())


def _bce_root(outputs: torch.Tensor, targets: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    p = outputs.sigmoid()
    return signs * (p * (1 - p) / outputs[0].numel()).sqrt()


_ROOTS = {"cross_entropy": cross_entropy_root, "mse": _mse_root, "bce_with_logits": _bce_root}
