"""The columns on emission: what stands in them, and how they come into the tables."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from tests.models.example import Example
from tests.models.zoo import ZOO
from tools import coverage, emission
from tools.emission import FORMS, Verdict, emit_here
from tools.limited import Finished, limited
from tools.tables import columns, replace_columns, replace_table

PAGE = """before
<!-- t -->
| model | free | source |
| --- | --- | --- |
| a/x | 1 | no |
| a/y | 2 | - |
<!-- /t -->
after
"""


def test_what_hangs_or_crashes_is_told() -> None:
    assert limited(time.sleep, (60,), 1.0, ()).error == "not done after 1 s"
    assert limited(os._exit, (3,), 60.0, ()).error == "crashed with exit code 3"
    assert limited(math.sqrt, (4,), 60.0, ()) == Finished(2.0)


@pytest.mark.slow
def test_a_model_is_emitted_or_the_reason_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = emit_here("own/mlp", tuple(FORMS))
    assert list(found) == list(FORMS)
    assert all(verdict.cell == "yes" and verdict.difference < 1e-5 for verdict in found.values())

    def fail() -> None:
        raise ValueError("a|b")

    monkeypatch.setitem(ZOO, "broken", Example(fail, lambda batch: ()))  # type: ignore[arg-type]
    told = emit_here("own/broken", ("ONNX",))
    assert {form: verdict.cell for form, verdict in told.items()} == {"ONNX": "fault: ValueError: a\\|b"}


def test_a_form_that_crashes_does_not_take_the_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def alone(function: object, arguments: tuple[str, tuple[str, ...]], seconds: float) -> Finished:
        _, forms = arguments
        fine = forms == ("source",)
        return (
            Finished({"source": Verdict(difference=0.5)}) if fine else Finished(error=f"not done after {seconds:g} s")
        )

    monkeypatch.setattr(emission, "limited", alone)
    assert emission.emit("own/mlp", 7.0) == {"source": Verdict(difference=0.5), "ONNX": Verdict("not done after 7 s")}


def test_undefined_elements_are_told() -> None:
    assert Verdict(undefined=3).cell == "yes, but for 3 undefined elements"


def test_columns_are_replaced_and_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    cells = {"a/x": ["yes", "a \\| b"], "b/z": ["yes", "yes"]}
    replace_columns(page, "t", ("source", "ONNX"), cells)
    assert page.read_text().splitlines()[2:6] == [
        "| model | free | source | ONNX |",
        "| --- | --- | --- | --- |",
        "| a/x | 1 | yes | a \\| b |",
        "| a/y | 2 | - | - |",
    ]
    assert page.read_text().startswith("before\n<!-- t -->\n") and page.read_text().endswith("<!-- /t -->\nafter\n")
    kept = columns(page, "t", ("source", "ONNX"))
    assert kept == {"a/x": cells["a/x"], "a/y": ["-", "-"]}
    replace_table(page, "t", "| model |\n| --- |\n| a/x |\n")
    assert columns(page, "t", ("source", "ONNX")) == {}
    replace_columns(page, "t", ("source", "ONNX"), kept)
    assert page.read_text().splitlines()[4] == "| a/x | yes | a \\| b |"


def test_families_are_counted() -> None:
    cells = {
        "a/x": {"source": "yes", "ONNX": "yes, but for 3 undefined elements"},
        "a/y": {"source": "not done after 300 s", "ONNX": "yes"},
        "b/z": {"source": "-", "ONNX": "-"},
    }
    assert coverage.emitted_by_family(cells) == {
        "a": ["1 of 2", "2 of 2"],
        "b": ["0 of 1", "0 of 1"],
        "all": ["1 of 3", "2 of 3"],
    }


def test_both_pages_have_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {}
    for name, row in (("README", "a"), ("PAGE", "a/x")):
        pages[name] = tmp_path / name
        pages[name].write_text(f"<!-- widths-table -->\n| models |\n| --- |\n| {row} |\n<!-- /widths-table -->\n")
        monkeypatch.setattr(coverage, name, pages[name])
    coverage.write_emission({"a/x": {"source": "yes", "ONNX": "too large"}})
    assert "| a | 1 of 1 | 0 of 1 |" in pages["README"].read_text()
    assert "| a/x | yes | too large |" in pages["PAGE"].read_text()
