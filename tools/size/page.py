"""Keeps what was measured, and writes the tables and the plot of docs/scale.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tools.size.figures import looked_at
from tools.tables import markdown, replace_table

DOCS = Path(__file__).parent.parent.parent / "docs"

COUNTED = {"nodes": "nodes", "parameters": "parameters", "trace": "nodes"}
"""What the sizes of each part count."""

SOLID = 10
"""Lines of a plot beyond these are dashed: colours come again."""


def keep(figures: Mapping[str, Any], folder: Path = DOCS) -> Mapping[str, Any]:
    """Write scale.json, the tables of scale.md between their marks, and scale.png.

    Args:
        figures: by part; those of other parts stay as they were.
        folder: where the page is.

    Returns:
        What is in scale.json now.
    """
    kept = folder / "scale.json"
    found = {**(json.loads(kept.read_text()) if kept.exists() else {}), **figures}
    kept.write_text(json.dumps(found, indent=2) + "\n")
    for part, measured in found.items():
        replace_table(folder / "scale.md", f"{part}-table", table(part, measured))
    plot(found, folder / "scale.png")
    return found


def table(part: str, measured: Mapping[str, Any]) -> str:
    """Return a row for each task: seconds at each size, the exponent, and the sizes it is found over."""
    times = measured["seconds"]
    sizes = sorted({int(size) for taken in times.values() for size in taken})
    rows = []
    for name, taken in times.items():
        cells = [f"{taken[str(size)]:.3g}" if str(size) in taken else "-" for size in sizes]
        fitted = looked_at(part, taken)
        rows.append([name, *cells, f"{measured['exponents'][name]:.2f}", f"{fitted[0]:,} to {fitted[-1]:,}"])
    return markdown([f"seconds, {COUNTED[part]}:", *(f"{size:,}" for size in sizes), "exponent", "found over"], rows)


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """Plot the times over the sizes, a panel for each part."""
    figure = Figure(figsize=(6 * len(figures), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(figures), squeeze=False)[0]
    for axes, (part, measured) in zip(panels, figures.items(), strict=True):
        for number, (name, taken) in enumerate(measured["seconds"].items()):
            sizes = sorted(map(int, taken))
            style = "o-" if number < SOLID else "s--"
            axes.plot(sizes, [taken[str(size)] for size in sizes], style, markersize=3, linewidth=1, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(part)
        axes.set_xlabel(COUNTED[part])
        axes.set_ylabel("seconds of one processor")
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
    figure.savefig(path, dpi=80)
