"""Where in the user's program a node of an exported program comes from."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import fx

from archir.ir.module import LOWERED
from archir.ir.node import Location

TORCH = str(Path(torch.__file__).parent)
"""Folder of the torch package, whose own lines are not the user's."""

_FRAME = re.compile(r'File "(?P<file>.+?)", line (?P<line>\d+), in ')


def location(node: fx.Node) -> Location | None:
    """Return the place a node comes from, None if nothing is known of it."""
    stack = [entry for entry in (node.meta.get("nn_module_stack") or {}).values() if not entry[0].startswith("_empty")]
    path, kind = stack[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    frames = [(m["file"], int(m["line"])) for m in _FRAME.finditer(node.meta.get("stack_trace") or "")]
    users = [f for f in frames if not f[0].startswith((TORCH, "torch/", "<", LOWERED))]
    if not stack and not users:
        return None
    file, line = users[-1] if users else ("", 0)
    # A module called more than once has `@1`, `@2`, ... appended to its path.
    return Location(re.sub(r"@\d+", "", path), kind, file, line)
