"""Which widths grow is counted, and comes into its tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import coverage
from tools.growth_reach import GrowthReach, growth_reach
from tools.tables import columns

LAYER_NORM = "a layer norm runs over it, so all its units must repeat equally"
TWICE = "a tensor has it on two axes, so fresh units act on each other"


@pytest.mark.parametrize(
    ("name", "reach"),
    [
        ("own/gpt", GrowthReach(5, 5, 5, 5, 5, 0)),
        ("own/swin", GrowthReach(2, 1, 1, 2, 1, 0, {"w0": LAYER_NORM})),
        ("own/gru", GrowthReach(1, 1, 1, 1, 0, 0, {"w0": f"not scored: {TWICE}"})),
    ],
)
def test_widths_that_grow_are_counted(name: str, reach: GrowthReach) -> None:
    assert growth_reach(name) == reach


def test_the_tables_say_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "coverage.md"
    page.write_text("".join(f"<!-- {mark} -->\n<!-- /{mark} -->\n" for mark in ("growth-table", "reasons-table")))
    monkeypatch.setattr(coverage, "PAGE", page)
    coverage.write_growth_reach({"a/x": GrowthReach(3, 2, 2, 3, 1, 1, {"w0": "a | b"}), "a/y": "not done after 1 s"})
    assert columns(page, "growth-table", ["free", "by one", "doubled", "scored", "nothing to score"]) == {
        "a/x": ["3", "2", "3", "1", "1"],
        "a/y": ["not done after 1 s", "", "", "", ""],
    }
    assert columns(page, "reasons-table", ["width", "why not"]) == {"a/x": ["w0", "a \\| b"]}
