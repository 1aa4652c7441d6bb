"""Finds what would spoil a run in its examples, model and loss, and where, before the run begins.

Of a split that is not in memory some examples are looked at. The others are checked when they are read: whether they
are finite, are probabilities where the loss takes such, and are classes of the model. What the model itself rejects,
such as tokens without a row in its embedding, is told when it meets it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from archir.errors import FileError, GrowError, ScoreError
from archir.growing.batches import Batches
from archir.growing.device import device_of, sent
from archir.growing.examples import AT_ONCE, Examples, Split, looked_at
from archir.growing.iterated import Iterated
from archir.growing.options import GrowOptions
from archir.growing.precision import half_type
from archir.growing.ragged import Ragged, joined, together
from archir.growing.training import call, differentiating, evaluating, outputs_in
from archir.scoring.losses import LOSSES, NO_LABEL, Loss, check_probabilities, class_axis, is_unknown, labels_of
from archir.scoring.processes import ALONE, Processes
from archir.scoring.targets import Targets, map_tensors, tensors_of


def labelled(split: Examples, loss: Loss) -> torch.Tensor:
    """Return the numbers of the examples of a split that have a label, or of all where the loss takes no labels."""
    labels = labels_of(split.targets, loss)
    return (
        torch.arange(len(split))
        if labels is None
        else (labels != NO_LABEL).reshape(len(split), -1).any(1).nonzero()[:, 0]
    )


Held = Examples | Ragged
"""Examples in memory, of one shape or of several."""


def first_labelled(split: Split, loss: Loss, most: int, order: torch.Tensor | None = None) -> Examples | None:
    """Return the first examples of a split that have a label, in memory; any counts where the loss takes no labels.

    Args:
        split: the split; it is read only until enough are found.
        loss: tells what a label is.
        most: how many are returned at most.
        order: numbers of its examples, in which they are looked for, `[numbers]`; from the first on if not given, as
            they have to be in what can only be iterated.

    Returns:
        The examples, None if none has a label.

    Raises:
        FileError: they cannot be read.
        GrowError: code of the user's that reads them fails.
        ScoreError: they are neither pairs nor mappings with targets.
    """
    if isinstance(split, Iterated):
        return _first_iterated(split, loss, most)
    order = torch.arange(len(split)) if order is None else order
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


def _first_iterated(split: Iterated, loss: Loss, most: int) -> Examples | None:
    found = split.first.take(kept) if len(kept := labelled(split.first, loss)) else None
    if found is None or len(found) < most:
        parts, count = list[Examples](), 0
        for batch in split.one_pass(LOOKED_FOR):
            if len(kept := labelled(batch, loss)):
                parts.append(batch.take(kept))
                count += len(kept)
            if count >= most:
                break
        if split.varies and parts:
            return _of_one_shape(joined(parts), most)
        found = together(parts) if parts else None
    return found and found.take(slice(most))


def _of_one_shape(found: Examples | Ragged, most: int) -> Examples:
    """Return some examples of the first shape there is."""
    return (found if isinstance(found, Examples) else found.pieces[0]).take(slice(most))


def held_out(validation: Split, loss: Loss, most: int, seed: int) -> tuple[Held, Held]:
    """Return two disjoint parts of the validation split, of labelled examples: to select on, and to check on.

    Both are in memory, whether the split is or not. Of what can only be iterated all of a pass is read for them.

    Args:
        validation: the split.
        loss: tells what a label is.
        most: examples of each part at most.
        seed: of which they are.

    Raises:
        FileError: its examples cannot be read.
        GrowError: it is too small, or code of the user's that reads it fails.
        ScoreError: its examples are neither pairs nor mappings with targets.
    """
    generator = torch.Generator().manual_seed(seed)
    found: Held | None
    if isinstance(validation, Iterated):
        found = _drawn(validation, loss, 2 * most, generator)
    else:
        order = torch.randperm(len(validation), generator=generator)
        found = first_labelled(validation, loss, 2 * most, order)
    size = len(found) // 2 if found else 0
    if found is None or size < 1:
        raise GrowError("the validation split is too small to select on one part and check on another")
    if isinstance(found, Ragged):
        order = torch.randperm(len(found), generator=generator)  # of every shape some for each
        return found.part(order[:size].sort().values), found.part(order[size : 2 * size].sort().values)
    return found.take(slice(0, size)), found.take(slice(size, 2 * size))


def _drawn(split: Iterated, loss: Loss, most: int, generator: torch.Generator) -> Held | None:
    """Return some labelled examples of a pass, each as likely as any other: those with the least of random keys.

    Source: Efraimidis and Spirakis, Weighted random sampling with a reservoir (2006), with all weights alike.
    """
    held, bound = list[tuple[Examples, torch.Tensor]](), torch.inf
    for batch in split.one_pass(LOOKED_FOR):
        kept = labelled(batch, loss)
        fresh = torch.rand(len(kept), generator=generator, dtype=torch.float64)
        low = fresh < bound
        if not bool(low.any()):
            continue
        held.append((batch.take(kept[low]), fresh[low]))
        keys = torch.cat([own for _, own in held])
        if len(keys) >= most:
            bound = float(keys.sort().values[most - 1])
            held = [(part.take(own <= bound), own[own <= bound]) for part, own in held if bool((own <= bound).any())]
    if not held:
        return None
    found = (joined if split.varies else together)([part for part, _ in held])
    return found.take(torch.cat([own for _, own in held]).argsort()) if isinstance(found, Examples) else found


def check_examples(
    module: nn.Module,
    loss: Loss,
    batch_size: int,
    splits: Mapping[str, Split],
    *,
    precision: str = "float32",
    processes: Processes = ALONE,
) -> None:
    """Check the examples of a run, and that the loss of the first batch of each split can be minimised.

    Each process takes its share of that batch, as in training; a coupled loss is of the whole one.

    Args:
        module: the network; its mode is left as it was.
        loss: what is minimised.
        batch_size: examples of a batch.
        splits: the examples, by the names errors call them.
        precision: what the outputs of training steps are computed in.
        processes: those that share batches out among them.

    Raises:
        FileError: inputs or targets are not numbers, or infinite; labels are no classes of the model; the model does
            not take some whole numbers; or probabilities are none; or examples cannot be read.
        GrowError: nothing is labelled, the model rejects a batch, code of the user's that reads examples fails, or the
            loss is not finite, has no gradient, or does not depend on the weights.
        ScoreError: outputs and targets do not fit the loss, or examples are neither pairs nor mappings with targets.
    """
    half, sharing = half_type(module, precision), ALONE if loss.coupled else processes
    for name, split in splits.items():
        seen = [_look_at(some, numbers, loss, f"the {name} data", repr(split)) for some, numbers in looked_at(split)]
        at_once = LOOKED_FOR if isinstance(split, Examples) else AT_ONCE
        if first_labelled(split, loss, at_once) is None:
            raise GrowError(f"no example of the {name} data has a label", where=split.where)
        inputs, targets = next(iter(Batches(split, batch_size, device=device_of(module), processes=sharing)))
        with evaluating(module):
            outputs = outputs_in(module, inputs, half=half)
            _check_labels(split, seen, outputs, targets, loss, name)
            _check_whole_inputs(module, split, seen, len(next(t for _, t in tensors_of(targets))), name)
            value = loss(outputs, targets)
            if not bool(torch.isfinite(value.detach()).all()):
                raise GrowError(f"the loss {loss.name} of the first {name} batch is {float(value.detach().mean())}")
            _check_gradient(module, loss, value)


def check_shares(train: Split, validation: Split, loss: Loss, options: GrowOptions, processes: Processes) -> None:
    """Check that each process has an example of every batch.

    Raises:
        FileError: examples cannot be read.
        GrowError: there are too many processes for the batches of training, or of a growth step, or too few examples of
            the validation split have a label.
        ScoreError: examples are neither pairs nor mappings with targets.
    """
    smallest = min(options.batch_size, LEAST_BATCH) if options.even else options.batch_size
    Batches(train, smallest, processes=processes)
    if loss.coupled:
        return
    Batches(validation, options.batch_size, processes=processes)
    if processes.size > 1 and options.growth_at() and not options.batch_statistics:
        for part in held_out(validation, loss, options.score_examples, options.seed):
            Batches(part, options.batch_size, processes=processes)


LEAST_BATCH = 8
"""The fewest examples of a batch that is made smaller: statistics of batches need some."""


@dataclass(frozen=True)
class _Probabilities:
    """Checks the targets of batches that are read; a class, for it is sent to other processes."""

    loss: str

    def __call__(self, batch: Examples) -> Examples:
        try:
            check_probabilities(LOSSES[self.loss], batch.targets)
        except ScoreError as error:
            raise FileError(error.what, where=f"{error.where} of {batch.where}", hint=error.hint) from error
        return batch


def checked_when_read(split: Split, loss: Loss) -> Split:
    """Return a split that was looked at, whose other examples are checked when they are read.

    Those are the targets that a loss takes for probabilities: class numbers are checked by the loss itself.
    """
    own = LOSSES.get(loss.name) is not loss
    return split if own or isinstance(split, Examples) else split.changed(_Probabilities(loss.name))


LOOKED_FOR = 256
"""How many examples are read at once to find one that has a label."""


@dataclass(frozen=True)
class _Seen:
    """What is kept of examples that were looked at.

    Attributes:
        numbers: theirs in the split, `[examples]`.
        ranges: by `labels`, which are those that are not `NO_LABEL`, and by the name of each input of whole numbers,
            the smallest and the largest of each example, `[examples, 2]`.
    """

    numbers: torch.Tensor
    ranges: Mapping[str, torch.Tensor]


def _look_at(some: Examples, numbers: torch.Tensor, loss: Loss, data: str, where: str) -> _Seen:
    """Check what can be told of examples alone.

    Raises:
        FileError: they are not finite, or are no probabilities where the loss takes such.
    """
    parts = {"inputs": some.inputs} if isinstance(some.inputs, torch.Tensor) else some.inputs
    _check_finite(some, numbers, data, where)
    try:
        check_probabilities(loss, some.targets)
    except ScoreError as error:
        raise FileError(error.what, where=f"{error.where} of {data}, {where}", hint=error.hint) from error
    ranges = {name: _range(t) for name, t in parts.items() if _is_whole(t) and t.numel()}
    labels = labels_of(some.targets, loss)
    if labels is not None and labels.numel():
        # Each example without a label gets one that there is, which is not looked at further.
        ranges[_LABELS] = _range(labels.masked_fill(labels == NO_LABEL, 0))
    return _Seen(numbers, ranges)


_LABELS = "the labels"
"""A name that no input has."""


def _is_whole(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)


def _range(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.reshape(len(tensor), -1)
    return torch.stack((flat.amin(1), flat.amax(1)), 1)


def _ranges(seen: Sequence[_Seen], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return numbers of examples, and the smallest and the largest of their numbers of a part; `[examples, 2]`."""
    found = [(one.numbers, one.ranges[name]) for one in seen if name in one.ranges]
    return torch.cat([numbers for numbers, _ in found]), torch.cat([ranges for _, ranges in found])


def _check_gradient(module: nn.Module, loss: Loss, value: torch.Tensor) -> None:
    """Check that the loss of a batch has a gradient; none is left in the weights."""
    weights = [p for p in module.parameters() if p.requires_grad]
    with differentiating(loss, value):
        found = torch.autograd.grad(value, weights, allow_unused=True) if weights else ()
    if weights and all(g is None for g in found):
        raise GrowError(f"the loss {loss.name} depends on none of the weights of the model")


def _check_whole_inputs(module: nn.Module, split: Split, seen: Sequence[_Seen], size: int, name: str) -> None:
    """Check that the model takes the smallest and the largest of whole numbers: those of tokens number rows of a table.

    Every batch is as large as the first, since a model may take no others.
    """
    device = device_of(module)
    for part in dict.fromkeys(n for one in seen for n in one.ranges if n != _LABELS):
        numbers, ranges = _ranges(seen, part)
        for row in {int(ranges[:, 0].argmin()), int(ranges[:, 1].argmax())}:
            rest = numbers[(torch.arange(size) + row) % len(numbers)]
            try:
                with torch.no_grad():
                    call(module, map_tensors(lambda t: sent(t, device), split.take(rest).inputs))
            except GrowError as error:
                low, high = ranges[row].tolist()
                raise FileError(
                    f"the model rejects an example of the {name} data, whose {part} run from {low} to {high}",
                    where=f"example {int(rest[0])} of {split!r}, or one of the {size - 1} after it",
                    why=error.why,
                    hint="numbers of tokens start at 0, and are below the number of rows of the embedding",
                ) from error


def _check_finite(split: Examples, numbers: torch.Tensor, data: str, where: str) -> None:
    parts = {**dict(tensors_of(split.inputs, "inputs")), **dict(tensors_of(split.targets))}
    for part, tensor in parts.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum())):
            # Masks that are added to scores are infinite by right; where there is one input, it is no mask.
            several = isinstance(split.inputs, Mapping) and part.startswith("inputs")
            wrong = torch.isnan(tensor) if several else ~torch.isfinite(tensor)
            if bool(wrong.any()):
                place = wrong.nonzero()[0].tolist()
                raise FileError(
                    f"the {part} of {data} hold {float(tensor[tuple(place)])}",
                    where=f"{_place(int(numbers[place[0]]), place[1:])} of {where}",
                    hint="leave such examples out, or put numbers in their place",
                )


def _check_labels(
    split: Split, seen: Sequence[_Seen], outputs: object, targets: Targets, loss: Loss, name: str
) -> None:
    """Check the labels of examples by the classes that the outputs of the first batch have."""
    first = labels_of(targets, loss)
    if first is None or not isinstance(outputs, torch.Tensor) or len(first) != len(outputs):
        return
    classes = outputs.shape[class_axis(outputs, first)]
    numbers, ranges = _ranges(seen, _LABELS)
    wrong = is_unknown(ranges, classes).any(1)
    if bool(wrong.any()):
        number = int(numbers[int(wrong.nonzero()[0])])
        labels = split.take(slice(number, number + 1)).targets
        assert isinstance(labels, torch.Tensor)
        place = (*is_unknown(labels, classes).nonzero().tolist(), [0] * labels.dim())[0]
        raise FileError(
            f"a label of the {name} data is {int(labels[tuple(place)])}, the model has {classes} classes",
            where=f"{_place(number, place[1:])} of {split!r}",
            hint=f"class numbers start at 0; {NO_LABEL} leaves a position out",
        )


def _place(number: int, position: Sequence[int]) -> str:
    return f"example {number}{f', position {list(position)}' if position else ''}"
