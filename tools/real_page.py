"""Keeps what was measured on networks of real size, and writes the table of docs/real.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tools.tables import markdown, replace_table

DOCS = Path(__file__).parent.parent / "docs"

NAMES = {"resnet18": "ResNet-18", "vgg19": "VGG-19", "vit_small": "ViT-S/16", "gpt2": "GPT-2 small"}
"""What each network is called, in the order of the table."""

ROWS: Mapping[str, tuple[str, str]] = {
    "parameters": ("parameters, millions", ".1f"),
    "train_step_seconds": ("a training step, seconds", ".2f"),
    "trace_over_train_step": ("trace", ".1f"),
    "analysis_over_train_step": ("analysis of widths", ".4f"),
    "candidates_over_train_step": ("candidates", ".3f"),
    "learning_step_over_train_step": ("a step of learning θ alone", ".2f"),
    "growth_step_over_train_step": ("a growth step", ".0f"),
    "carry_over_over_train_step": ("carry over", ".2f"),
    "peak_memory_over_train_step": ("peak memory", ".2f"),
    "share_of_budget": ("share of the budget", ".4f"),
    "units": ("units added", ",.0f"),
    "expected_change": ("expected change of the loss, nats", ".4f"),
    "true_change": ("true change of the loss, nats", ".4f"),
}
"""What each figure is called, and how it is written."""


def keep(figures: Mapping[str, Mapping[str, float]], folder: Path = DOCS) -> None:
    """Write real.json and the table of real.md between its marks.

    Args:
        figures: by network; those of other networks stay as they were.
        folder: where the page is.
    """
    kept = folder / "real.json"
    found = {**(json.loads(kept.read_text()) if kept.exists() else {}), **figures}
    kept.write_text(json.dumps(found, indent=2) + "\n")
    replace_table(folder / "real.md", "real-table", table(found))


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Return a row for each figure, a column for each network."""
    names = [name for name in NAMES if name in figures]
    rows = [
        [label, *(format(figures[name][row] / (1e6 if row == "parameters" else 1), form) for name in names)]
        for row, (label, form) in ROWS.items()
    ]
    return markdown(["", *(NAMES[name] for name in names)], rows)
