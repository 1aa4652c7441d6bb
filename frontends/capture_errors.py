"""Tells why a model cannot be captured: its own error, and the line of the user's that it comes from."""

from __future__ import annotations

import contextlib
import copy
import traceback
from pathlib import Path

from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from archir.errors import CaptureError
from frontends.examples import Example
from frontends.locations import TORCH

_PASSED_THROUGH = (str(Path(__file__).parent), contextlib.__file__, "<")
"""Where code of nobody's own stands that an error comes through."""


def own_error(model: nn.Module, example: Example) -> Exception | None:
    """Return the error the model itself raises on its arguments, if it does."""
    try:
        model, example = copy.deepcopy((model, example))
    except Exception:
        return None  # not copied, not run: the model stays as it was
    try:
        model(*example.args, **example.kwargs)
    except Exception as error:
        return error
    return None


def explain(model: nn.Module, error: Exception) -> CaptureError:
    """Return the error that a model cannot be captured, with the user's line where the export failed."""
    name = type(model).__name__
    where = user_line(error)
    if isinstance(error, GuardOnDataDependentSymNode):
        return CaptureError(
            f"{name} cannot be captured: its control flow depends on data",
            where=where,
            why=first_line(error),
            hint="decide on shapes or arguments instead, or compute both branches and choose with torch.where",
        )
    return CaptureError(f"{name} cannot be captured", where=where, why=f"{type(error).__name__}: {first_line(error)}")


def first_line(error: Exception) -> str:
    """Return the first line of a message, and the first thing it lists."""
    lines = str(error).strip().split("\n\nThe error above occurred", 1)[0].splitlines()
    listed = next((line.strip() for line in lines if line.startswith("  - ")), "")
    return " ".join(filter(None, [*lines[:1], listed])) or type(error).__name__


def user_line(error: BaseException) -> str:
    """Return the last line of the user's that an error came through, or else of a layer; empty if there is none."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_PASSED_THROUGH)]
    users = [f for f in frames if not f.filename.startswith(TORCH)]
    modules = Path(TORCH, "nn", "modules")
    stock = [f for f in frames if modules in Path(f.filename).parents and Path(f.filename).name != "module.py"]
    for frame in reversed(users or stock):
        return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return ""
