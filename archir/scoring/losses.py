"""Losses by name or from any callable: per example for the scorer, as a mean for training; coupled ones of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from archir.errors import ArchirError, ScoreError, suggest
from archir.scoring.outputs import Outputs
from archir.scoring.targets import Targets, map_tensors, tensors_of

LossFunction = Callable[[Any, Any], torch.Tensor]
"""A function of a model's outputs and the targets (`Targets`), as a batch holds them."""

NO_LABEL = -100
"""The class number of a position that has no label, as in PyTorch."""


@dataclass(frozen=True)
class Loss:
    """A loss of the outputs and the targets of a batch.

    Most are means over examples. A coupled one is a function of the whole batch; over several batches each counts by
    the number of its examples.

    Attributes:
        name: its name in configurations and reports.
        per_example: losses of the examples of a batch, in nats for likelihoods: `(outputs, targets) -> [batch]`;
            raises a ScoreError for a coupled loss.
        mean: mean over the examples of a batch, or the coupled loss of the batch: `(outputs, targets) -> []`.
        coupled: whether the loss of a batch is no mean over its examples.
    """

    name: str
    per_example: LossFunction
    mean: LossFunction
    coupled: bool = False

    def __call__(self, outputs: Any, targets: Targets) -> torch.Tensor:
        """Return the loss of a batch, the mean over its examples if it is not coupled.

        Raises:
            ScoreError: it is not one number, or outputs and targets do not fit it.
        """
        return _scalar(self.name, self.mean(outputs, targets))


def coupled(function: LossFunction) -> Loss:
    """Return the loss of a callable that couples the examples of a batch, as contrastive losses do.

    A batch is then scored as one unit: what a rewrite does is summed over its examples before it is squared, and
    standard errors are over batches. Its value may depend on the size of the batch; score with the size trained with.

    Args:
        function: returns the loss of a whole batch, a scalar: `(outputs, targets) -> []`; may be decorated by this.

    Source: ours.
    """
    name = _name(function)

    def per_example(outputs: Any, targets: Targets) -> torch.Tensor:
        raise ScoreError(f"the loss {name} couples the examples of a batch, so a single one has none")

    def mean(outputs: Any, targets: Any) -> torch.Tensor:
        return _called(function, outputs, targets)

    return Loss(name, per_example, mean, coupled=True)


def find_loss(spec: str | LossFunction | Loss) -> Loss:
    """Return the loss of a name, or make one of a callable.

    A callable takes `(outputs, targets)`, outputs as the model returns them (mappings as `Outputs`), and returns either
    the losses of the examples, `[batch]`, or their mean, a scalar. The per-example losses of a scalar one are found by
    calling it on batches of one, which is slower and right only if it is a mean over examples (`check_loss` tests
    that). A scalar of the whole batch that is no such mean is declared by `coupled`.

    Args:
        spec: `cross_entropy`, `mse`, `bce_with_logits`, a callable, or a loss.

    Raises:
        ScoreError: there is no loss of that name.
    """
    if isinstance(spec, Loss):
        return spec
    if callable(spec):
        return _from_callable(spec)
    if not isinstance(spec, str):
        raise ScoreError(f"a {type(spec).__name__} is no loss", hint=f"give a callable, or one of {', '.join(LOSSES)}")
    if spec not in LOSSES:
        raise ScoreError(f"there is no loss {spec!r:.80}", hint=suggest(spec, LOSSES))
    return LOSSES[spec]


def check_loss(loss: Loss, outputs: Any, targets: Targets) -> None:
    """Check a loss on a batch: shapes, finiteness, and that the mean is the mean of the per-example losses.

    Of a coupled loss: that it is one finite number.

    Raises:
        ScoreError: it cannot be used on these outputs and targets.
    """
    if loss.coupled:
        _check_coupled(loss, outputs, targets)
        return
    check_probabilities(loss, targets)
    with torch.no_grad():
        parts, mean = loss.per_example(outputs, targets), loss.mean(outputs, targets)
    examples = next(len(t) for _, t in tensors_of(targets))
    if parts.shape != (examples,) or mean.dim() != 0:
        raise ScoreError(
            f"the loss {loss.name} returns {list(parts.shape)} and {list(mean.shape)} for {examples} examples",
            hint="return one loss an example, [batch], or their mean, a scalar",
        )
    check_finite(loss, parts)
    tolerance = 1e-3 * float(parts.abs().mean()) + 1e-6
    if abs(float(parts.mean() - mean)) > tolerance:
        raise ScoreError(
            f"the loss {loss.name} is not a mean over examples",
            why=f"it is {float(mean):.6g} on a batch whose examples have the mean {float(parts.mean()):.6g}",
            hint="return the losses of the examples, [batch], or declare a loss of the whole batch by archir.coupled",
        )


@torch.no_grad()
def _check_coupled(loss: Loss, outputs: Any, targets: Targets) -> None:
    found = loss.mean(outputs, targets)
    if not isinstance(found, torch.Tensor) or found.dim() != 0:
        raise ScoreError(
            f"the coupled loss {loss.name} returns {_kind(found)}",
            hint="return one number for the batch, a scalar tensor; one loss an example needs no archir.coupled",
        )
    if not bool(torch.isfinite(found)):
        raise ScoreError(f"the loss {loss.name} is {float(found)} on a batch")


def check_probabilities(loss: Loss, targets: Targets) -> None:
    """Check that targets that a loss takes for probabilities lie from 0 to 1.

    Raises:
        ScoreError: one does not.
    """
    binary = loss is LOSSES["bce_with_logits"]
    if not isinstance(targets, torch.Tensor) or not (binary or loss is LOSSES["cross_entropy"]):
        return
    wrong = (targets < 0) | (targets > 1)
    if (binary or targets.is_floating_point()) and bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        raise ScoreError(
            f"a target of the loss {loss.name} is {float(targets[tuple(place)]):.6g}, not a probability from 0 to 1",
            where=f"example {place[0]}{f', position {place[1:]}' if place[1:] else ''}",
            hint="bring the targets into that range, or take mse for other values",
        )


def check_finite(loss: Loss, parts: torch.Tensor) -> None:
    """Check that the losses of the examples of a batch, `[batch]`, are finite.

    Raises:
        ScoreError: one is not.
    """
    if not bool(torch.isfinite(parts).all()):
        bad = int((~torch.isfinite(parts)).nonzero()[0])
        raise ScoreError(f"the loss {loss.name} is {float(parts[bad])}", where=f"example {bad} of the batch")


def class_axis(outputs: torch.Tensor, targets: torch.Tensor) -> int:
    """Return the axis of the outputs that runs over the classes, for integer targets: 1, or the last.

    Args:
        outputs: logits, `[batch, classes, ...]` or `[batch, ..., classes]`.
        targets: class numbers, `[batch, ...]`.

    Raises:
        ScoreError: neither fits, or both do.
    """
    second = outputs.dim() > 1 and outputs.shape[:1] + outputs.shape[2:] == targets.shape
    last = outputs.dim() > 1 and outputs.shape[:-1] == targets.shape
    if second and last and outputs.dim() > 2:
        raise ScoreError(
            f"the class axis of outputs {list(outputs.shape)} with targets {list(targets.shape)} is ambiguous",
            hint="give a callable loss that moves the classes to axis 1",
        )
    if not second and not last:
        raise ScoreError(
            f"outputs {list(outputs.shape)} do not fit class numbers {list(targets.shape)}",
            hint="outputs should be [batch, classes, ...] or [batch, ..., classes]",
        )
    return 1 if second else outputs.dim() - 1


def check_class_probabilities(outputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Check that probabilities of classes, which targets of real numbers are, have the shape of the outputs.

    Raises:
        ScoreError: they have another one.
    """
    if targets.shape != outputs.shape:
        raise ScoreError(
            f"class probabilities {list(targets.shape)} do not fit outputs {list(outputs.shape)}",
            hint="class numbers are whole numbers: give targets.long() if these are such",
        )


def labels_of(targets: Targets, loss: Loss) -> torch.Tensor | None:
    """Return the class numbers of targets, `[examples, ...]`, None where the loss does not take them for that."""
    if loss is not LOSSES["cross_entropy"] or not isinstance(targets, torch.Tensor) or targets.is_floating_point():
        return None
    return targets


def label_weights(labels: torch.Tensor) -> torch.Tensor:
    """Return what every position counts in the cross-entropy of its example, in float64.

    That is one over the number of labelled positions of the example, and zero where the label is `NO_LABEL`. So the
    loss of an example is the mean over its labelled positions, zero if it has none, and the loss of a batch is the
    mean over all its examples, whatever the number of labels of each.

    Args:
        labels: class numbers, `[batch, ...]`.

    Returns:
        `[batch, ...]`.
    """
    labelled = (labels != NO_LABEL).double()
    positions = tuple(range(1, labels.dim()))
    return labelled / labelled.sum(positions, keepdim=True).clamp(min=1) if positions else labelled


def _cross_entropy(outputs: Any, given: Any) -> torch.Tensor:
    logits, targets = _tensor("cross_entropy", outputs), _target("cross_entropy", given)
    if targets.is_floating_point():
        check_class_probabilities(logits, targets)
        losses = F.cross_entropy(logits, targets, reduction="none")
    else:
        labels, scores = targets.long(), logits.movedim(class_axis(logits, targets), 1)
        try:
            losses = F.cross_entropy(scores, labels, reduction="none", ignore_index=NO_LABEL)
        except IndexError as error:
            raise unknown_classes(labels, scores.shape[1]) from error
        losses = losses * label_weights(labels).to(losses)
        return losses if losses.dim() == 1 else losses.flatten(1).sum(1)
    return _over_positions(losses)


def is_unknown(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Say which labels, `[batch, ...]`, are neither one of so many class numbers nor `NO_LABEL`."""
    return (labels != NO_LABEL) & ((labels < 0) | (labels >= classes))


def unknown_classes(labels: torch.Tensor, classes: int) -> ScoreError:
    """Return the error for class numbers that a model does not have; it names the first example with one."""
    found = labels[labels != NO_LABEL]
    first = int(is_unknown(labels, classes).nonzero()[0, 0])
    return ScoreError(
        f"class numbers run from {int(found.min())} to {int(found.max())}, the model has {classes}",
        where=f"example {first} of the batch",
        hint=f"class numbers start at 0; {NO_LABEL} leaves a position out",
    )


def _mse(outputs: Any, targets: Any) -> torch.Tensor:
    values = _tensor("mse", outputs)
    return _over_positions((values - _like(values, targets, "mse")) ** 2)


def _bce_with_logits(outputs: Any, targets: Any) -> torch.Tensor:
    logits = _tensor("bce_with_logits", outputs)
    wanted = _like(logits, targets, "bce_with_logits")
    return _over_positions(F.binary_cross_entropy_with_logits(logits, wanted, reduction="none"))


def _tensor(name: str, outputs: Any) -> torch.Tensor:
    if not isinstance(outputs, torch.Tensor):
        raise ScoreError(
            f"the loss {name} takes one tensor, the model returns a {type(outputs).__name__}",
            hint="give a callable loss that picks the part it needs",
        )
    return outputs


def _target(name: str, targets: Any) -> torch.Tensor:
    if not isinstance(targets, torch.Tensor):
        raise ScoreError(
            f"the loss {name} takes one tensor of targets, the batch has a {type(targets).__name__}",
            hint="give a callable loss that picks the part it needs",
        )
    return targets


def _like(values: torch.Tensor, given: Any, name: str) -> torch.Tensor:
    """Return the targets in the shape of the outputs, where they differ by axes of size 1 only."""
    targets = _target(name, given)
    if [s for s in values.shape[1:] if s != 1] != [s for s in targets.shape[1:] if s != 1] or len(values) != len(
        targets
    ):
        raise ScoreError(f"the loss {name} cannot compare outputs {list(values.shape)} with {list(targets.shape)}")
    return targets.reshape(values.shape).to(values.dtype)


def _over_positions(losses: torch.Tensor) -> torch.Tensor:
    return losses if losses.dim() == 1 else losses.flatten(1).mean(1)


def _mean_of(per_example: LossFunction) -> LossFunction:
    def mean(outputs: Any, targets: Any) -> torch.Tensor:
        return per_example(outputs, targets).mean()

    return mean


def _from_callable(function: LossFunction) -> Loss:
    name = _name(function)

    def losses(outputs: Any, targets: Any) -> torch.Tensor:
        found, examples = _called(function, outputs, targets), next(len(t) for _, t in tensors_of(targets))
        if found.dim() and found.shape != (examples,):
            raise ScoreError(
                f"the loss {name} returns {list(found.shape)} for {examples} examples",
                hint="return one loss an example, [batch], or their mean, a scalar",
            )
        return found

    def mean(outputs: Any, targets: Any) -> torch.Tensor:
        return losses(outputs, targets).mean()

    def per_example(outputs: Any, targets: Any) -> torch.Tensor:
        found = losses(outputs, targets)
        if found.dim() > 0:
            return found
        count = next(len(t) for _, t in tensors_of(targets))
        return torch.stack([losses(_one(outputs, i), _one(targets, i)).mean() for i in range(count)])

    return Loss(name, per_example, mean)


def _called(function: LossFunction, outputs: Any, targets: Any) -> torch.Tensor:
    """Return what a user's loss returns, which must be a tensor of real numbers.

    Raises:
        ScoreError: it fails, or returns something else.
    """
    name = _name(function)
    try:
        found: object = function(Outputs(outputs) if type(outputs) is dict else outputs, targets)
    except ArchirError:
        raise
    except Exception as error:  # whatever the user's code raises
        shapes = ", ".join(
            f"{part} {list(t.shape)} {t.dtype}" if isinstance(t, torch.Tensor) else f"{part} {type(t).__name__}"
            for part, t in (*tensors_of(outputs, "outputs"), *tensors_of(targets))
        )
        why = f"{type(error).__name__}: {error}"
        raise ScoreError(f"the loss {name} fails on a batch", where=shapes, why=why) from error
    if not isinstance(found, torch.Tensor) or not found.is_floating_point():
        raise ScoreError(
            f"the loss {name} returns {_kind(found)}",
            hint="return a tensor of losses made of the outputs by operations of torch",
        )
    return found


def _scalar(name: str, found: object) -> torch.Tensor:
    """Return the loss of a batch, which must be one number, a tensor."""
    if not isinstance(found, torch.Tensor) or found.dim() != 0 or not found.is_floating_point():
        raise ScoreError(
            f"the loss {name} of a batch is {_kind(found)}, not one number",
            hint="return a scalar tensor made of the outputs by operations of torch",
        )
    return found


def _kind(found: object) -> str:
    """Return what a loss returned, as a message says it."""
    if not isinstance(found, torch.Tensor):
        return f"a {type(found).__name__}"
    return f"{list(found.shape)}" if found.is_floating_point() else f"a tensor of {found.dtype}"


def _name(function: LossFunction) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _one(batch: Any, example: int) -> Any:
    return map_tensors(lambda t: t[example : example + 1], batch)


LOSSES = {
    name: Loss(name, function, _mean_of(function))
    for name, function in (("cross_entropy", _cross_entropy), ("mse", _mse), ("bce_with_logits", _bce_with_logits))
}
"""The losses that have names."""
