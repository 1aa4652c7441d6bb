"""Whether a model of the zoos is emitted as source and as ONNX, and computes there what it computes here."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from archir.emit.check import Emitted
from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.errors import ArchirError
from archir.ir.graph import Graph
from frontends.pytorch import trace
from tests.models import ZOO
from tests.zoo.catalog import WIDE_ZOO
from tools.limited import limited

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


def emit(name: str, form: str, seconds: float = LIMIT) -> Verdict:
    """Emit a model in one form, in a process of its own.

    Args:
        name: the model, by family and name.
        form: one of `FORMS`.
        seconds: how long it may take.
    """
    done = limited(emit_here, (name, form), seconds)
    return done.result if isinstance(done.result, Verdict) else Verdict(done.error)


def emit_here(name: str, form: str) -> Verdict:
    """Do the same in this process, without a limit."""
    family, _, short = name.partition("/")
    example = ZOO[short] if family == "own" else WIDE_ZOO[name]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        try:
            model, static = example.build(), example.static_batch
            graph = trace(model, example.inputs(), example.kwargs(), static_batch=static)
            emitted = FORMS[form](graph, Path(folder))
        except ArchirError as error:
            return Verdict(_line(f"{error.what}: {error.why}" if error.why else error.what))
        except Exception as error:  # one that is not the package's own is a fault, and is told as such
            return Verdict(_line(f"fault: {type(error).__name__}: {error}"))
    return Verdict("", emitted.difference, emitted.undefined)


def _line(text: str, most: int = 120) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
