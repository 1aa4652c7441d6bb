"""Whether a model of the zoos is emitted as source and as ONNX, and computes there what it computes here."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from archir.emit.check import Emitted
from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.errors import ArchirError
from archir.ir.graph import Graph
from tools.limited import limited
from tools.zoo_models import captured

LIMIT = 300.0
"""Seconds a model may take, tracing included."""

FORMS: Mapping[str, Callable[[Graph, Path], Emitted]] = MappingProxyType(
    {"source": to_python, "ONNX": lambda graph, folder: to_onnx(graph, folder / "net.onnx")}
)
"""What writes each form of a model into a folder."""


@dataclass(frozen=True)
class Verdict:
    """What became of one form of one model.

    Attributes:
        reason: why it is not written, in a line; empty if it is, and is verified.
        difference: largest difference from the graph.
        undefined: number of output elements that the graph does not define, and that were not compared.
    """

    reason: str = ""
    difference: float = 0.0
    undefined: int = 0

    @property
    def cell(self) -> str:
        """The verdict as it stands in a table."""
        if self.reason:
            return self.reason.replace("|", "\\|")
        return f"yes, but for {self.undefined} undefined elements" if self.undefined else "yes"


def emit(name: str, seconds: float = LIMIT) -> dict[str, Verdict]:
    """Emit a model in every form, in a process of its own; in one for each form if that one crashes or hangs.

    Args:
        name: the model, by family and name.
        seconds: how long a form may take, tracing included.
    """
    every = tuple(FORMS)
    done = limited(emit_here, (name, every), seconds)
    if isinstance(done.result, dict):
        return done.result
    alone = {form: limited(emit_here, (name, (form,)), seconds) for form in every}
    return {form: found.result[form] if found.result else Verdict(found.error) for form, found in alone.items()}


def emit_here(name: str, forms: Sequence[str]) -> dict[str, Verdict]:
    """Do the same in this process, for some forms, without a limit."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph, _ = captured(name)
        except Exception as error:
            return dict.fromkeys(forms, _failed(error))
        return {form: _written(graph, form) for form in forms}


def _written(graph: Graph, form: str) -> Verdict:
    with tempfile.TemporaryDirectory() as folder:
        try:
            emitted = FORMS[form](graph, Path(folder))
        except Exception as error:
            return _failed(error)
    return Verdict("", emitted.difference, emitted.undefined)


def _failed(error: Exception) -> Verdict:
    if isinstance(error, ArchirError):
        return Verdict(_line(f"{error.what}: {error.why}" if error.why else error.what))
    return Verdict(_line(f"fault: {type(error).__name__}: {error}"))  # one that is not the package's own


def _line(text: str, most: int = 120) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
