"""Images in folders of classes and as JPEG bytes in `.npz`."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from archir.errors import FileError
from archir.growing.data import load_data
from archir.growing.examples import make_split
from archir.growing.images import look_at
from tests.growing.data_files import (
    Array,
    all_rows,
    as_floats,
    inputs_of,
    random_images,
    rows,
    savez,
    write_folders,
)


def _jpeg_npz(path: Path, images: Array, labels: Array, **changes: Array) -> list[Array]:
    """Write images as JPEG bytes in a `.npz`, and return them as they decode."""
    pictures, offsets, decoded = b"", [0], []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=75)
        decoded.append(np.asarray(Image.open(buffer)))
        pictures += buffer.getvalue()
        offsets.append(len(pictures))
    arrays = {"jpeg": np.frombuffer(pictures, np.uint8), "offsets": np.array(offsets), "labels": labels}
    savez(path, **{**arrays, "classes": np.array(["a", "b"]), **changes})
    return decoded


@pytest.mark.parametrize("shape", [(8, 6, 3), (8, 6)])
def test_jpeg_bytes_in_npz(tmp_path: Path, shape: tuple[int, ...]) -> None:
    labels = np.arange(10, dtype=np.uint8) % 2
    train = _jpeg_npz(tmp_path / "train.npz", random_images(10, *shape), labels)
    test = _jpeg_npz(tmp_path / "test.npz", random_images(4, *shape, seed=1), labels[:4])
    data = load_data("train=train.npz,test=test.npz", base=tmp_path, normalise=False)
    assert data.classes == ("a", "b")
    assert rows(data.test) == rows(as_floats(make_split(np.stack(test), labels[:4], "")))
    assert rows(data.train, data.validation) == rows(as_floats(make_split(np.stack(train), labels, "")))


def test_damaged_jpeg_archives(tmp_path: Path) -> None:
    images, labels = random_images(4, 8, 8, 3), np.arange(4, dtype=np.uint8) % 2
    _jpeg_npz(tmp_path / "offsets.npz", images, labels, offsets=np.array([0, 5, 4, 9, 20]))
    with pytest.raises(FileError, match="its offsets do not run"):
        load_data("offsets.npz", base=tmp_path)
    _jpeg_npz(tmp_path / "labels.npz", images, labels[:3])
    with pytest.raises(FileError, match="4 in inputs, 3 in targets"):
        load_data("labels.npz", base=tmp_path)
    _jpeg_npz(tmp_path / "bytes.npz", images, labels, jpeg=np.zeros(9, np.uint8), offsets=np.array([0, 2, 4, 6, 9]))
    with pytest.raises(FileError, match=r"bytes.npz, image 0 is not an image"):
        load_data("bytes.npz", base=tmp_path)


def test_class_folders(tmp_path: Path) -> None:
    images = random_images(20, 5, 4, 3)
    write_folders(tmp_path, images)
    (tmp_path / ".hidden").write_text("")
    data = load_data(str(tmp_path), normalise=False)
    assert data.classes == ("ant", "bee")
    assert all_rows(data) == rows(as_floats(make_split(images, np.arange(20) % 2, "")))


def test_class_folders_of_splits(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "val", "test")):
        write_folders(tmp_path / split, random_images(6 + 2 * i, 5, 4, seed=i))
    data = load_data(str(tmp_path))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [6, 8, 10]
    assert inputs_of(data.train).shape == (6, 1, 5, 4)


def test_grey_and_coloured_images_together_are_coloured(tmp_path: Path) -> None:
    write_folders(tmp_path, random_images(10, 5, 4, 3))
    Image.fromarray(random_images(1, 5, 4)[0]).save(tmp_path / "ant" / "grey.png")
    assert inputs_of(load_data(str(tmp_path)).train).shape[1:] == (3, 5, 4)


def test_bad_class_folders(tmp_path: Path) -> None:
    write_folders(tmp_path / "a", random_images(10, 5, 4))
    Image.fromarray(random_images(1, 6, 4)[0]).save(tmp_path / "a" / "bee" / "odd.png")
    with pytest.raises(FileError, match=r"images differ in size: 4x5 and 4x6\n  where: .*odd.png"):
        load_data("a", base=tmp_path)
    (tmp_path / "a" / "bee" / "odd.png").write_bytes(b"nothing")
    with pytest.raises(FileError, match=r"odd.png is not an image that can be read"):
        load_data("a", base=tmp_path)
    (tmp_path / "a" / "bee" / "odd.png").rename(tmp_path / "a" / "bee" / "notes.txt")
    with pytest.raises(FileError, match=r"notes.txt is not an image"):
        load_data("a", base=tmp_path)
    (tmp_path / "a" / "bee" / "notes.txt").rename(tmp_path / "a" / "notes.txt")
    with pytest.raises(FileError, match=r"not a folder of class folders\n  why:   notes.txt is no folder"):
        load_data("a", base=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="empty"):
        load_data("empty", base=tmp_path)
    (tmp_path / "hollow" / "ant").mkdir(parents=True)
    with pytest.raises(FileError, match="has no images"):
        load_data("hollow", base=tmp_path)
    Image.fromarray(np.zeros((5, 4), np.uint16)).save(tmp_path / "hollow" / "ant" / "deep.png")
    with pytest.raises(FileError, match="its pixels are no bytes"):
        load_data("hollow", base=tmp_path)


def test_classes_have_to_be_the_same_in_every_split(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", random_images(6, 5, 4))
    write_folders(tmp_path / "test", random_images(6, 5, 4), ("ant", "bug"))
    with pytest.raises(FileError, match=r"classes of test are not those .*\n  where: bee, bug"):
        load_data(str(tmp_path))
    write_folders(tmp_path / "extra", random_images(6, 5, 4))
    with pytest.raises(FileError, match="has folders beside its splits"):
        load_data(str(tmp_path))


def test_images_that_could_start_programs_are_not_opened(tmp_path: Path) -> None:
    """Whatever they are called: Pillow hands EPS to Ghostscript."""
    write_folders(tmp_path, random_images(4, 5, 4, 3))
    Image.fromarray(random_images(1, 5, 4, 3)[0]).save(tmp_path / "ant" / "000.png", "EPS")
    with pytest.raises(FileError, match=r"000\.png is not an image that can be read"):
        load_data(".", base=tmp_path)


def test_images_as_large_as_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)
    write_folders(tmp_path, random_images(4, 5, 4, 3))
    with pytest.raises(FileError, match="decompression bomb"):
        load_data(".", base=tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_pipes_and_devices_are_no_images(tmp_path: Path, make: Callable[[Path], object]) -> None:
    write_folders(tmp_path, random_images(4, 5, 4))
    make(tmp_path / "bee" / "999.png")
    with pytest.raises(FileError, match=r"999\.png is not an image that can be read\n.*no regular file"):
        load_data(".", base=tmp_path)


def test_images_of_another_size_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For they may be small as files and very large as pixels."""
    for name, height in (("first", 5), ("other", 6)):
        Image.fromarray(random_images(1, height, 4)[0]).save(tmp_path / f"{name}.png")
    pictures = look_at([(0, tmp_path / "first.png"), (1, tmp_path / "other.png")], 1)
    decoded: list[object] = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded.append)
    with pytest.raises(FileError, match=r"images differ in size: 4x5 and 4x6\n  where: .*other.png"):
        pictures[1]
    assert not decoded
