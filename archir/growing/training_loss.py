"""What training minimises in place of the loss: smoothed labels, and mixes of two examples."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from archir.errors import GrowError
from archir.scoring.losses import LOSSES, Loss, LossFunction, class_axis, label_weights
from archir.scoring.targets import Targets


class Mixed(NamedTuple):
    """The targets of a batch whose inputs are mixes of two examples each.

    Attributes:
        first: targets of the first ones.
        second: targets of the second ones.
        share: part of the first in each mix, the same for the whole batch; `[batch]`.
    """

    first: Targets
    second: Targets
    share: torch.Tensor


def training_loss(loss: Loss, *, smoothing: float = 0.0, mixup: float = 0.0) -> LossFunction:
    """Return what training minimises where a loss is measured: a function of outputs and targets.

    With smoothed labels it is `(1 - smoothing) loss + smoothing u`, where `u` is the cross-entropy of labels that are
    spread evenly over the classes. Of targets that are `Mixed` it is `share l(first) + (1 - share) l(second)`.

    Args:
        loss: the loss.
        smoothing: part of every label that is spread over the classes.
        mixup: above 0 if examples are mixed.

    Raises:
        GrowError: labels cannot be smoothed since the loss is not `cross_entropy`, or examples cannot be mixed since
            it is coupled; both at once.

    Source: Szegedy et al., Rethinking the Inception Architecture for Computer Vision (2016), section 7; Zhang et al.,
        mixup: Beyond Empirical Risk Minimization (2018).
    """
    wrong = []
    if smoothing and loss is not LOSSES["cross_entropy"]:
        wrong.append(f"label_smoothing is {smoothing}, and only cross_entropy takes labels")
    if mixup and loss.coupled:
        wrong.append(f"mixup is {mixup}, and the loss is no mean over examples")
    if wrong:
        hint = "turn it off, or let the loss itself do so" if len(wrong) == 1 else "turn them off"
        raise GrowError(f"the loss {loss.name} does not fit the training", why="; ".join(wrong), hint=hint)

    def smoothed(outputs: Any, targets: Any) -> torch.Tensor:
        plain = loss(outputs, targets)
        return (1 - smoothing) * plain + smoothing * _even(outputs, targets) if smoothing else plain

    def mixed(outputs: Any, targets: Any) -> torch.Tensor:
        if not isinstance(targets, Mixed):
            return smoothed(outputs, targets)
        share = float(targets.share[0])
        return share * smoothed(outputs, targets.first) + (1 - share) * smoothed(outputs, targets.second)

    return mixed


def _even(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of labels spread evenly over all classes, where the targets have one."""
    if targets.is_floating_point():
        return -logits.log_softmax(1).mean()
    losses = -logits.log_softmax(axis := class_axis(logits, targets)).mean(axis)
    return (losses * label_weights(targets).to(losses)).sum() / len(targets)
