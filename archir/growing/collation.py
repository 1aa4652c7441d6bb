"""Makes a batch of examples, as `torch.utils.data` does, of whatever data sets give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate

from archir.errors import FileError


def collated(items: list[Any]) -> Any:
    """Return a batch of examples: nested as these are, every tensor with a first axis that runs over the examples.

    Numbers, arrays and tensors are stacked by `torch.utils.data.default_collate`. Lists of numbers are arrays. Images
    of Pillow's become `[channels, height, width]` with intensities from 0 to 1.

    Args:
        items: at least one example: a pair, or a mapping; pairs may hold mappings and tuples.

    Raises:
        FileError: an example holds something else, or they differ in shape.
    """
    found = [_tensors(item, "example") if isinstance(item, Mapping) else _pair(item) for item in items]
    try:
        return _as_given(default_collate(found))
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        raise FileError(
            "examples do not fit into one batch",
            why=f"{type(error).__name__}: {error}",
            hint="bring them to one shape, or give a DataLoader with a collate_fn that pads them",
        ) from error


def _as_given(batch: Any) -> Any:
    """Return a batch with tuples as tuples: what collates makes lists of them."""
    if isinstance(batch, Mapping):
        return {key: _as_given(part) for key, part in batch.items()}
    if isinstance(batch, list):
        return tuple(map(_as_given, batch))
    return batch


def _pair(item: Any) -> Any:
    """Return an example that is no mapping with arrays as tensors; a list of two is a pair as a tuple is."""
    if isinstance(item, tuple | list):
        return tuple(_tensors(part, f"example[{i}]") for i, part in enumerate(item))
    return _tensors(item, "example")


def _tensors(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _tensors(part, f"{name}[{key!r}]") for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_tensors(part, f"{name}[{i}]") for i, part in enumerate(value))
    if isinstance(value, Image.Image):
        return _pixels(value)
    if isinstance(value, np.ndarray | list):
        return as_tensor(value, name)
    if isinstance(value, str | bytes) or value is None:
        raise FileError(
            f"{name} is {'text' if value is not None else 'None'}, not numbers",
            hint="leave such entries out of the data set, or turn them into numbers first",
        )
    return value


def as_tensor(value: Any, name: str, *, shares: bool = False) -> torch.Tensor:
    """Return an array or nested list of numbers as a tensor.

    Args:
        value: the array or list.
        name: what it is, for errors.
        shares: whether the tensor may be a view of an array that can be written.

    Raises:
        FileError: it holds no numbers, or its rows differ in length.
    """
    try:
        if isinstance(value, list) and any(isinstance(part, torch.Tensor) for part in value):
            return torch.stack([torch.as_tensor(part) for part in value])
        plain = shares and isinstance(value, np.ndarray) and value.flags.writeable
        return torch.from_numpy(value if plain and min(value.strides, default=0) >= 0 else np.array(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise FileError(f"{name} is no array of numbers", why=str(error)) from error


def _pixels(image: Image.Image) -> torch.Tensor:
    if image.mode.startswith(("I", "F")):
        raise FileError("an image has pixels that are no bytes", why=f"its mode is {image.mode}")
    plain = image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
    bytes_ = torch.from_numpy(np.array(plain))
    return (bytes_[None] if bytes_.dim() == 2 else bytes_.movedim(2, 0)).contiguous().float().div_(255)
