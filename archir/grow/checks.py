"""Finds what would spoil a run in its examples, model and loss, and where, before the run begins."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from archir.errors import FileError, GrowError
from archir.grow.batches import Batches
from archir.grow.split import Split
from archir.grow.training import call, evaluating
from archir.score.losses import NO_LABEL, Loss, class_axis, is_unknown, labels_of
from archir.score.targets import tensors_of


def labelled(split: Split, loss: Loss) -> torch.Tensor:
    """Return the numbers of the examples of a split that have a label, or of all where the loss takes no labels."""
    labels = labels_of(split.targets, loss)
    return (
        torch.arange(len(split))
        if labels is None
        else (labels != NO_LABEL).reshape(len(split), -1).any(1).nonzero()[:, 0]
    )


def check_examples(module: nn.Module, loss: Loss, batch_size: int, splits: Mapping[str, Split]) -> None:
    """Check the examples of a run, and that the loss of the first batch of each split can be minimised.

    Args:
        module: the network; its mode is left as it was.
        loss: what is minimised.
        batch_size: examples of a batch.
        splits: the examples, by the names errors call them.

    Raises:
        FileError: inputs or targets are not numbers, or infinite; or labels are no classes of the model.
        GrowError: nothing is labelled, the model rejects a batch, or the loss is not finite or does not depend on
            its outputs.
        ScoreError: outputs and targets do not fit the loss.
    """
    for name, split in splits.items():
        _check_finite(split, name)
        if not len(labelled(split, loss)):
            raise GrowError(f"no example of the {name} data has a label", where=split.where)
        inputs, targets = next(iter(Batches(split, batch_size)))
        with evaluating(module):
            outputs = call(module, inputs)
            _check_labels(split, outputs, loss, name)
            value = loss(outputs, targets)
        if not bool(torch.isfinite(value.detach()).all()):
            raise GrowError(f"the loss {loss.name} of the first {name} batch is {float(value.detach().mean())}")
        if not value.requires_grad:
            raise GrowError(
                f"the loss {loss.name} does not depend on the weights",
                why="it is cut off from the outputs of the model: by detach, item, numpy, or no_grad",
                mend="make it of the outputs by operations of torch",
            )


def _check_finite(split: Split, name: str) -> None:
    parts = {**dict(tensors_of(split.inputs, "inputs")), **dict(tensors_of(split.targets))}
    for part, tensor in parts.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum())):
            # Masks that are added to scores are infinite by right; where there is one input, it is no mask.
            several = isinstance(split.inputs, Mapping) and part.startswith("inputs")
            wrong = torch.isnan(tensor) if several else ~torch.isfinite(tensor)
            if bool(wrong.any()):
                place = wrong.nonzero()[0].tolist()
                raise FileError(
                    f"the {part} of the {name} data hold {float(tensor[tuple(place)])}",
                    where=f"example {place[0]}{f', position {place[1:]}' if place[1:] else ''} of {split!r}",
                    mend="leave such examples out, or put numbers in their place",
                )


def _check_labels(split: Split, outputs: object, loss: Loss, name: str) -> None:
    labels = labels_of(split.targets, loss)
    if labels is None or not isinstance(outputs, torch.Tensor):
        return
    first = labels[: len(outputs)]
    classes = outputs.shape[class_axis(outputs, first)] if len(first) == len(outputs) else 0
    wrong = is_unknown(labels, classes)
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        raise FileError(
            f"a label of the {name} data is {int(labels[tuple(place)])}, the model has {classes} classes",
            where=f"example {place[0]}{f', position {place[1:]}' if place[1:] else ''} of {split!r}",
            mend=f"class numbers start at 0; {NO_LABEL} leaves a position out",
        )
