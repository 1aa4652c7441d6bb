"""Batches of a split, shuffled and augmented by a seed."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import overload

import numpy as np
import pydantic
import torch
import torch.nn.functional as F

from archir.errors import GrowError, ProcessError
from archir.growing.device import CPU, sent, within_memory
from archir.growing.examples import Examples, Inputs, Split
from archir.growing.given_batches import GivenBatches
from archir.growing.iterated import Iterated
from archir.growing.ragged import Ragged
from archir.growing.training_loss import Mixed
from archir.ir.seeds import derived_seed
from archir.scoring.processes import ALONE, WHOLE, Around, Processes
from archir.scoring.ranges import CLOSED, Real, Truth, Whole, checked
from archir.scoring.targets import Targets, map_tensors


@checked(GrowError, "this is no augmentation")
@pydantic.dataclasses.dataclass(frozen=True, config=CLOSED)
class Augmentation:
    """Random changes of training examples.

    Attributes:
        flip: mirror half of the images left to right.
        crop: shift each image by up to so many pixels either way, zeros coming in.
        cutout: side of a square of zeros in each image, in pixels; its centre is anywhere, so that it may stick out.
        mixup: mix each example of a batch with another one; the part of the first is drawn for the batch from
            Beta(mixup, mixup). 0 for none.

    Raises:
        GrowError: a value is of another kind, or below 0; all of them at once.

    Source: DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout (2017); Zhang et
        al., mixup: Beyond Empirical Risk Minimization (2018).
    """

    flip: Truth = False
    crop: Whole = 0
    cutout: Whole = 0
    mixup: Real = 0.0

    def __call__(self, images: torch.Tensor, generator: torch.Generator, around: Around = WHOLE) -> torch.Tensor:
        """Return images `[batch, channels, height, width]`, each changed by its own draw, unmixed.

        Args:
            images: the images.
            generator: draws for them, and for those around them.
            around: how many images of the batch other processes have.

        Raises:
            GrowError: these are not images, or are smaller than the crop.
        """
        if not (self.flip or self.crop or self.cutout):
            return images
        if images.dim() != 4:
            raise GrowError(f"inputs {list(images.shape)} are not images", hint="turn the augmentation off")
        if self.crop > min(images.shape[2:]):
            raise GrowError(f"a crop of {self.crop} pixels leaves nothing of images {list(images.shape[2:])}")
        count, _, height, width = images.shape
        every = around.before + count + around.after
        if self.flip:
            turned = around.cut(torch.rand(every, generator=generator)) < 0.5
            images = torch.where(turned[:, None, None, None], images.flip(3), images)
        if self.crop:
            padded = F.pad(images, (self.crop,) * 4)
            shifts = around.cut(torch.randint(2 * self.crop + 1, (2, every), generator=generator), 1)
            rows = (shifts[0, :, None] + torch.arange(height))[:, None, :, None]
            columns = (shifts[1, :, None] + torch.arange(width))[:, None, None, :]
            examples, channels = torch.arange(count)[:, None, None, None], torch.arange(images.shape[1])[:, None, None]
            images = padded[examples, channels, rows, columns]
        if self.cutout:
            rows, columns = (around.cut(self._cut(every, size, generator)) for size in (height, width))
            images = images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)
        return images

    def _cut(self, count: int, size: int, generator: torch.Generator) -> torch.Tensor:
        """Return which rows, or columns, of each image the square covers; `[count, size]`."""
        first = torch.randint(size, (count, 1), generator=generator) - self.cutout // 2
        place = torch.arange(size)
        return (place >= first) & (place < first + self.cutout)

    def mix(self, inputs: torch.Tensor, targets: Targets, generator: torch.Generator) -> tuple[torch.Tensor, Mixed]:
        """Return a batch in which each example is mixed with another one of it.

        Raises:
            GrowError: the inputs are no floating-point numbers.
        """
        if not inputs.is_floating_point():
            raise GrowError(f"inputs of type {inputs.dtype} cannot be mixed", hint="turn mixup off")
        draw = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        share, others = draw.beta(self.mixup, self.mixup), torch.randperm(len(inputs), generator=generator)
        second = map_tensors(lambda t: t[others], targets)
        shares = torch.full((len(inputs),), share, dtype=torch.float64)
        return share * inputs + (1 - share) * inputs[others], Mixed(targets, second, shares)


@dataclass(frozen=True, eq=False)
class Batches:
    """The examples of a split in batches of nearly equal size; iterating again gives the same ones.

    They do not depend on whether the split is in memory, nor on how many processes read it. Of several processes that
    train together each gets its part of every batch, and reads that alone, unless examples are mixed: then the whole.

    Of a split that can only be iterated they are one pass, if all are asked for; if some are, those that come next,
    each of the whole size. The order is that in which it gives its examples, and each process reads all of them.

    Attributes:
        split: the examples; every one is used once.
        size: the largest batch size; batches differ by at most one, so that no small one is left at the end. Examples
            of several shapes are batches of one shape after the other.
        seed: seed of the order, of the augmentation, and of what is random when examples are read; in the order of
            the split if not given.
        augmentation: change of the inputs.
        device: where the batches are moved, once they are read and augmented on the CPU, whose generator draws.
        processes: those that share every batch out among them.

    Raises:
        GrowError: the batch size is not above 0, some process would have no example of a batch, or the augmentation
            does not fit.
    """

    split: Split
    size: int
    seed: int | None = None
    augmentation: Augmentation | None = None
    device: torch.device = CPU
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        if self.size < 1:
            raise GrowError(f"the batch size is {self.size}")
        self._check_shares(self.size if self.split.count is None else min(self.sizes))
        one = self.split.take(slice(1)) if self.augmentation and self.seed is not None else None
        if self.augmentation and (one is None or not isinstance(one.inputs, torch.Tensor)):
            raise GrowError("only shuffled images can be augmented", hint="give a seed, or turn the augmentation off")

    def __len__(self) -> int:
        return sum(map(len, self._of_pieces)) or math.ceil(len(self.split) / self.size)

    @property
    def _of_pieces(self) -> list[Batches]:
        """The batches of the examples of each shape, none where all have one."""
        return [replace(self, split=piece) for piece in self.split.pieces] if isinstance(self.split, Ragged) else []

    def _check_shares(self, examples: int) -> None:
        """Check that a batch has an example for every process."""
        if examples < self.processes.size:
            raise GrowError(
                f"a batch of {examples} examples cannot be shared out among {self.processes.size} processes",
                where=f"{self.split!r}, in batches of {self.size} examples at most",
                hint="take larger batches, more examples, or fewer processes",
            )

    @property
    def sizes(self) -> Sequence[int]:
        """The numbers of examples of the batches, those of all processes together."""
        if self.split.count is None:
            return _Alike(self.size)
        if several := self._of_pieces:
            return [size for batches in several for size in batches.sizes]
        most, larger = divmod(len(self.split), len(self))
        return [most + (i < larger) for i in range(len(self))]

    @property
    def source(self) -> str:
        """Where the examples come from, for errors."""
        return repr(self.split)

    def __iter__(self) -> Iterator[tuple[Inputs, Targets]]:
        return self.since(0)

    def since(self, first: int, most: int | None = None) -> Iterator[tuple[Inputs, Targets]]:
        """Yield the batches from a number on; those before it, and those that are not wanted, are not read.

        Args:
            first: number of the first batch, from 0; not looked at where those are wanted that come next.
            most: how many are wanted; all if not given.

        Raises:
            FileError: examples cannot be read.
            GrowError: code of the user's that reads them fails, the augmentation does not fit the examples, or there is
                too little memory for a batch.
            ScoreError: examples are neither pairs nor mappings with targets.
            ProcessError: what can only be iterated has come to another place on another process.
        """
        if isinstance(self.split, Iterated):
            if most is None:
                yield from self._one_pass(self.split, first)
            else:
                yield from self.following(most)
            return
        if several := self._of_pieces:
            last = None if most is None else first + most
            yield from islice((batch for batches in several for batch in batches), first, last)
            return
        generator = torch.Generator().manual_seed(self.seed or 0)
        count = len(self.split)
        order = torch.arange(count) if self.seed is None else torch.randperm(count, generator=generator)
        numbers = order.tensor_split(len(self))
        if first and self.augmentation:
            # What is drawn depends on the shapes alone, which are those of any one example.
            one = self.split.take(slice(1))
            for examples in numbers[:first]:
                self._augmented(one.take(torch.zeros_like(examples)), generator)
        mixes = self.augmentation is not None and self.augmentation.mixup > 0
        few = range(len(numbers))[first:][:most]
        own = {i: slice(0, len(numbers[i])) if mixes else self.processes.part(len(numbers[i])) for i in few}
        parts = [(numbers[i][own[i]], derived_seed(self.seed or 0, i), own[i].start) for i in few]
        # What is augmented is made anew, and is pinned then.
        pin = self.device.type == "cuda" and not self.augmentation
        for i, batch in zip(few, self.split.batches(parts, pin=pin), strict=True):
            count = len(numbers[i])
            found = self._augmented(batch, generator, WHOLE if mixes else self.processes.around(count))
            yield self._moved(found, self.processes.part(count) if mixes else slice(None))

    def _one_pass(self, split: Iterated, first: int) -> Iterator[tuple[Inputs, Targets]]:
        for number, batch in islice(enumerate(split.one_pass(self.size)), first, None):
            yield self._own(batch, derived_seed(self.seed or 0, number))

    def following(self, most: int | None) -> Iterator[tuple[Inputs, Targets]]:
        """Yield the batches that come next of a split that can only be iterated; see `since`.

        Args:
            most: how many are wanted; without end if not given.
        """
        split = self.split
        assert isinstance(split, Iterated)
        for position, batch in split.following(self.size, most):
            seed = self.seed or 0
            for number in position:
                seed = derived_seed(seed, number)
            yield self._own(batch, seed)
        if self.processes.group is not None:
            every = self.processes.everyones(split.position)
            if len(set(every)) > 1:
                raise ProcessError(
                    f"the processes have come to different places of {split.where}",
                    why="\n         ".join(f"process {i}: pass {p}, batch {b}" for i, (p, b, _) in enumerate(every)),
                    hint="give all of them the same data: each takes its own part of every batch",
                )

    def _own(self, batch: Examples, seed: int) -> tuple[Inputs, Targets]:
        """Return the part of this process of a batch that is whole, changed by what a seed draws."""
        self._check_shares(len(batch))
        mixes = self.augmentation is not None and self.augmentation.mixup > 0
        part, around = self.processes.part(len(batch)), self.processes.around(len(batch))
        found = self._augmented(
            batch if mixes else batch.take(part),
            torch.Generator().manual_seed(seed),
            WHOLE if mixes else around,
        )
        return self._moved(found, part if mixes else slice(None))

    def _moved(self, batch: tuple[Inputs, Targets], part: slice) -> tuple[Inputs, Targets]:
        """Return a part of a batch on the device."""
        with within_memory(f"move a batch to {self.device}"):
            inputs, targets = (map_tensors(lambda t: sent(t[part], self.device), one) for one in batch)
        return inputs, targets

    def _augmented(
        self, batch: Examples, generator: torch.Generator, around: Around = WHOLE
    ) -> tuple[Inputs, Targets | Mixed]:
        inputs, targets = batch.inputs, batch.targets
        if self.augmentation and isinstance(inputs, torch.Tensor):
            inputs = self.augmentation(inputs, generator, around)
            if self.augmentation.mixup:
                return self.augmentation.mix(inputs, targets, generator)
        return inputs, targets


@dataclass(frozen=True)
class _Alike(Sequence[int]):
    """As many numbers alike as are asked for."""

    value: int

    def __len__(self) -> int:
        return sys.maxsize

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> list[int]: ...

    def __getitem__(self, index: int | slice) -> int | list[int]:
        return self.value if isinstance(index, int) else [self.value] * len(range(*index.indices(len(self))))


Drawn = Batches | GivenBatches
"""Batches of a split, or as they were given."""


def stream(batches: Drawn, start: int = 0, count: int | None = None) -> Iterator[tuple[Inputs, Targets]]:
    """Yield batches, every pass over the data shuffled anew; what can only be iterated is read on from where it is.

    Args:
        batches: the first pass; later ones have other seeds, made from its seed.
        start: how many batches were used before, so that an interrupted stream goes on where it was; they are not read.
        count: how many batches are wanted, so that no others are read ahead; without end if not given.

    Raises:
        FileError: examples cannot be read.
        GrowError: code of the user's that reads them fails, or the augmentation does not fit the examples.
        ScoreError: examples are neither pairs nor mappings with targets.
        ProcessError: what can only be iterated has come to another place on another process.
    """
    if isinstance(batches, Batches) and isinstance(batches.split, Iterated):
        yield from batches.following(count)
        return
    size, at = len(batches), start
    while count is None or at < start + count:
        number, skipped = divmod(at, size)
        seed = None if batches.seed is None else derived_seed(batches.seed, number)
        yield from replace(batches, seed=seed).since(skipped, None if count is None else start + count - at)
        at += size - skipped
