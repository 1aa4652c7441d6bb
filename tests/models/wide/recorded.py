"""The recorded widths of the wide zoo: what is expected to be free, so that too much freezing shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from archir.axes.describe import describe
from archir.axes.widths import Widths
from archir.errors import CaptureWarning
from archir.ir.graph import Graph
from frontends.pytorch import trace
from tests.models.wide.catalog import WIDE_ZOO

EXPECTED = Path(__file__).parents[2] / "zoo" / "expected"


DROPPED_PATHS = r"drop_path.*rand \(in training only\)"
BRANCH = "a branch on random numbers or data"
LOSSES: Mapping[str, str] = {
    "language/bert_eager": r"dropout with 0\.1 in training and 0\.0 in evaluation",
    "language/bloom": r"GeLUFunction\.backward",
    **dict.fromkeys((f"vision/{m}" for m in ("beit", "cvt", "focalnet", "segformer", "swin", "swinv2")), DROPPED_PATHS),
    "vision/detr": BRANCH,
    **dict.fromkeys((f"audio/{m}" for m in ("hubert", "sew", "wav2vec2", "wavlm")), BRANCH),
}
"""What training does to some models and not to their graphs: the models by name, with what `trace` warns of."""


def path_of(name: str) -> Path:
    """Return where the widths of a model are recorded."""
    return EXPECTED / f"{name.replace('/', '_')}.txt"


def capture(name: str) -> Graph:
    """Return the graph of a model of the wide zoo, the same every time; what it loses has to be known."""
    example = WIDE_ZOO[name]
    torch.manual_seed(0)
    model = example.build()
    known = pytest.warns(CaptureWarning, match=LOSSES[name]) if name in LOSSES else nullcontext()
    with known:
        return trace(model, example.inputs(), example.kwargs(), static_batch=example.static_batch)


def listing(widths: Widths) -> str:
    """Return the free widths with roles and places, how many others are frozen for each reason, and the coverage."""
    table = describe(widths).splitlines()
    reasons = Counter(width.reason.partition(" (")[0] for width in widths.frozen)
    frozen = [f"frozen | {count} | {reason}" for reason, count in sorted(reasons.items())]
    return "\n".join([*table[: len(widths)], *frozen, table[-1], ""])
