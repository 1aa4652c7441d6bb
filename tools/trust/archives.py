"""`.archir` files with bytes, headers, tensors and texts changed; often the checksum is made to fit again."""

from __future__ import annotations

import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any

from archir.ir.load import load
from tools.trust import seeds
from tools.trust.attack import Attack, Files
from tools.trust.hostile import NAMES
from tools.trust.mutate import mutate_bytes, mutate_text
from tools.trust.sound import examine
from tools.trust.texts import mutated

_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "C64", "F8_E4M3", "F4", "X", "")
_SIZES = (0, 1, -1, 2, 3, 2**31, 2**40, 2**63 - 1, 2**63, 2**64, 1.5, "4", None, [4], True)


def make(dice: random.Random) -> Files:
    """Return a file."""
    data = dice.choice(seeds.archives())
    kind = dice.randrange(10)
    if kind == 0:
        return {"net.archir": mutate_bytes(dice, data)}
    header, rest = unpacked(data)
    meta = header["__metadata__"]
    if kind <= 5:
        meta["graph"] = _text(dice, meta["graph"])
    elif kind <= 7:
        header = _changed(dice, header)
    elif kind == 8:
        rest = mutate_bytes(dice, rest)
    else:
        key = dice.choice(("format", "version", "graph", "checksum", "more"))
        header["__metadata__"] = meta | {key: dice.choice(("", "2", "archir", *NAMES))}
    return {"net.archir": packed(header, rest, fitting=dice.random() < 0.9)}


def use(folder: Path) -> None:
    """Load the file, and do with the graph what users do."""
    examine(load(folder / "net.archir"))


ARCHIVES = Attack("archive", make, use)


def unpacked(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the tensors of a safetensors file."""
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def packed(header: dict[str, Any], rest: bytes, *, fitting: bool) -> bytes:
    """Return a safetensors file, its checksum made to fit if wanted."""
    meta = header.get("__metadata__")
    if fitting and isinstance(meta, dict) and isinstance(meta.get("graph"), str):
        value = zlib.crc32(meta["graph"].encode("utf-8", "surrogatepass"))
        for name in sorted(n for n in header if n != "__metadata__"):
            value = zlib.crc32(_bytes_of(header[name], rest), value)
        header["__metadata__"] = meta | {"checksum": f"{value:08x}"}
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + rest


def _bytes_of(entry: Any, rest: bytes) -> bytes:
    try:
        start, end = entry["data_offsets"]
        return rest[start:end]
    except (KeyError, TypeError, ValueError):
        return b""


def _text(dice: random.Random, text: str) -> str:
    """Return a text that is changed, or one that does not belong to the tensors."""
    if dice.random() < 0.3:
        return mutated(dice)
    names = (
        [json.dumps(n) for n in NAMES],
        ["`" + json.dumps(n)[1:-1] + "`" for n in NAMES],
        ["0", "-1", "2**62", "9**9**9"],
    )
    return mutate_text(dice, text, names)


def _changed(dice: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    """Return a header with an entry changed, renamed (in the text, too) or removed."""
    names = [n for n in header if n != "__metadata__"]
    if not names:
        return header
    name = dice.choice(names)
    entry = dict(header[name])
    match dice.randrange(6):
        case 0:
            entry["dtype"] = dice.choice(_DTYPES)
        case 1:
            shape = list(entry["shape"]) or [1]
            shape[dice.randrange(len(shape))] = dice.choice(_SIZES)
            entry["shape"] = dice.choice((shape, shape * 30, [], None, shape[::-1]))
        case 2:
            entry["data_offsets"] = dice.choice(
                ([0, 2**40], [2**63, 2**64], [4, 0], [-4, 0], [0], header[dice.choice(names)]["data_offsets"])
            )
        case 3:
            entry[dice.choice(("more", "shape", "dtype"))] = dice.choice(_SIZES)
        case 4:
            del entry[dice.choice(list(entry))]
        case _:
            new = dice.choice(NAMES)
            quoted = "`" + json.dumps(new)[1:-1].replace("`", "\\u0060") + "`"
            meta = header["__metadata__"]
            text = meta["graph"].replace(f"@{name}", f"@{quoted}")
            moved = {new if k == name else k: v for k, v in header.items()}
            return moved | {"__metadata__": meta | {"graph": text}}
    return header | {name: entry}
