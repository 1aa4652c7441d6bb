"""The losses that models of transformers are trained on, one loss an example, as growth steps take them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from archir.errors import GrowError
from archir.scoring.losses import NO_LABEL, Loss, find_loss, label_weights

CLASSIFIERS = ("SequenceClassification", "ImageClassification", "VideoClassification", "AudioClassification")
"""How the names of classes that return one row of logits an example end, after `For`."""

TAGGERS = ("TokenClassification", "MaskedLM")
"""The same of classes that return one for each position."""


def loss_of_model(model: nn.Module, *, causal: bool) -> Loss:
    """Return the loss of a model that is trained to give its labels, the mean over examples of one for each.

    Positions without a label (-100) are left out. Where examples have different numbers of labels each example counts
    the same, while transformers has each label count the same. Labels of a causal model are those of the next position.

    Args:
        model: a `PreTrainedModel` whose outputs hold `logits`.
        causal: whether it predicts the next token.

    Raises:
        GrowError: which loss the model is trained on is not known.
    """
    kind = type(model).__name__.rpartition("For")[2]
    if causal:
        return find_loss(next_token)
    if kind in TAGGERS:
        return find_loss(every_position)
    if kind in CLASSIFIERS:
        config: Any = model.config
        problem = config.problem_type or ("regression" if config.num_labels == 1 else "")
        return find_loss(
            {"regression": regression, "multi_label_classification": several_classes}.get(problem, one_class)
        )
    raise GrowError(
        f"it is not known which loss a {type(model).__name__} is trained on",
        hint='give one of its outputs and the labels as loss=, such as lambda outputs, y: f(outputs["logits"], y)',
    )


def next_token(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the losses of the examples where every position predicts the label of the next one."""
    return _over_positions(outputs["logits"][:, :-1], labels[:, 1:])


def every_position(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the losses of the examples where every position has a label of its own, or none."""
    return _over_positions(outputs["logits"], labels)


def one_class(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the losses of the examples where each is of one class, or where labels are truth values of several."""
    several = labels.is_floating_point() and labels.dim() > 1
    return find_loss("bce_with_logits" if several else "cross_entropy").per_example(outputs["logits"], labels)


def several_classes(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the losses of the examples where each is of several classes."""
    return find_loss("bce_with_logits").per_example(outputs["logits"], labels)


def regression(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the losses of the examples where labels are real numbers."""
    return find_loss("mse").per_example(outputs["logits"], labels)


def _over_positions(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    losses = F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none", ignore_index=NO_LABEL)
    return (losses * label_weights(labels).to(losses)).flatten(1).sum(1)
