"""Writes a graph to an `.archir` file: a safetensors file whose metadata holds the text form.

Metadata: `format` (`archir`), `version`, `graph` (the text form with locations) and `checksum` (CRC-32 of the
text and the tensors in order). Each stored tensor stands once, under its first name.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Set
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from archir.errors import FileError
from archir.ir.data import GraphData
from archir.ir.files import replacing
from archir.ir.text import print_graph
from archir.ir.types import DTYPES, dtype_name

FORMAT = "archir"
VERSION = "1"
_RARE = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
_STORED = {*DTYPES.values(), *(getattr(torch, name) for name in _RARE)} - {torch.complex128}


def save(graph: GraphData, path: str | os.PathLike[str]) -> None:
    """Write a graph to a file; the file appears whole or not at all, and is on disk when this returns.

    Args:
        graph: the graph.
        path: the file, by custom `name.archir`; an old one is replaced.

    Raises:
        FileError: it cannot be written there, or safetensors does not hold one of the tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise FileError(f"cannot write {path}", why="it is a folder", hint="name a file in it")
    tensors: dict[str, torch.Tensor] = {}
    written: set[int] = set()
    for node in graph.parameters:
        tensor = graph.tensors[node.id]
        if node.parameter is None:
            raise FileError(f"cannot write {path}", why=f"parameter node {node.id} does not say what it is")
        name = node.parameter.names[0]
        if name == "__metadata__":
            raise FileError(f"cannot write {path}", why="safetensors keeps the name __metadata__ for itself")
        if tensor.dtype not in _STORED or tensor.is_meta or tensor.layout != torch.strided:
            kind = "meta" if tensor.is_meta else f"{dtype_name(tensor.dtype)} {str(tensor.layout)[6:]}"
            raise FileError(f"cannot write {path}", where=f"@{name}", why=f"safetensors does not hold {kind} tensors")
        tensors[name] = found = _own(tensor, written)
        written.add(found.data_ptr())
    text = print_graph(graph, locations=True)
    metadata = {"format": FORMAT, "version": VERSION, "graph": text, "checksum": checksum(text, tensors)}
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise FileError(f"cannot write {path}", why=str(error), hint="write into a folder that exists") from error


def checksum(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the checksum of a text and of contiguous tensors, in the order of their names."""
    value = zlib.crc32(text.encode())
    for _, tensor in sorted(tensors.items()):
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _own(tensor: torch.Tensor, taken: Set[int]) -> torch.Tensor:
    """Return the same values, row-major, in memory of their own: safetensors takes no tensors that share any.

    Args:
        tensor: the tensor.
        taken: where the memory of others begins.
    """
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    whole = plain.untyped_storage().nbytes() == plain.numel() * plain.element_size()
    return plain.clone() if plain.data_ptr() in taken or not whole else plain
