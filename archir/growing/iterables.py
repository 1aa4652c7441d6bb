"""What can only be iterated, begun pass after pass; what it draws at random follows from the pass and the batch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from archir.errors import FileError, GrowError
from archir.growing.collation import as_tensor, collated
from archir.growing.examples import AT_ONCE, LOOKED_AT, Examples
from archir.growing.ragged import differ_in_size, together
from archir.growing.reading import as_in_a_process_of_its_own, explained, seed_all
from archir.ir.seeds import derived_seed
from archir.scoring.pairs import pair_of
from archir.scoring.targets import tensors_of

ANEW = "give what begins anew each time: a function without arguments that returns a new iterator, or a DataLoader"


@dataclass(frozen=True, eq=False)
class Reiterable:
    """Something of the user's that gives batches, or examples, from the first on each time it is begun.

    Where it, its data set or its sampler has a method `set_epoch`, that is told the number of each pass. What it draws
    from the global generators of torch, NumPy and Python is seeded for every batch, and the generators that a loader
    and its samplers hold are for every pass, so that a pass may begin anew and is the same. Other generators are not.

    Attributes:
        given: an iterable, or a function without arguments that returns one.
        where: what it is, for errors.
        singly: whether it gives examples one by one, and not batches.
        names: of arguments of the model that are given by name, see `pair_of`.
    """

    given: Any
    where: str
    singly: bool = False
    names: tuple[str, ...] = ()
    _last: list[Callable[[], Any]] = field(default_factory=list, repr=False)

    @cached_property
    def first(self) -> tuple[Examples, tuple[int, ...], bool]:
        """The first examples of the first pass, the sizes of the batches that they come in, and whether others follow.

        They are `LOOKED_AT` if there are as many of the shape of the first ones.

        Raises:
            FileError: there are none, or they are no batches, hold no numbers, or differ in shape.
            GrowError: code of the user's that gives them fails.
            ScoreError: a batch is neither a pair nor a mapping with targets.
        """
        parts, found, more = list[Examples](), 0, False
        for batch in self.begin(0, 0):
            if more := bool(parts) and differ_in_size(parts[0], batch):
                break
            parts.append(batch)
            found += len(batch)
            if more := found >= LOOKED_AT:
                break
        return together(parts).take(slice(LOOKED_AT)), tuple(map(len, parts)), more

    def begin(self, number: int, seed: int, skipped: int = 0) -> Iterator[Examples]:
        """Yield the batches of a pass; examples that come one by one are made batches of a few.

        Args:
            number: of the pass, from 0.
            seed: of what it draws.
            skipped: how many batches at its beginning are read, and not given.

        Raises:
            FileError: there are none, or they are no batches, hold no numbers, or differ in shape.
            GrowError: code of the user's that gives them fails, or it cannot be begun anew.
            ScoreError: a batch is neither a pair nor a mapping with targets.
        """
        seed = derived_seed(seed, number)
        with as_in_a_process_of_its_own(), explained(f"the beginning of pass {number} of {self.where}"):
            iterator = self._begun(number, seed)
        for batch in count():
            place = f"batch {batch} of pass {number} of {self.where}"
            with as_in_a_process_of_its_own(), explained(place):
                seed_all(derived_seed(seed, batch + 1))
                items = list(islice(iterator, AT_ONCE if self.singly else 1))
                found = self._batch(items, place) if items and batch >= skipped else None
            if not items:
                break
            if found is not None:
                yield found
        if not batch:
            if not number:
                raise FileError("there are no examples", where=self.where, hint=ANEW)
            raise GrowError(f"pass {number} of {self.where} gives nothing", hint=ANEW)
        if batch < skipped:
            raise GrowError(
                f"{self.where} have ended before the place that the run had come to",
                why=f"pass {number} has {batch} batches, of which {skipped} were read",
                hint="give what is the same each time it is iterated",
            )

    def _begun(self, number: int, seed: int) -> Iterator[Any]:
        seed_all(seed)
        given = self.given() if is_function(self.given) else self.given
        if not hasattr(given, "__iter__"):
            kind = type(given).__name__
            raise GrowError(f"{self.where} are a function that returns a {kind}, which cannot be iterated", hint=ANEW)
        if isinstance(given, DataLoader) and given.persistent_workers:
            # Workers that stay would go on drawing where they were, and serve one iteration at a time.
            given = copy(given)
            given._iterator = None
        samplers = [part for name in ("sampler", "batch_sampler") if (part := getattr(given, name, None)) is not None]
        samplers += [part.sampler for part in samplers if hasattr(part, "sampler")]
        for part in (given, *samplers):
            if isinstance(generator := getattr(part, "generator", None), torch.Generator):
                generator.manual_seed(seed)
        told = {id(part): part for part in (given, getattr(given, "dataset", None), *samplers)}
        for part in told.values():
            if callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(number)
        iterator: Iterator[Any] = iter(given)
        if any(last() is iterator for last in self._last):
            raise GrowError(f"{self.where} give an iterator that was begun before", hint=ANEW)
        self._last[:] = [_known(iterator)]
        return iterator

    def _batch(self, items: list[Any], place: str) -> Examples:
        inputs, targets = pair_of(collated(items) if self.singly else items[0], place, self.names)
        inputs, targets = _tensors(inputs, "inputs"), _tensors(targets, "targets")
        if any(not t.dim() for _, t in tensors_of(targets)):
            raise FileError(
                "the targets are one number, not one for each example of a batch",
                where=place,
                hint="what is iterated gives batches: let a DataLoader make them of examples, with a batch_size",
            )
        return Examples(inputs, targets, place)


def is_function(given: Any) -> bool:
    """Say whether something is called for what is to be iterated, and not iterated itself."""
    return callable(given) and (isinstance(given, type) or not hasattr(given, "__iter__"))


def _known(iterator: Iterator[Any]) -> Callable[[], Any]:
    """Return what gives an iterator as long as there is one, and does not keep it if that can be."""
    try:
        return weakref.ref(iterator)
    except TypeError:  # one of those of Python itself
        return lambda: iterator


def _tensors(value: Any, name: str) -> Any:
    """Return nested numbers as tensors that share no memory with what the user may fill anew.

    What a loader has pinned is its own already.
    """
    if isinstance(value, Mapping):
        return {str(key): _tensors(part, f"{name}[{key!r}]") for key, part in value.items()}
    several = isinstance(value, list) and any(isinstance(p, torch.Tensor | np.ndarray | Mapping) for p in value)
    if several or isinstance(value, tuple):
        return tuple(_tensors(part, f"{name}[{i}]") for i, part in enumerate(value))
    if isinstance(value, torch.Tensor):
        return value.detach() if value.is_pinned() else value.detach().clone()
    return as_tensor(value, name)
