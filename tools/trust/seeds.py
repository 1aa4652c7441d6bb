"""Sound networks, files and runs that attacks start from; made once, in the process that makes the trials."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

from archir.ir.graph import Graph
from archir.ir.parse import parse_graph
from archir.ir.text import print_graph
from frontends.pytorch import trace
from tests.models.texts import TEXTS, TOLD
from tools.trust.growing import OPTIONS, grow_small, seed_of_run

SPARSE = replace(OPTIONS, checkpoint_every=25)
"""Options of the run whose files are attacked: with few checkpoints."""

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), (4,)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(4, 4, 3, groups=2),
            nn.Flatten(), nn.Linear(64, 3),
        ),
        (2, 6, 6),
    ),
    "tokens": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True), (5, 8)),
    "recurrent": (lambda: Recurrent(), (5, 4)),
}  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.cell(x)[0])
        return out


@cache
def networks() -> tuple[Graph, ...]:
    """Return graphs of small networks, with the marks of rewriting in some."""
    torch.manual_seed(0)
    made = (trace(make().eval(), (torch.randn(2, *shape),)) for make, shape in NETWORKS.values())
    return (*made, *map(parse_graph, (*TEXTS.values(), TOLD)))


@cache
def texts() -> tuple[str, ...]:
    """Return texts of graphs, with and without notes."""
    return tuple(print_graph(g, locations=told) for g in networks() for told in (False, True))


@cache
def archives() -> tuple[bytes, ...]:
    """Return the files of the networks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.archir"
        found: list[bytes] = []
        for graph in networks():
            graph.save(path)
            found.append(path.read_bytes())
    return tuple(found)


@cache
def run_files() -> dict[str, bytes]:
    """Return the files of a finished run."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        grow_small(seed_of_run(), run, options=SPARSE)
        return {p.name: p.read_bytes() for p in sorted(run.iterdir()) if p.is_file()}


def last_step() -> int:
    """Return the step of the newest checkpoint of the run."""
    return SPARSE.steps
