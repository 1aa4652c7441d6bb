"""Reads a graph from an `.archir` file."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from archir.errors import FileError, GraphError, ParseError
from archir.ir.graph import Graph
from archir.ir.parse import parse_graph
from archir.ir.store import FORMAT, VERSION, checksum


def load(path: str | os.PathLike[str]) -> Graph:
    """Read a graph from a file that `Graph.save` wrote; it is verified.

    Args:
        path: the file.

    Raises:
        FileError: the file is missing or damaged, is no archir file, or is of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                hint = "write one with graph.save(path)"
                raise FileError(f"{path} is no archir file", why="it is a safetensors file without a graph", hint=hint)
            if metadata.get("version") != VERSION:
                why = f"it is of version {metadata.get('version')}, this archir reads version {VERSION}"
                raise FileError(f"cannot read {path}", why=why, hint="read it with the archir that wrote it")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path} is damaged or no archir file", why=str(error)) from error
    missing = [key for key in ("graph", "checksum") if key not in metadata]
    if missing:
        raise FileError(f"{path} is damaged", why=f"its metadata lack {' and '.join(missing)}")
    text = metadata["graph"]
    if metadata["checksum"] != checksum(text, tensors):
        raise FileError(f"{path} is damaged", why="its checksum does not fit what it holds")
    try:
        graph = parse_graph(text, tensors)
    except (ParseError, GraphError) as error:
        why = f"{error.what}: {error.why}" if error.why else error.what
        raise FileError(f"cannot read the graph in {path}", where=error.where, why=why, hint=error.hint) from error
    more = sorted(set(tensors) - set(graph.by_name))
    if more:
        raise FileError(f"{path} is damaged", why=f"it has tensors the graph does not name: {', '.join(more)}")
    return graph
