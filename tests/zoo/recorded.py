"""The recorded widths of the wide zoo: what is expected to be free, so that too much freezing shows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from archir.axes.describe import describe
from archir.axes.widths import Widths
from archir.ir.graph import Graph
from frontends.pytorch import trace
from tests.zoo.catalog import WIDE_ZOO

EXPECTED = Path(__file__).parent / "expected"


def path_of(name: str) -> Path:
    """Return where the widths of a model are recorded."""
    return EXPECTED / f"{name.replace('/', '_')}.txt"


def capture(name: str) -> Graph:
    """Return the graph of a model of the wide zoo, the same every time."""
    example = WIDE_ZOO[name]
    torch.manual_seed(0)
    return trace(example.build(), example.inputs(), example.kwargs())


def listing(widths: Widths) -> str:
    """Return the free widths with roles and places, how many others are frozen for each reason, and the coverage."""
    table = describe(widths).splitlines()
    reasons = Counter(width.reason.partition(" (")[0] for width in widths.frozen)
    frozen = [f"frozen | {count} | {reason}" for reason, count in sorted(reasons.items())]
    return "\n".join([*table[: len(widths)], *frozen, table[-1], ""])
