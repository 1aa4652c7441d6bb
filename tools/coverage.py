"""Writes the tables of what is covered and of what it costs, in README.md and docs/coverage.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from tools.growth_reach import GrowthReach
from tools.side_by_side import Comparison, Timing
from tools.tables import columns, markdown, replace_columns, replace_table

ROOT = Path(__file__).parent.parent
README, PAGE = ROOT / "README.md", ROOT / "docs" / "coverage.md"
EMISSION = ("source", "ONNX")
"""Columns that `write_emission` writes, and `write_tables` keeps."""
GROWN = ["model", "free", "by one", "by a tenth", "doubled", "scored", "nothing to score"]
"""Columns of the table of widths that grow."""


def write_tables(comparisons: Mapping[str, Comparison], published: Mapping[str, Timing]) -> None:
    """Put the tables between their marks in README.md and docs/coverage.md.

    Args:
        comparisons: small models, by family and name.
        published: models at published sizes, by name.
    """
    for page, table in ((README, by_family(comparisons)), (PAGE, by_model(comparisons))):
        kept = columns(page, "widths-table", EMISSION)
        replace_table(page, "widths-table", table)
        replace_columns(page, "widths-table", EMISSION, kept)
    replace_table(PAGE, "times-table", of_times(published))


def write_emission(cells: Mapping[str, Mapping[str, str]]) -> None:
    """Put what was emitted into the columns `source` and `ONNX` of both tables.

    Args:
        cells: by model and column; one that begins with `yes` is emitted and verified.
    """
    replace_columns(
        PAGE, "widths-table", EMISSION, {name: [found[c] for c in EMISSION] for name, found in cells.items()}
    )
    replace_columns(README, "widths-table", EMISSION, emitted_by_family(cells))


def write_growth_reach(found: Mapping[str, GrowthReach | str]) -> None:
    """Put which widths grow into their table in docs/coverage.md, and why the others do not.

    Args:
        found: by model; why it is not known of one.
    """
    rows = [[name, *_grown(reach)] for name, reach in found.items()]
    replace_table(PAGE, "growth-table", markdown(GROWN, rows))
    reasons = [
        [name, width, reason.replace("|", "\\|")]
        for name, reach in found.items()
        if isinstance(reach, GrowthReach)
        for width, reason in reach.reasons.items()
    ]
    replace_table(PAGE, "reasons-table", markdown(["model", "width", "why not"], reasons))


def _grown(reach: GrowthReach | str) -> list[str]:
    if isinstance(reach, str):
        return [reach, *[""] * 5]
    return [str(n) for n in (reach.free, reach.one, reach.tenth, reach.doubled, reach.scored, reach.nothing)]


def emitted_by_family(cells: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Return how many models of each family, and of all, are emitted in each form, of how many."""
    families: dict[str, list[Mapping[str, str]]] = {}
    for name, found in cells.items():
        families.setdefault(name.partition("/")[0], []).append(found)
    return {
        name: [f"{sum(model[form].startswith('yes') for model in models)} of {len(models)}" for form in EMISSION]
        for name, models in (*families.items(), ("all", list(cells.values())))
    }


def by_family(comparisons: Mapping[str, Comparison]) -> str:
    """Return one row a family of models, and one for all."""
    families: dict[str, list[Comparison]] = {}
    for name, comparison in comparisons.items():
        families.setdefault(name.partition("/")[0], []).append(comparison)
    header = ["models", "number", "analysed", "free widths", "run", "exact", "median reach", "Torch-Pruning"]
    rows = [_family(name, found) for name, found in families.items()]
    return markdown(header, [*rows, _family("all", list(comparisons.values()))])


def by_model(comparisons: Mapping[str, Comparison]) -> str:
    """Return one row a model."""
    header = ["model", "free", "frozen", "run", "exact", "due", "reach", "nodes", "seconds", "Torch-Pruning", "ratio"]
    return markdown(header, [_model(name, comparison) for name, comparison in comparisons.items()])


def of_times(timings: Mapping[str, Timing]) -> str:
    """Return one row a model, of times only."""
    return markdown(
        ["model", "nodes", "seconds", "Torch-Pruning", "ratio"], [[n, *_time(t)] for n, t in timings.items()]
    )


def _family(name: str, found: list[Comparison]) -> list[str]:
    done = [c.verdicts for c in found if c.verdicts is not None]
    rivals = [c.timing.rival for c in found if c.timing is not None and c.timing.rival is not None]
    return [
        name,
        str(len(found)),
        str(len(done)),
        str(sum(v.free for v in done)),
        str(sum(v.run for v in done)),
        f"{sum(v.due_exact for v in done)} of {sum(v.due for v in done)}",
        f"{statistics.median(v.reach for v in done):.0%}" if done else "-",
        f"{sum(not r.error for r in rivals)} of {len(rivals)}",
    ]


def _model(name: str, comparison: Comparison) -> list[str]:
    v, timing = comparison.verdicts, comparison.timing
    if v is None or timing is None:
        return [name, comparison.error, *[""] * 9]
    return [name, *map(str, (v.free, v.frozen, v.run, v.exact, v.due)), f"{v.reach:.0%}", *_time(timing)]


def _time(timing: Timing) -> list[str]:
    rival, speedup = timing.rival, timing.speedup
    other = "-" if rival is None else rival.error.partition(":")[0] or f"{rival.seconds:.3f}"
    return [str(timing.nodes), f"{timing.seconds:.4f}", other, "-" if speedup is None else f"{speedup:.1f}"]
