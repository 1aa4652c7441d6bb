"""Small data files, and what splits hold, for the tests of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from archir.growing.data import Dataset
from archir.growing.examples import Examples, Split

Array = NDArray[Any]


def random_images(count: int, *shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def savez(path: Path, **arrays: Array) -> None:
    np.savez(path, allow_pickle=True, **arrays)


def inputs_of(split: Split) -> torch.Tensor:
    inputs = split.take(slice(None)).inputs
    assert isinstance(inputs, torch.Tensor)
    return inputs


def targets_of(split: Split) -> torch.Tensor:
    targets = split.take(slice(None)).targets
    assert isinstance(targets, torch.Tensor)
    return targets


def rows(*splits: Split) -> list[tuple[float, ...]]:
    """Return the examples of splits, target included, in a fixed order."""
    pairs = ((x, t) for s in splits for x, t in zip(inputs_of(s), targets_of(s), strict=True))
    return sorted((*map(float, x.flatten()), float(t)) for x, t in pairs)


def all_rows(data: Dataset) -> list[tuple[float, ...]]:
    return rows(data.train, data.validation, data.test)


def as_floats(split: Examples) -> Examples:
    return Examples(inputs_of(split).float() / 255, split.targets)


def write_folders(root: Path, images: Array, names: tuple[str, ...] = ("ant", "bee")) -> None:
    for i, image in enumerate(images):
        folder = root / names[i % len(names)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:03d}.png")
