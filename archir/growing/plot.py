"""A plot of what a run did: accuracy and size over the steps."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from archir.errors import FileError, GrowError
from archir.growing.report import Report
from archir.ir.files import replacing
from archir.ir.printable import printable

_LINE, _SIZE, _MARK = "#1f6fb4", "#c8553d", "#9a9a9a"
_PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
"""What is laid under words that may cross lines."""


def plot(report: Report, path: Path, *, title: str = "") -> None:
    """Draw accuracy (or loss, where there are no labels) and parameters over the steps into a PNG file.

    Args:
        report: what the run did.
        path: the file.
        title: what stands above.

    Raises:
        GrowError: nothing has been evaluated yet, or its numbers are beyond what can be drawn.
        FileError: the file cannot be written.
    """
    if not report.points:
        raise GrowError("there is nothing to plot", why="the network has not been evaluated yet")
    figure = _drawn(report, title)
    try:
        with replacing(path) as temporary:
            FigureCanvasAgg(figure).print_figure(temporary, dpi=150, format="png")
    except OSError as error:
        raise FileError(f"cannot write {path}", why=str(error), hint="name a file in a folder that exists") from error
    except (ArithmeticError, TypeError, ValueError) as error:  # of matplotlib, whose axes have no room for them
        why = f"{type(error).__name__}: {error!s:.200}"
        raise GrowError("the numbers of this history are too large to be drawn", why=why) from error


def _drawn(report: Report, title: str) -> Figure:
    figure = Figure(figsize=(8, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_quality(upper, report)
    _draw_size(lower, report)
    for axes in (upper, lower):
        for growth in report.growth:
            axes.axvline(growth.step, color=_MARK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    if title:
        figure.suptitle(printable(title), fontsize=11, parse_math=False)
    return figure


def _draw_quality(axes: Axes, report: Report) -> None:
    labelled = all(p.accuracy is not None for p in report.points)
    steps = [p.step for p in report.points]
    values = [p.accuracy if p.accuracy is not None and labelled else p.loss for p in report.points]
    axes.plot(steps, values, color=_LINE, linewidth=1.6, marker="o", markersize=3, zorder=3)
    axes.set_ylabel("validation accuracy" if labelled else "validation loss")
    if labelled:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    axes.annotate(
        f"{100 * values[-1]:.1f} %" if labelled else f"{values[-1]:.3f}",
        (steps[-1], values[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=_LINE,
        fontsize=9,
        annotation_clip=False,
    )
    for growth in report.growth:
        axes.annotate(
            _short(printable(growth.changes)) or "rejected",
            (growth.step, 0),
            xycoords=("data", "axes fraction"),
            xytext=(3, 5),
            textcoords="offset points",
            fontsize=7.5,
            color="#555555",
            parse_math=False,  # names of passes and folders are no formulas
            rotation=90,
            va="bottom",
            bbox=_PAPER,
            zorder=1,
        )


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _draw_size(axes: Axes, report: Report) -> None:
    end = max(report.points[-1].step, 1)
    steps = [0, *(g.step for g in report.growth), end]
    sizes = [report.parameters, *(g.parameters for g in report.growth)]
    axes.stairs(sizes, steps, baseline=0, fill=True, color=_SIZE, alpha=0.18, linewidth=0)
    axes.stairs(sizes, steps, baseline=None, color=_SIZE, linewidth=1.8)
    for i, (size, left) in enumerate(zip(sizes, steps[:-1], strict=True)):
        if size not in sizes[:i]:
            axes.annotate(f"{size:,}", (left, size), xytext=(3, 3), textcoords="offset points", fontsize=8, color=_SIZE)
    top = max(sizes)
    if report.limit is not None and report.limit < 3 * top:
        axes.axhline(report.limit, color=_SIZE, linewidth=1, linestyle=":")
        axes.annotate(
            "budget",
            (0, report.limit),
            xytext=(3, 2),
            textcoords="offset points",
            fontsize=8,
            color=_SIZE,
            bbox=_PAPER,
        )
        top = max(top, report.limit)
    axes.set_ylim(0, top * 1.18)
    axes.set_xlim(0, end * 1.02)
    axes.set_ylabel("parameters")
    axes.set_xlabel("training steps")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
