"""What users give for a split: pairs of arrays, data sets and loaders of `torch.utils.data`, and what is like them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    default_collate,
)

from archir.errors import FileError, GrowError
from archir.growing.collation import as_tensor, collated
from archir.growing.examples import Examples, Split
from archir.growing.iterables import Reiterable, is_function
from archir.growing.iterated import Iterated
from archir.growing.streamed import MapStyle, Streamed
from archir.scoring.pairs import pair_of
from archir.scoring.targets import tensors_of

Given = (
    Split
    | tuple[Any, Any]
    | Mapping[str, Any]
    | MapStyle
    | Dataset[Any]
    | DataLoader[Any]
    | Iterable[Any]
    | Callable[[], Iterable[Any]]
)
"""What a user may give for a split, see `split_of`."""

HINT = (
    "give a pair (inputs, targets) of arrays, or a data set with a length that gives such pairs or mappings with an "
    "entry `labels`, example by example, or a DataLoader of one, or what gives batches of them when it is iterated"
)


def split_of(given: Given, where: str, *, workers: int | None = None, names: Sequence[str] = ()) -> Split:
    """Return the split that a user means.

    It may be

    - a split, which is returned as it is;
    - a pair (inputs, targets) or a mapping, see `archir.scoring.pairs.pair_of`, of tensors, NumPy arrays or nested
      lists; inputs may be a mapping by argument name, targets a mapping or a tuple. Arrays that are views of a file
      (`numpy.load(mmap_mode="r")`), and what is like an array and none (with a length, rows, `shape` and `dtype`: those
      of the packages h5py and zarr), are read when they are asked for;
    - a data set with a length that gives any example by its number, such as those of `torch.utils.data` and of the
      package `datasets`: pairs, or mappings, of tensors, arrays, numbers, or images of Pillow's. It is read when it is
      asked for, and never whole. Of what it draws at random it should draw from the global generators of torch, NumPy
      and Python, which are seeded for every batch; a generator of its own is not, and what comes from it depends on
      what was read before, and by which process;
    - a `torch.utils.data.DataLoader` of such a data set: its data set, what makes its batches (`collate_fn`), and how
      many processes read them (`num_workers`). The sizes of batches, their order and their seeds are those of the run,
      and no example is dropped;
    - what can only be iterated, see `archir.growing.iterated.Iterated`: a `DataLoader` of an `IterableDataset`, one
      with a sampler, batches or workers of its own ways, or any other object whose iterations give batches, pairs or
      mappings, each from the first one on. The order is the one it gives; the size of batches is that of the run,
      which cuts and joins them, so that they have to be of one shape;
    - a function without arguments that returns such an object, or an iterator, anew each time: so are generators given;
    - an `IterableDataset` by itself, which gives examples one by one, as `torch.utils.data` has it. One that gives
      batches is given in a `DataLoader(dataset, batch_size=None)`.

    What has a length and gives anything by its number is a data set of examples: a list of batches is given by a
    function, `lambda: batches`. An object that is given for two splits is iterated twice at once.

    Args:
        given: what the user gives.
        where: what it is, for errors.
        workers: how many processes read examples that are not in memory; as many as a loader says, or none, if not
            given. Of what can only be iterated the loader alone says so.
        names: of the arguments of the model that are given by name, if they are known.

    Raises:
        FileError: there are no examples, the numbers of inputs and targets differ, or they are no numbers.
        GrowError: it is something else, has no length, can be iterated only once, or is iterated by other processes
            than are asked for.
        ScoreError: a mapping has no entry of targets.
    """
    if isinstance(given, Iterated):
        _check_workers(given.source.given, workers, where)
        return given
    if isinstance(given, Split):
        return replace(given, workers=workers) if isinstance(given, Streamed) and workers is not None else given
    if isinstance(given, Mapping) or (isinstance(given, tuple | list) and len(given) == 2):
        return _of_arrays(*pair_of(given, where, names), where, workers or 0)
    numbers = None
    dataset: Any = given
    collate: Callable[[list[Any]], Any] = collated
    if _is_only_iterated(given):
        _check_workers(given, workers, where)
        source = Reiterable(given, where, isinstance(given, IterableDataset), tuple(names))
        return Iterated(source, f"{where} ({getattr(given, '__name__', type(given).__name__)})")
    if isinstance(given, DataLoader):
        dataset, collate = given.dataset, given.collate_fn
        collate = collated if collate is default_collate else collate
        workers = given.num_workers if workers is None else workers
    arrays = isinstance(dataset, str | bytes | torch.Tensor | np.ndarray)
    if arrays or isinstance(dataset, IterableDataset) or not all(hasattr(dataset, n) for n in _METHODS):
        raise GrowError(f"{where} are no examples with targets", why=_why(dataset), hint=HINT)
    try:
        len(dataset)
    except Exception as error:  # whatever the user's code raises
        why = f"the length of a {type(dataset).__name__}: {type(error).__name__}: {error}"
        raise GrowError(f"{where} have no length", why=why, hint=HINT) from error
    if isinstance(given, DataLoader):
        numbers = _drawn(given, where)
    place = f"{where} ({type(dataset).__name__})"
    return Streamed(dataset, place, collate, workers or 0, numbers, names=tuple(names))


_METHODS = ("__len__", "__getitem__")


def _why(dataset: Any) -> str:
    kind = type(dataset).__name__
    if isinstance(dataset, Iterator):
        again = "or lambda: (yield from it) if it begins anew each time"
        return f"a {kind} can be iterated only once: give the function that makes it, {again}"
    if hasattr(dataset, "__getitem__") and not hasattr(dataset, "__len__"):
        return f"a {kind} has no length"
    return f"they are a {kind}"


def _is_only_iterated(given: Any) -> bool:
    """Say whether something gives batches, or examples, when it is iterated, and not by number as a run reads them."""
    if isinstance(given, DataLoader):
        # What has no length, or no numbers, is told of as what it is.
        numbered = not isinstance(given.dataset, IterableDataset)
        return not numbered or (hasattr(given.dataset, "__len__") and not _is_usual_loader(given))
    if isinstance(given, IterableDataset):
        return True
    if isinstance(given, str | bytes | torch.Tensor | np.ndarray | Iterator):
        return False
    return (hasattr(given, "__iter__") and not hasattr(given, "__getitem__")) or is_function(given)


def _check_workers(given: Any, workers: int | None, where: str) -> None:
    """Check that what can only be iterated is not to be read by other processes than it says itself."""
    own = given.num_workers if isinstance(given, DataLoader) else 0
    if workers not in (None, own):
        raise GrowError(
            f"{where} can only be iterated, which {workers} processes are to do",
            why=f"they are iterated by {own}",
            hint="leave the number of workers out, and let a DataLoader have it: num_workers",
        )


def _is_usual_loader(loader: DataLoader[Any]) -> bool:
    """Say whether a loader uses every example once in each pass, or those of a part, and nothing that is not kept."""
    if type(loader).__iter__ is not DataLoader.__iter__ or type(loader.batch_sampler) is not BatchSampler:
        return False
    kept = not (loader.worker_init_fn or loader.multiprocessing_context or loader.timeout)
    return kept and _is_usual(loader.batch_sampler.sampler, loader.dataset)


def _is_usual(sampler: Any, dataset: Any) -> bool:
    """Say whether a sampler draws all examples once, or those of a part; one that is derived may do anything."""
    if type(sampler) is SubsetRandomSampler:
        return True
    if type(sampler) is RandomSampler and (sampler.replacement or sampler.num_samples != len(dataset)):
        return False
    usual = type(sampler) in (SequentialSampler, RandomSampler)
    return usual and (sampler.data_source is dataset or len(sampler.data_source) == len(dataset))


def _drawn(loader: DataLoader[Any], where: str) -> torch.Tensor | None:
    """Return the numbers of the examples that a loader draws from, None for all of them."""
    sampler = loader.batch_sampler.sampler if isinstance(loader.batch_sampler, BatchSampler) else loader.sampler
    if not isinstance(sampler, SubsetRandomSampler):
        return None
    try:
        return torch.tensor(sorted(map(operator.index, sampler.indices)), dtype=torch.int64)
    except (TypeError, ValueError) as error:
        raise GrowError(
            f"{where} are a DataLoader that draws from no numbers of examples",
            why=f"{type(error).__name__}: {error}",
            hint="let the indices of its SubsetRandomSampler be whole numbers",
        ) from error


def _of_arrays(inputs: Any, targets: Any, where: str, workers: int) -> Split:
    inputs, targets = (_arrays(part, n, where) for n, part in (("inputs", inputs), ("targets", targets)))
    parts = [part for _, part in (*tensors_of(inputs), *tensors_of(targets))]
    if any(_is_view_of_a_file(part) or _is_like_an_array(part) for part in parts):
        return Streamed(_Rows(inputs, targets, where), where, workers=workers)
    return Examples(_in_memory(inputs, "inputs", where), _in_memory(targets, "targets", where), where)


def _arrays(nested: Any, name: str, where: str) -> Any:
    """Return nested arrays with lists of numbers, and whatever else is no array, as tensors."""
    if isinstance(nested, Mapping):
        return {str(key): _arrays(part, f"{name}[{key!r}]", where) for key, part in nested.items()}
    if isinstance(nested, tuple):
        return tuple(_arrays(part, f"{name}[{i}]", where) for i, part in enumerate(nested))
    plain = isinstance(nested, torch.Tensor | np.ndarray) or _is_like_an_array(nested)
    return nested if plain else as_tensor(nested, f"{name} of {where}")


def _is_like_an_array(part: Any) -> bool:
    """Say whether something gives rows as arrays do, and is none: those of the packages h5py and zarr stay in files.

    The columns of the package pandas, which have an `iloc`, give rows by their labels, not by their numbers.
    """
    known = isinstance(part, torch.Tensor | np.ndarray | np.generic) or hasattr(part, "iloc")
    return not known and all(hasattr(part, n) for n in (*_METHODS, "shape", "dtype")) and len(part.shape) > 0


def _is_view_of_a_file(array: Any) -> bool:
    while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
        array = array.base
    return isinstance(array, np.memmap)


def _in_memory(nested: Any, name: str, where: str) -> Any:
    """Return nested arrays as tensors, which share their memory where they can."""
    if isinstance(nested, Mapping):
        return {str(key): _in_memory(part, f"{name}[{key!r}]", where) for key, part in nested.items()}
    if isinstance(nested, tuple):
        return tuple(_in_memory(part, f"{name}[{i}]", where) for i, part in enumerate(nested))
    return nested if isinstance(nested, torch.Tensor) else as_tensor(nested, f"{name} of {where}", shares=True)


@dataclass(frozen=True)
class _Rows:
    """Arrays of equal length as a data set of pairs."""

    inputs: Any
    targets: Any
    where: str

    def __post_init__(self) -> None:
        lengths = {name: part.shape[0] if len(part.shape) else 0 for name, part in self._arrays()}
        if len(set(lengths.values())) != 1:
            found = ", ".join(f"{n} in {name}" for name, n in lengths.items())
            raise FileError(f"the numbers of examples differ: {found}", where=self.where)

    def __len__(self) -> int:
        return next(int(part.shape[0]) for _, part in self._arrays())

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        return _row(self.inputs, number), _row(self.targets, number)

    def _arrays(self) -> Iterator[tuple[str, Any]]:
        yield from tensors_of(self.inputs, "inputs")
        yield from tensors_of(self.targets)


def _row(nested: Any, number: int) -> Any:
    if isinstance(nested, Mapping):
        return {key: _row(part, number) for key, part in nested.items()}
    if isinstance(nested, tuple):
        return tuple(_row(part, number) for part in nested)
    return nested[number] if isinstance(nested, torch.Tensor) else np.asarray(nested[number])
