"""Reads the networks that commands and configurations name by their files."""

from __future__ import annotations

from pathlib import Path

from archir.ir.graph import Graph
from archir.ir.load import load
from frontends.onnx.read import SUFFIX, from_onnx


def load_net(path: Path) -> Graph:
    """Return the graph of an `.archir` file, or of an ONNX file.

    Raises:
        CaptureError: nodes of an ONNX file cannot be read.
        FileError: the file is missing or damaged.
    """
    return from_onnx(path) if path.suffix.lower() == SUFFIX else load(path)
