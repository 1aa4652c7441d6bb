"""Batches of a split, shuffled and augmented by a seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pydantic
import torch
import torch.nn.functional as F

from archir.errors import GrowError
from archir.growing.examples import Examples, Inputs
from archir.ir.seeds import derived_seed
from archir.scoring.ranges import CLOSED, Truth, Whole, checked
from archir.scoring.targets import Targets, map_tensors


@checked(GrowError, "this is no augmentation")
@pydantic.dataclasses.dataclass(frozen=True, config=CLOSED)
class Augmentation:
    """Random changes of images that keep their class.

    Attributes:
        flip: mirror half of them left to right.
        crop: shift each by up to so many pixels either way, zeros coming in.

    Raises:
        GrowError: a value is of another kind, or below 0; all of them at once.
    """

    flip: Truth = False
    crop: Whole = 0

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return images `[batch, channels, height, width]`, each changed by its own draw.

        Raises:
            GrowError: these are not images, or are smaller than the crop.
        """
        if images.dim() != 4:
            raise GrowError(f"inputs {list(images.shape)} are not images", hint="turn the augmentation off")
        if self.crop > min(images.shape[2:]):
            raise GrowError(f"a crop of {self.crop} pixels leaves nothing of images {list(images.shape[2:])}")
        count = len(images)
        if self.flip:
            turned = torch.rand(count, generator=generator) < 0.5
            images = torch.where(turned[:, None, None, None], images.flip(3), images)
        if self.crop:
            padded = F.pad(images, (self.crop,) * 4)
            shifts = torch.randint(2 * self.crop + 1, (2, count), generator=generator)
            rows = (shifts[0, :, None] + torch.arange(images.shape[2]))[:, None, :, None]
            columns = (shifts[1, :, None] + torch.arange(images.shape[3]))[:, None, None, :]
            examples, channels = torch.arange(count)[:, None, None, None], torch.arange(images.shape[1])[:, None, None]
            images = padded[examples, channels, rows, columns]
        return images


@dataclass(frozen=True, eq=False)
class Batches:
    """The examples of a split in batches of nearly equal size; iterating again gives the same ones.

    Attributes:
        split: the examples; every one is used once.
        size: the largest batch size; batches differ by at most one, so that no small one is left at the end.
        seed: seed of the order and the augmentation; in the order of the split if not given.
        augmentation: change of the inputs.
        device: where the batches are moved.
    """

    split: Examples
    size: int
    seed: int | None = None
    augmentation: Augmentation | None = None
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise GrowError(f"the batch size is {self.size}")
        if self.augmentation and (self.seed is None or not isinstance(self.split.inputs, torch.Tensor)):
            raise GrowError("only shuffled images can be augmented", hint="give a seed, or turn the augmentation off")

    def __len__(self) -> int:
        return math.ceil(len(self.split) / self.size)

    def __iter__(self) -> Iterator[tuple[Inputs, Targets]]:
        generator = torch.Generator().manual_seed(self.seed or 0)
        count = len(self.split)
        order = torch.arange(count) if self.seed is None else torch.randperm(count, generator=generator)
        for examples in order.tensor_split(len(self)):
            batch = self.split.take(examples)
            inputs = batch.inputs
            if self.augmentation and isinstance(inputs, torch.Tensor):
                inputs = self.augmentation(inputs, generator)
            yield tuple(map_tensors(lambda t: t.to(self.device), part) for part in (inputs, batch.targets))


def stream(batches: Batches, start: int = 0) -> Iterator[tuple[Inputs, Targets]]:
    """Yield batches without end, every pass over the data shuffled anew.

    Args:
        batches: the first pass; later ones have other seeds, made from its seed.
        start: how many batches were used before, so that an interrupted stream goes on where it was.
    """
    done, skipped = divmod(start, len(batches))
    for number in itertools.count(done):
        seed = None if batches.seed is None else derived_seed(batches.seed, number)
        yield from itertools.islice(replace(batches, seed=seed), skipped, None)
        skipped = 0
