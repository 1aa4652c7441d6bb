"""The page on networks of real size says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from tools.benchmarks.real import SUBJECTS
from tools.real_page import DOCS, NAMES, ROWS, keep, table


def test_the_page_says_what_was_kept() -> None:
    kept = json.loads((DOCS / "real.json").read_text())
    assert set(kept) <= set(NAMES) == set(SUBJECTS)
    assert all(set(figures) == set(ROWS) for figures in kept.values())
    assert f"<!-- real-table -->\n{table(kept)}<!-- /real-table -->" in (DOCS / "real.md").read_text()


def test_what_is_measured_anew_takes_the_place_of_what_was(tmp_path: Path) -> None:
    (tmp_path / "real.md").write_text("a\n<!-- real-table -->\n<!-- /real-table -->\nb\n")
    keep({"vgg19": dict.fromkeys(ROWS, 2.0), "gpt2": dict.fromkeys(ROWS, 1e6)}, tmp_path)
    keep({"vgg19": dict.fromkeys(ROWS, 3e6)}, tmp_path)
    page = (tmp_path / "real.md").read_text()
    assert page.startswith("a\n<!-- real-table -->\n|  | VGG-19 | GPT-2 small |\n") and page.endswith("-->\nb\n")
    assert "| parameters, millions | 3.0 | 1.0 |" in page
    assert set(json.loads((tmp_path / "real.json").read_text())) == {"vgg19", "gpt2"}
