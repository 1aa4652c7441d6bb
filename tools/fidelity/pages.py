"""Writes the tables and plots of docs/scoring.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tools.fidelity.figures import LEARNED, MODELS, SIDES, figures
from tools.fidelity.records import Moment
from tools.tables import markdown, replace_table

DOCS = Path(__file__).parent.parent.parent / "docs"


def write_pages(moments: Sequence[Moment], folder: Path = DOCS) -> None:
    """Put the tables between their marks in scoring.md, and the plots beside it."""
    page, found = folder / "scoring.md", figures(moments)
    subjects = {name: found[name] for name in dict.fromkeys(m.subject for m in moments)}
    replace_table(page, "bars-table", of_bars(found["bars"]))
    replace_table(page, "singles-table", of_singles(subjects))
    replace_table(page, "morphisms-table", of_morphisms(subjects))
    replace_table(page, "sets-table", of_sets(subjects))
    replace_table(page, "random-table", of_random(subjects))
    replace_table(page, "committed-table", of_committed(subjects))
    replace_table(page, "rules-table", of_rules(subjects))
    plot(moments, folder / "scoring.png")


def of_bars(bars: dict[str, dict[str, float]]) -> str:
    """Return one row a figure: its bar, and what was found on each network."""
    columns = list(next(iter(bars.values())))
    rows = [[name.replace("_", " "), *(f"{found[c]:.3g}" for c in columns)] for name, found in bars.items()]
    return markdown(["what", *columns], rows)


def of_singles(subjects: dict[str, Any]) -> str:
    """Return one row for each subject and side."""
    return markdown(
        ["network", "true change on", "Spearman, clear (worst)", "slope", "sign errors", "top-1 regret", "candidates"],
        (
            [
                name,
                side.replace("_", " "),
                _with_worst(found[f"spearman_{side}"]),
                f"{found[f'slope_{side}']:.2f}",
                f"{found[f'sign_errors_{side}']:.1%}",
                f"{found[f'top_1_regret_{side}']['mean']:.4f}",
                f"{found['number']}, {found['clear']} clear",
            ]
            for name, found in _parts(subjects, "singles")
            for side in SIDES
        ),
    )


def of_morphisms(subjects: dict[str, Any]) -> str:
    """Return one row a morphism, columns for each subject."""
    kinds = sorted({k for _, found in _parts(subjects, "singles") for k in found["by_morphism"]})
    header = ["morphism"]
    for name in subjects:
        header += [f"{name}: number", "Spearman", "held out", "slope"]

    def cells(kind: str) -> Iterable[str]:
        for _, found in _parts(subjects, "singles"):
            k = found["by_morphism"].get(kind)
            if k is None:
                yield from ("-",) * 4
                continue
            yield str(k["number"])
            for side in SIDES:
                rank = k[f"spearman_{side}"]
                yield "-" if rank is None else f"{rank:.2f}"
            yield f"{k['slope_in_sample']:.2f}"

    return markdown(header, [[kind, *cells(kind)] for kind in kinds])


def of_sets(subjects: dict[str, Any]) -> str:
    """Return one row for each subject, way of learning and model."""
    return markdown(
        [
            "network",
            "θ learned",
            "model",
            "correlation (worst)",
            "held out",
            "pooled",
            "of ranks",
            "error",
            "chosen: size",
            "predicted",
            *_TRUE,
        ],
        (
            [
                name,
                learned,
                model,
                _with_worst(found[model]["correlation_in_sample"]),
                f"{found[model]['correlation_held_out']['mean']:.3f}",
                f"{found[model]['pooled_correlation_in_sample']:.3f}",
                f"{found[model]['rank_correlation_in_sample']['mean']:.3f}",
                f"{found[model]['mean_absolute_error']:.3f}",
                f"{chosen['size']:.1f}",
                f"{chosen['predicted']:+.4f}",
                *(f"{chosen[side]:+.4f}" for side in SIDES),
            ]
            for name, ways in _parts(subjects, "sets")
            for learned, found in ways.items()
            for model in MODELS
            if (chosen := found[model]["chosen"]) and found[model]["correlation_in_sample"]
        ),
    )


def of_random(subjects: dict[str, Any]) -> str:
    """Return one row for each subject and way of learning: what sets drawn at random truly do."""
    return markdown(
        ["network", "θ learned", "in sample", "worst", "held out", "worst"],
        (
            [
                name,
                learned,
                *(f"{found['random'][side][kind]:+.4f}" for side in SIDES for kind in ("mean", "max")),
            ]
            for name, ways in _parts(subjects, "sets")
            for learned, found in ways.items()
        ),
    )


def of_committed(subjects: dict[str, Any]) -> str:
    """Return one row a subject."""
    columns = ("predicted", "in_sample", "expected", "realised", "held_out")
    return markdown(
        ["network", "steps", "committed", "candidates", *(c.replace("_", " ") for c in columns), "raised"],
        (
            [
                name,
                str(found["steps"]),
                str(found["committed"]),
                f"{found['size']:.1f} of {found['chosen']:.1f}",
                *(f"{found[c]:+.4f}" for c in columns),
                f"{found['raised_the_loss_checked_on']}, {found['raised_the_loss_never_seen']} unseen",
            ]
            for name, found in _parts(subjects, "committed")
        ),
    )


def of_rules(subjects: dict[str, Any]) -> str:
    """Return one row a rule: the true change of the loss, mean and worst, for each subject."""
    rules = list(dict.fromkeys(r for _, found in _parts(subjects, "rules") for r in found))
    header = ["rule"]
    for name in subjects:
        header += [f"{name}: size", "in sample", "held out", "worst"]

    def cells(rule: str) -> Iterable[str]:
        for _, found in _parts(subjects, "rules"):
            one = found[rule]
            yield f"{one['size']:.1f}"
            yield from (f"{one[side]['mean']:+.4f}" for side in SIDES)
            yield f"{one['held_out']['max']:+.4f}"

    return markdown(header, [[rule, *cells(rule)] for rule in rules])


def plot(moments: Sequence[Moment], path: Path) -> None:
    """Plot predicted against true changes: singles, then sets by each of the three models; one row a subject."""
    subjects = list(dict.fromkeys(m.subject for m in moments))
    figure = Figure(figsize=(15, 4 * len(subjects)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(subjects), 4, squeeze=False)
    for row, name in zip(grid, subjects, strict=True):
        found = [m for m in moments if m.subject == name]
        singles = [s for m in found for s in m.singles]
        for clear, colour in ((False, "0.75"), (True, "C0")):
            points = [(s.predicted, s.in_sample) for s in singles if s.clear is clear]
            row[0].plot(*zip(*points, strict=True) if points else ((), ()), ".", color=colour, markersize=3)
        _finish(row[0], f"{name}: single candidates", 1e-3)
        for axes, model in zip(row[1:], MODELS, strict=True):
            for (chosen, learned), colour in zip(product(("random", model), LEARNED), _COLOURS, strict=True):
                sets = [s for m in found for s in m.sets if (s.chosen, s.learned) == (chosen, learned)]
                points = [(getattr(s, model), s.in_sample) for s in sets]
                axes.plot(
                    *zip(*points, strict=True) if points else ((), ()),
                    ".",
                    color=colour,
                    label=f"{chosen}, {learned}",
                )
            _finish(axes, f"{name}: sets, {model} model", 1e-2)
            axes.legend(title="chosen by, θ learned", frameon=False)
    figure.savefig(path, dpi=80)


def _finish(axes: Axes, title: str, linear: float) -> None:
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("symlog", linthresh=linear)
    limits = axes.axis()
    low, high = min(limits[0], limits[2]), max(limits[1], limits[3])
    axes.plot([low, high], [low, high], color="0.5", linewidth=0.7)
    axes.axhline(0, color="0.8", linewidth=0.5)
    axes.axvline(0, color="0.8", linewidth=0.5)
    axes.tick_params(axis="x", rotation=90)
    axes.set_title(title)
    axes.set_xlabel("predicted change of the loss (nats)")
    axes.set_ylabel("true change (nats)")


_COLOURS = ("0.6", "C0", "C1", "C3")
_TRUE = ("in sample", "held out")


def _parts(subjects: dict[str, Any], part: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, found[part]) for name, found in subjects.items()]


def _with_worst(summary: dict[str, float]) -> str:
    return f"{summary['mean']:.3f} ({summary['min']:.3f})"
