"""`.archir` files with bytes, headers, tensors and texts changed; often the checksum is made to fit again."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from archir.ir.load import load
from tools.trust import seeds
from tools.trust.attack import Attack, Files, Wrong
from tools.trust.hostile import NAMES
from tools.trust.mutate import mutate_bytes, mutate_text
from tools.trust.payloads import quoted
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


def known() -> Sequence[Files]:
    """Return sound files, damaged ones, and one with each hostile name of a tensor."""
    found = list(seeds.archives())
    small = found[0]
    header, rest = unpacked(small)
    meta = header["__metadata__"]
    for at in (0, 9, len(small) // 2, len(small) - 1):
        found += [small[:at] + bytes([small[at] ^ 1]) + small[at + 1 :], small[:at]]
    found.append(packed(dict(header), bytes([rest[0] ^ 1]) + rest[1:], fitting=False))
    found.append(packed(header | {"__metadata__": meta | {"graph": meta["graph"] + " "}}, rest, fitting=False))
    found += [
        packed(header | {"__metadata__": {**meta, "checksum": c}}, rest, fitting=False) for c in ("", "0", "00000000")
    ]
    first = next(name for name in header if name != "__metadata__")
    found += [packed(_renamed(header, first, name), rest, fitting=True) for name in NAMES]
    found += [
        packed(header | {first: header[first] | {"shape": s}}, rest, fitting=True) for s in ([2**62, 4], [1] * 100)
    ]
    return [{"net.archir": data} for data in found]


def use(folder: Path) -> None:
    """Load the file, check it without the package, and do with the graph what users do."""
    graph = load(folder / "net.archir")
    header, rest = unpacked((folder / "net.archir").read_bytes())
    if _checksum(header, rest) != header["__metadata__"]["checksum"]:
        raise Wrong("a file is accepted whose checksum does not fit what it holds")
    for name, node in graph.by_name.items():
        tensor = graph.tensors[node.id]
        if name in header and tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() != _bytes_of(
            header[name], rest
        ):
            raise Wrong("a tensor is not what the file holds")
    examine(graph)


ARCHIVES = Attack("archive", make, use, known, reads=True)


def unpacked(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the tensors of a safetensors file."""
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def packed(header: dict[str, Any], rest: bytes, *, fitting: bool) -> bytes:
    """Return a safetensors file, its checksum made to fit if wanted."""
    meta = header.get("__metadata__")
    if fitting and isinstance(meta, dict) and isinstance(meta.get("graph"), str):
        header["__metadata__"] = meta | {"checksum": _checksum(header, rest)}
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + rest


def _checksum(header: dict[str, Any], rest: bytes) -> str:
    value = zlib.crc32(header["__metadata__"]["graph"].encode("utf-8", "surrogatepass"))
    for name in sorted(n for n in header if n != "__metadata__"):
        value = zlib.crc32(_bytes_of(header[name], rest), value)
    return f"{value:08x}"


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
            return _renamed(header, name, dice.choice(NAMES))
    return header | {name: entry}


def _renamed(header: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """Return a header in which a tensor is called otherwise, in the text, too."""
    meta = header["__metadata__"]
    moved = {new if name == old else name: entry for name, entry in header.items()}
    return moved | {"__metadata__": meta | {"graph": meta["graph"].replace(f"@{old}", f"@{quoted(new)}")}}
