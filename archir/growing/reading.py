"""What surrounds code of the user's that gives examples: its generators are seeded, and its errors are told as one."""

from __future__ import annotations

import itertools
import random
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

from archir.errors import ArchirError, FileError, GrowError, ScoreError
from archir.growing.examples import Examples
from archir.scoring.targets import tensors_of

B = TypeVar("B")


def seed_all(seed: int) -> None:
    """Seed the global generators that data sets draw from: those of torch, Python and NumPy."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def as_in_a_process_of_its_own() -> Iterator[None]:
    """Read with one thread, as workers do, for sums are rounded by their number; and leave the generators as they were.

    Those are the global ones.
    """
    states = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


@contextmanager
def explained(place: str, past_end: str = "") -> Iterator[None]:
    """Turn whatever the user's code raises into one error that names the example and the line.

    Args:
        place: what is read.
        past_end: what may mend an error that is raised where there is nothing more.

    Raises:
        FileError: the block has raised one; where it says no place, this one is told.
        GrowError: the block has raised an error that is none of archir's.
    """
    try:
        yield
    except FileError as error:
        if error.where:
            raise
        raise FileError(error.what, where=place, why=error.why, hint=error.hint) from error
    except ArchirError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise GrowError(
            "the data cannot be read",
            where=f"{place}; {last.filename}:{last.lineno}",
            why=f"{type(error).__name__}: {error}",
            hint=past_end if isinstance(error, IndexError | StopIteration) else "",
        ) from error


def each_batch(batches: Iterable[B], name: str = "batches") -> Iterator[B]:
    """Return an iterator over batches that are given, which turns errors of the code that makes them into one.

    Args:
        batches: what gives them when it is iterated.
        name: what they are called, for errors.

    Raises:
        GrowError: that code fails, now or later; the batch and the line are named.
        ScoreError: they cannot be iterated.
    """
    kind = type(batches)
    if not hasattr(kind, "__iter__") and not hasattr(kind, "__getitem__"):
        given = "batches" if name == "batches" else f"batches for {name}="
        raise ScoreError(
            f"a {kind.__name__} is no {given}",
            hint="call it, and give what it returns" if callable(batches) else "give a DataLoader, a list, a generator",
        )
    with explained(name):
        rest = iter(batches)
    return _each(rest, name)


def _each(rest: Iterator[B], name: str) -> Iterator[B]:
    for number in itertools.count():
        with explained(f"batch {number} of {name}"):
            found = list(itertools.islice(rest, 1))
        if not found:
            return
        yield found[0]


def check_finite(batch: Examples, numbers: Sequence[int]) -> None:
    """Check that numbers are finite; where there are several inputs, masks that are added to scores need not be.

    Args:
        batch: examples.
        numbers: theirs, for errors; `[examples]`.

    Raises:
        FileError: they are not; the example and the position are named.
    """
    several = not isinstance(batch.inputs, torch.Tensor)
    for name, tensor in (*tensors_of(batch.inputs, "inputs"), *tensors_of(batch.targets)):
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
            continue
        wrong = torch.isnan(tensor) if several and name.startswith("inputs") else ~torch.isfinite(tensor)
        if bool(wrong.any()):
            place = wrong.nonzero()[0].tolist()
            raise FileError(
                f"the {name} hold {float(tensor[tuple(place)])}",
                where=f"example {numbers[place[0]]}{f', position {place[1:]}' if place[1:] else ''} of {batch.where}",
                hint="leave such examples out, or put numbers in their place",
            )
