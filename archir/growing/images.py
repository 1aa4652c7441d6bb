"""Decodes images, of the kinds that hold pixels alone: all at once, or each when it is asked for."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from archir.errors import FileError
from archir.ir.files import open_regular
from archir.ir.room import too_large

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
"""The formats that are read, whatever a file is called. Others can start programs: EPS is handed to Ghostscript."""


def decode_images(
    named: Sequence[tuple[str, Path | io.BytesIO]], formats: tuple[str, ...], size: tuple[int, int] | None = None
) -> NDArray[np.generic]:
    """Return images as bytes `[n, h, w, 3]`, or `[n, h, w]` if every one is grey.

    Args:
        named: at least one image, each with its name for errors.
        formats: the formats they may have, as in `FORMATS`.
        size: the width and the height they have to have, which are looked at before there is memory for pixels; those
            of the first if not given.

    Raises:
        FileError: one cannot be read, they differ in size, or there is no room for them.
    """
    pictures: list[Image.Image] = []
    for name, source in named:
        try:
            with open_regular(source) if isinstance(source, Path) else source as file:
                pictures.append(_decode(file, formats, pictures[0].size if pictures else size, len(named)))
        except FileError as error:
            raise FileError(error.what, where=name, why=error.why, hint=error.hint) from error
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, *_BOMBS) as error:
            raise FileError(f"{name} is not an image that can be read", why=str(error)) from error
    mode = "L" if all(p.mode == "L" for p in pictures) else "RGB"
    return np.stack([np.asarray(p if p.mode == mode else p.convert(mode)) for p in pictures])


_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def _decode(source: BinaryIO, formats: tuple[str, ...], size: tuple[int, int] | None, count: int) -> Image.Image:
    """Return an image in grey or in colours; its size is looked at before there is memory for its pixels."""
    if isinstance(source, Path) and source.exists() and not source.is_file():
        raise OSError("it is no regular file")  # a pipe would be waited for for ever
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(source, formats=formats) as picture:
            if size is None:
                why = too_large(3 * count * picture.size[0] * picture.size[1])
                if why:
                    raise FileError("these images are too large", why=why)
            elif picture.size != size:
                sizes = " and ".join(f"{w}x{h}" for w, h in (size, picture.size))
                raise FileError(f"images differ in size: {sizes}", hint="bring them all to one size first")
            picture.load()
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels are no bytes (mode {picture.mode})")
            return picture.convert("L" if picture.mode in ("L", "1") else "RGB")


@dataclass(frozen=True)
class Pictures:
    """Image files of one size as a data set: bytes `[channels, height, width]` and a class number each.

    Attributes:
        files: the class number and the path of each.
        height: of all of them, in pixels.
        width: of all of them, in pixels.
        coloured: whether they have three channels, grey ones among them, too; else one.
    """

    files: Sequence[tuple[int, Path]]
    height: int
    width: int
    coloured: bool

    @property
    def size(self) -> int:
        """The bytes of all of them as floating-point numbers."""
        return 4 * len(self.files) * self.height * self.width * (3 if self.coloured else 1)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        """Return an image and its class number.

        Raises:
            FileError: it cannot be read, is of another size, or is coloured where the others are not.
        """
        label, path = self.files[number]
        (pixels,) = decode_images([(str(path), path)], FORMATS, (self.width, self.height))
        if pixels.ndim == 3 and not self.coloured:
            hint = "turn it into a grey one, or all others into coloured ones"
            raise FileError("an image is coloured, and those looked at first are grey", where=str(path), hint=hint)
        channels = torch.from_numpy(pixels.astype(np.uint8))
        channels = channels[None] if channels.dim() == 2 else channels.movedim(2, 0)
        return channels.expand(3 if self.coloured else 1, -1, -1).contiguous(), label


def look_at(files: Sequence[tuple[int, Path]], most: int) -> Pictures:
    """Return image files as a data set, whose size and colours are told from some that are evenly spaced.

    Args:
        files: the class number and the path of each, one at least.
        most: how many are looked at, at most.

    Raises:
        FileError: one that is looked at cannot be read, or they differ in size.
    """
    few = min(most, len(files))
    paths = [files[i * len(files) // few][1] for i in range(few)]
    seen = decode_images([(str(path), path) for path in paths], FORMATS)
    return Pictures(files, seen.shape[1], seen.shape[2], seen.ndim == 4)
