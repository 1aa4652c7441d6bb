"""The work of the core grows no faster than networks do: counted in calls, so that no clock is asked."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from archir.ir.graph import Graph
from tools.benchmarks.size import NODES, PARAMETERS, QUIET
from tools.residual import residual_network
from tools.size.figures import exponent, figures_of, looked_at
from tools.size.page import DOCS, keep, table
from tools.size.tasks import tasks

SMALL, LARGE, BAR = 60, 240, 1.1
"""Linear layers of two networks, and the largest exponent of the number of calls from one to the other."""


def calls_of(act: Callable[[], object]) -> int:
    """Return how many functions something calls, those of C among them; resumed generators count again."""
    found = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(None)
    return found


def network(layers: int) -> Graph:
    graph = residual_network(layers)
    return graph.with_stored({i: QUIET * tensor for i, tensor in graph.tensors.items()})


TASKS = ("analyse", "find", "perturb", "screen", "score", "apply", "apply widest", "splice", "verify patch", "verify")


@pytest.mark.parametrize("name", [*TASKS, "write", "read"])
def test_the_calls_of_a_task_grow_no_faster_than_nodes(name: str, tmp_path: Path) -> None:
    counts: list[int] = []
    for layers in (8, SMALL, LARGE):  # the first warms up
        act = tasks(network(layers), tmp_path / str(layers))[name]()
        counts.append(calls_of(act))
    assert counts[1] > 50
    assert math.log(counts[2] / counts[1]) / math.log(LARGE / SMALL) < BAR, counts


def test_exponents_are_slopes_of_logarithms() -> None:
    taken = {str(n): 1e-6 * n**1.5 for n in NODES}
    assert exponent("nodes", taken) == pytest.approx(1.5)
    assert looked_at("nodes", taken) == [10_000, 30_000, 100_000]
    assert figures_of({"nodes": {"find": taken}}, 1)["nodes"]["exponents"] == pytest.approx({"find": 1.5})


def test_where_a_task_stops_early_the_largest_sizes_are_looked_at() -> None:
    assert looked_at("nodes", dict.fromkeys(("300", "1000", "3000", "10000"), 1.0)) == [1000, 3000, 10_000]


def test_the_page_says_what_was_kept() -> None:
    kept = json.loads((DOCS / "scale.json").read_text())
    assert list(kept) == ["nodes", "parameters", "trace"]
    for part, measured in kept.items():
        assert measured["exponents"] == pytest.approx(
            {n: exponent(part, taken) for n, taken in measured["seconds"].items()}
        )
        assert (
            f"<!-- {part}-table -->\n{table(part, measured)}<!-- /{part}-table -->" in (DOCS / "scale.md").read_text()
        )
    assert set(kept["nodes"]["seconds"]["analyse"]) == set(map(str, NODES))
    assert set(kept["parameters"]["seconds"]["analyse"]) == set(map(str, PARAMETERS))


def test_parts_that_are_measured_again_take_the_place_of_the_old_ones(tmp_path: Path) -> None:
    (tmp_path / "scale.md").write_text(
        "".join(f"<!-- {p}-table -->\n<!-- /{p}-table -->\n" for p in ("nodes", "trace"))
    )
    old, new, other = ({"write": {"300": s, "1000": 3 * s, "10000": 30 * s}} for s in (0.1, 0.2, 0.3))
    keep(figures_of({"nodes": old, "trace": other}, 3), tmp_path)
    found = keep(figures_of({"nodes": new}, 3), tmp_path)
    assert found == json.loads((tmp_path / "scale.json").read_text()) == figures_of({"nodes": new, "trace": other}, 3)
    page = (tmp_path / "scale.md").read_text()
    assert "| write | 0.2 | 0.6 | 6 | 0.97 | 300 to 10,000 |" in page and "| write | 0.3 | 0.9 | 9 |" in page
    assert (tmp_path / "scale.png").stat().st_size > 10_000
