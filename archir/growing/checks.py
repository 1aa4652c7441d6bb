"""Finds what would spoil a run in its examples, model and loss, and where, before the run begins.

Of a split that is not in memory some examples are looked at; the others are checked when they are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from archir.errors import FileError, GrowError, ScoreError
from archir.growing.batches import Batches
from archir.growing.examples import Examples, Split, sample
from archir.growing.training import call, differentiating, evaluating
from archir.scoring.losses import NO_LABEL, Loss, check_probabilities, class_axis, is_unknown, labels_of
from archir.scoring.targets import tensors_of


def labelled(split: Examples, loss: Loss) -> torch.Tensor:
    """Return the numbers of the examples of a split that have a label, or of all where the loss takes no labels."""
    labels = labels_of(split.targets, loss)
    return (
        torch.arange(len(split))
        if labels is None
        else (labels != NO_LABEL).reshape(len(split), -1).any(1).nonzero()[:, 0]
    )


def first_labelled(split: Split, loss: Loss, order: torch.Tensor, most: int) -> Examples | None:
    """Return the first examples of a split that have a label, in memory; any counts where the loss takes no labels.

    Args:
        split: the split; it is read only until enough are found.
        loss: tells what a label is.
        order: numbers of its examples, in which they are looked for; `[numbers]`.
        most: how many are returned at most.

    Returns:
        The examples, None if none has a label.

    Raises:
        FileError: they cannot be read.
        GrowError: code of the user's that reads them fails.
    """
    found = order[:0]
    for numbers in torch.split(order, most):
        some = split.take(numbers)
        kept = numbers[labelled(some, loss)]
        if not len(found) and len(kept) == most:
            return some
        found = torch.cat((found, kept))[:most]
        if len(found) == most:
            break
    return split.take(found) if len(found) else None


def held_out(validation: Split, loss: Loss, most: int, seed: int) -> tuple[Examples, Examples]:
    """Return two disjoint parts of the validation split, of labelled examples: to select on, and to check on.

    Args:
        validation: the split.
        loss: tells what a label is.
        most: examples of each part at most.
        seed: of which they are.

    Raises:
        GrowError: it is too small.
    """
    order = torch.randperm(len(validation), generator=torch.Generator().manual_seed(seed))
    found = first_labelled(validation, loss, order, 2 * most)
    size = len(found) // 2 if found else 0
    if found is None or size < 1:
        raise GrowError("the validation split is too small to select on one part and check on another")
    return found.take(slice(0, size)), found.take(slice(size, 2 * size))


def check_examples(module: nn.Module, loss: Loss, batch_size: int, splits: Mapping[str, Split]) -> None:
    """Check the examples of a run, and that the loss of the first batch of each split can be minimised.

    Args:
        module: the network; its mode is left as it was.
        loss: what is minimised.
        batch_size: examples of a batch.
        splits: the examples, by the names errors call them.

    Raises:
        FileError: inputs or targets are not numbers, or infinite; labels are no classes of the model; the model does
            not take some whole numbers; or probabilities are none; or examples cannot be read.
        GrowError: nothing is labelled, the model rejects a batch, code of the user's that reads examples fails, or the
            loss is not finite, has no gradient, or does not depend on the weights.
        ScoreError: outputs and targets do not fit the loss.
    """
    for name, split in splits.items():
        seen, numbers = sample(split)
        with _numbered(split, numbers):
            _check_finite(seen, name)
            _check_probabilities(seen, loss, name)
        if first_labelled(split, loss, torch.arange(len(split)), LOOKED_FOR) is None:
            raise GrowError(f"no example of the {name} data has a label", where=split.where)
        inputs, targets = next(iter(Batches(split, batch_size)))
        with evaluating(module):
            outputs = call(module, inputs)
            with _numbered(split, numbers):
                _check_labels(seen, outputs[: len(seen)] if isinstance(outputs, torch.Tensor) else outputs, loss, name)
                _check_whole_inputs(module, seen, len(next(t for _, t in tensors_of(targets))), name)
            value = loss(outputs, targets)
            if not bool(torch.isfinite(value.detach()).all()):
                raise GrowError(f"the loss {loss.name} of the first {name} batch is {float(value.detach().mean())}")
            _check_gradient(module, loss, value)


LOOKED_FOR = 256
"""How many examples are read at once to find one that has a label."""


@contextmanager
def _numbered(split: Split, numbers: torch.Tensor) -> Iterator[None]:
    """Tell the numbers that examples have in a split in place of those among the ones that are looked at."""
    try:
        yield
    except FileError as error:
        if isinstance(split, Examples):
            raise
        where = re.sub(r"(?<=example )\d+", lambda found: str(int(numbers[int(found[0])])), error.where)
        raise FileError(error.what, where=where, why=error.why, hint=error.hint) from error


def _check_gradient(module: nn.Module, loss: Loss, value: torch.Tensor) -> None:
    """Check that the loss of a batch has a gradient; none is left in the weights."""
    weights = [p for p in module.parameters() if p.requires_grad]
    with differentiating(loss, value):
        found = torch.autograd.grad(value, weights, allow_unused=True) if weights else ()
    if weights and all(g is None for g in found):
        raise GrowError(f"the loss {loss.name} depends on none of the weights of the model")


def _check_probabilities(split: Examples, loss: Loss, name: str) -> None:
    try:
        check_probabilities(loss, split.targets)
    except ScoreError as error:
        raise FileError(error.what, where=f"{error.where} of the {name} data, {split!r}", hint=error.hint) from error


def _check_whole_inputs(module: nn.Module, split: Examples, size: int, name: str) -> None:
    """Check that the model takes the smallest and the largest of whole numbers: those of tokens number rows of a table.

    Every batch is as large as the first, since a model may take no others.
    """
    parts = {"inputs": split.inputs} if isinstance(split.inputs, torch.Tensor) else split.inputs
    for part, tensor in parts.items():
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool or not tensor.numel():
            continue
        flat = tensor.reshape(len(tensor), -1)
        for example in {int(flat.amin(1).argmin()), int(flat.amax(1).argmax())}:
            rest = (torch.arange(size) + example) % len(split)
            try:
                with torch.no_grad():
                    call(module, split.take(rest).inputs)
            except GrowError as error:
                low, high = int(flat[example].min()), int(flat[example].max())
                raise FileError(
                    f"the model rejects an example of the {name} data, whose {part} run from {low} to {high}",
                    where=f"example {example} of {split!r}, or one of the {size - 1} after it",
                    why=error.why,
                    hint="numbers of tokens start at 0, and are below the number of rows of the embedding",
                ) from error


def _check_finite(split: Examples, name: str) -> None:
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
                    hint="leave such examples out, or put numbers in their place",
                )


def _check_labels(split: Examples, outputs: object, loss: Loss, name: str) -> None:
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
            hint=f"class numbers start at 0; {NO_LABEL} leaves a position out",
        )
