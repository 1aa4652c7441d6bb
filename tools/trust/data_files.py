"""`.npz` and IDX files and images with bytes, headers and shapes changed, or made of pickles."""

from __future__ import annotations

import gzip
import io
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from archir.growing.data import load_data
from tools.trust.attack import LINK, PIPE, Attack, Files, Wrong
from tools.trust.hostile import NAMES
from tools.trust.mutate import mutate_bytes
from tools.trust.reading import read_rows, rows_of
from tools.trust.watch import MARK

_DTYPES = (
    "<f4",
    "<f8",
    "<i8",
    "|u1",
    "|b1",
    "<c16",
    "<U4",
    "|S3",
    "<M8[s]",
    "|O",
    "<f2",
    ">i4",
    "<i9",
    "V8",
    "|V0",
    "",
    "x",
    "<f4,<f4",
)
_SHAPES = (
    "(12, 4)",
    "(0, 4)",
    "(12,)",
    "()",
    "(12, 1)",
    "(1099511627776,)",
    "(9223372036854775807, 2)",
    "(-1, 4)",
    "(12, 0)",
    "(12, 2, 2)",
    "(3, 4",
    "12",
    "(1,)*9",
)
_KEYS = (
    "x",
    "y",
    "X",
    "images",
    "labels",
    "x_train",
    "y_train",
    "x_test",
    "y_test",
    "classes",
    "jpeg",
    "offsets",
    "train_x",
    "data",
    "target",
)


class _Payload:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return exec, (f"import builtins; builtins.{MARK} = 1",)


def make(dice: random.Random) -> Files:
    """Return data, and what they are called."""
    return dice.choice((_npz, _npz, _npz_by_hand, _field, _idx, _images, _jpeg))(dice)


def _field(dice: random.Random) -> Files:
    """Return a `.npz` with one or two fields of a header changed."""
    fields: dict[str, Any] = {}
    for _ in range(dice.choice((1, 1, 2))):
        name, words = dice.choice((("descr", _DTYPES), ("shape", _SHAPES), ("order", ("True", "1", "None"))))
        fields[name] = dice.choice(words)
    return _by_hand(
        _header(**fields), bytes(dice.choice((192, 192, 96, 384, 24, 0))), dice.choice(((1, 0), (1, 0), (2, 0)))
    )


def known() -> Sequence[Files]:
    """Return sound files of all kinds of numbers, headers with one field changed, links, pipes and pickles."""
    x, y = np.arange(48, dtype=np.float32).reshape(12, 4) / 7, np.arange(12) % 3
    kinds = ("<f4", ">f4", "<f8", ">f8", "<f2", "|u1", "|i1", "<i2", ">i4", "<i8", "|b1", ">u2")
    found = [_saved(x=(x * 3).astype(kind), y=y) for kind in kinds]
    found += [
        _saved(x=np.asfortranarray(x.reshape(12, 2, 2)), y=y),
        _saved(images=x.reshape(12, 2, 2, 1), labels=y[:, None]),
    ]
    found += [_saved(x=x, y=y.astype(kind)) for kind in (">i4", "|u1", "<f4", ">f8", "|b1", "<u8")]
    headers = [_header(descr=d) for d in _DTYPES] + [_header(shape=s) for s in _SHAPES]
    headers += [_header(order=o) for o in ("True", "1", "None", "'x'")] + [
        _header(more=m) for m in (", 'x': 1", ", 'descr': '<f8'")
    ]
    headers += [
        "__import__('os')",
        "{" * 3000,
        "[" * 9000,
        "{'descr': " + "(" * 500,
        "",
        "1e999",
        "9" * 5000,
        "{}",
        "[]",
    ]
    found += [_by_hand(header, bytes(192)) for header in headers]
    found += [_by_hand(_header(), body) for body in (b"", bytes(191), bytes(193), bytes(10**6))]
    found += [
        _by_hand(_header(descr="|O"), pickle.dumps(_Payload())),
        _named("data/d.npz", {"d.npz": pickle.dumps(_Payload())}),
    ]
    found += [_by_hand(_header(), bytes(192), version=v) for v in ((2, 0), (3, 0), (9, 9), (0, 0))]
    for code, (kind, size) in {
        8: ("B", 1),
        9: ("b", 1),
        11: ("h", 2),
        12: ("i", 4),
        13: ("f", 4),
        14: ("d", 8),
    }.items():
        numbers = [n % 100 for n in range(12 * 16)]
        images = struct.pack(">BBBB3I", 0, 0, code, 3, 12, 4, 4) + struct.pack(f">{len(numbers)}{kind}", *numbers)
        labels = struct.pack(">BBBBI", 0, 0, 8, 1, 12) + bytes(n % 3 for n in range(12))
        for ending, pack in (("", bytes), (".gz", gzip.compress)):
            names = (f"t-images-idx3-ubyte{ending}", f"t-labels-idx1-ubyte{ending}")
            found.append(_named("data", {names[0]: pack(images), names[1]: pack(labels)}))
            found.append(_named("data", {names[0]: pack(images[:-size]), names[1]: pack(labels)}))
    sound = found[0]["data/d.npz"]
    found += [
        {f"{LINK}data/d.npz": t, "spec": b"data/d.npz"} for t in (b"/dev/zero", b"nowhere", b"d.npz", b"/etc/passwd")
    ]
    found += [{f"{PIPE}data/d.npz": b"", "spec": b"data/d.npz"}, {f"{PIPE}data/a/0.png": b"", "spec": b"data"}]
    found += [{"data/d.npz": sound, f"{LINK}more": b"data", "spec": b"more/d.npz"}]
    found.append(_named("data", {f"{label}/{i}.png": _bomb() for label in "ab" for i in range(3)}))
    return found


def _saved(**arrays: Any) -> Files:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return _named("data/d.npz", {"d.npz": file.getvalue()})


def _header(*, descr: str = "<f4", order: str = "False", shape: str = "(12, 4)", more: str = "") -> str:
    return f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}{more}}}"


def _by_hand(header: str, body: bytes, version: tuple[int, int] = (1, 0)) -> Files:
    """Return a `.npz` of whose inputs the header and what follows it are given."""
    file, labels, text = io.BytesIO(), io.BytesIO(), header.encode() + b"\n"
    np.save(labels, np.arange(12) % 3)
    length = struct.pack("<H" if version < (2, 0) else "<I", len(text) % 65536)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY" + bytes(version) + length + text + body)
        archive.writestr("y.npy", labels.getvalue())
    return _named("data/d.npz", {"d.npz": file.getvalue()})


def _named(spec: str, files: Files) -> Files:
    return {**{f"data/{n}": c for n, c in files.items()}, "spec": spec.encode()}


def _mutated(dice: random.Random, data: bytes) -> bytes:
    return mutate_bytes(dice, data) if dice.random() < 0.7 else data


def _npz(dice: random.Random) -> Files:
    """Return arrays of odd shapes and types under odd names."""
    numbers = np.random.default_rng(dice.randrange(1000))
    shape = dice.choice(((12, 4), (12,), (0, 4), (12, 1, 2, 2), (12, 2, 2, 3), (1, 4), (2, 4), ()))
    x = numbers.standard_normal(shape).astype(dice.choice(("f4", "f8", "i8", "u1", "c8", "U3", "f2", "b1")))
    y = np.array(
        dice.choice(
            (
                np.arange(12) % 3,
                np.arange(12.0),
                np.full(12, 2**40),
                np.full(12, -5),
                np.full((12, 1), 1),
                np.zeros(0),
                np.uint64(2**63),
            )
        )
    )
    if x.dtype.kind == "f" and x.size and dice.random() < 0.2:
        x.flat[0] = dice.choice((np.nan, np.inf))
    file = io.BytesIO()
    names = ("x", "y") if dice.random() < 0.6 else dice.sample(_KEYS, 2)
    more = {dice.choice(_KEYS): y} if dice.random() < 0.2 else {}
    arrays: dict[str, Any] = {names[0]: x, names[1]: y, **more}
    np.savez(file, **arrays)
    return _named("data/d.npz", {"d.npz": _mutated(dice, file.getvalue())})


def _npz_by_hand(dice: random.Random) -> Files:
    """Return a zip of arrays whose headers do not fit, are code, or are pickles."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name in ("x", "y", *([dice.choice((*_KEYS, *NAMES[:40]))] if dice.random() < 0.3 else [])):
            order, shape = dice.choice(("False", "True", "1")), dice.choice(_SHAPES)
            header = f"{{'descr': '{dice.choice(_DTYPES)}', 'fortran_order': {order}, 'shape': {shape}}}"
            if dice.random() < 0.1:
                header = dice.choice(
                    ("__import__('os')", "{" * 3000, "[" * 9000, "{'descr': " + "(" * 500, "", "1e999", "9" * 5000)
                )
            body = dice.choice((b"", bytes(96), dice.randbytes(48), pickle.dumps(_Payload()), bytes(192)))
            text = header.encode() + b"\n"
            archive.writestr(
                f"{name}.npy".replace("\ud800", "?"),
                b"\x93NUMPY\x01\0" + struct.pack("<H", len(text) % 65536) + text + body,
            )
    return _named(
        "data/d.npz", {"d.npz": mutate_bytes(dice, file.getvalue()) if dice.random() < 0.3 else file.getvalue()}
    )


def _idx(dice: random.Random) -> Files:
    """Return images and labels as MNIST has them."""

    def array(shape: tuple[int, ...], kind: int) -> bytes:
        body = dice.randbytes(int(np.prod(shape)))
        return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape) + body

    images, labels = array((12, 4, 4), 8), array((12,), 8)
    if dice.random() < 0.3:
        sizes = [dice.choice((0, 1, 12, 2**31, 2**32 - 1)) for _ in range(dice.choice((0, 1, 3, 33, 255)))]
        images = (
            struct.pack(f">BBBB{len(sizes)}I", 0, 0, dice.choice((8, 9, 11, 13, 14, 0, 255)), len(sizes), *sizes)
            + images[16:]
        )
    ending = dice.choice(("", ".gz"))
    files = {
        f"t-images-idx3-ubyte{ending}": _mutated(dice, images),
        f"t-labels-idx1-ubyte{ending}": _mutated(dice, labels),
    }
    if ending:
        files = {
            n: mutate_bytes(dice, gzip.compress(c)) if dice.random() < 0.3 else gzip.compress(c)
            for n, c in files.items()
        }
    return _named(dice.choice(("data", f"data/t-images-idx3-ubyte{ending}")), files)


def _picture(dice: random.Random, kind: str) -> bytes:
    file = io.BytesIO()
    mode = dice.choice(("L", "RGB", "RGB", "1"))
    Image.frombytes(mode, (4, 4), dice.randbytes({"L": 16, "RGB": 48, "1": 4}[mode])).save(file, kind)
    return file.getvalue()


def _images(dice: random.Random) -> Files:
    """Return folders of images, and what does not belong there."""
    kind = dice.choice(("png", "jpeg", "bmp", "gif", "ppm", "tiff", "webp"))
    files = {f"{label}/{i}.{kind}": _picture(dice, kind) for label in ("a", "b") for i in range(5)}
    for name in dice.sample(sorted(files), 2):
        files[name] = _mutated(dice, files[name])
    if dice.random() < 0.2:
        files[dice.choice(("c/x.txt", "x.png", "a/b/c.png", "a/.hidden", "train/a/1.png"))] = dice.randbytes(20)
    if dice.random() < 0.1:
        files["a/0.png"] = _bomb()
    return _named("data", files)


def _bomb() -> bytes:
    """Return a PNG that says it has 2 ** 62 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def _jpeg(dice: random.Random) -> Files:
    """Return JPEG bytes with offsets and labels."""
    pictures = [_picture(dice, "jpeg") for _ in range(10)]
    offsets = np.cumsum([0, *map(len, pictures)])
    if dice.random() < 0.4:
        offsets = offsets.astype(dice.choice(("f8", "u1", "i4", "U8")))
    if dice.random() < 0.3 and offsets.dtype.kind in "if":
        offsets[dice.randrange(len(offsets))] = dice.choice((-1, 0, 100, 2**31 - 1))
    bodies = np.frombuffer(_mutated(dice, b"".join(pictures)), np.uint8)
    file = io.BytesIO()
    np.savez(file, jpeg=bodies, offsets=offsets, labels=np.arange(10) % dice.choice((1, 3)))
    return _named("data/d.npz", {"d.npz": _mutated(dice, file.getvalue())})


def use(folder: Path) -> None:
    """Read the data, the test data, too, and compare with what others read in them."""
    spec = (folder / "spec").read_text()
    dataset = load_data(spec, base=folder)
    for split in (dataset.train, dataset.validation, dataset.test):
        if not len(split):
            raise Wrong("a split has no examples")
    if not (folder / spec).exists():
        return
    wanted = read_rows(folder / spec)
    if wanted is not None and rows_of(load_data(spec, base=folder, normalise=False)) != wanted:
        raise Wrong("the examples are not those of the file")


DATA = Attack("data", make, use, known, reads=True)
