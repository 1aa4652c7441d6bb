"""What is printed holds nothing but text, whatever stands in the files it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from archir.cli.console import RunProgress, print_error, print_table, say
from archir.errors import FileError
from archir.growing.run import RunDirectory, create_run
from archir.ir.printable import printable
from tests.cli.run import archir, refused

HOSTILE = "a\x1b]0;mine\x07\x1b[2J\r\u202eb\x9b31m\u2028\ud800"
WRITTEN = r"a\x1b]0;mine\x07\x1b[2J\r\u202eb\x9b31m\u2028\ud800"


def test_only_text_and_line_ends_are_left() -> None:
    assert printable(HOSTILE) == WRITTEN
    assert printable("Δ 日本 é\nb") == "Δ 日本 é\nb"
    assert printable("\x00\t\u200b\U000e0001") == r"\x00\t\u200b\U000e0001"


def test_everything_that_is_printed_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(FileError(HOSTILE, where=HOSTILE))
    print_table((HOSTILE, "b"), [[HOSTILE, 3]], title=HOSTILE)
    say(HOSTILE)
    RunProgress().line(HOSTILE)
    RunProgress()({"event": "damaged", "time": 0, "checkpoint": HOSTILE, "why": HOSTILE})
    captured = capsys.readouterr()
    for out, times in ((captured.out, 4), (captured.err, 5)):
        assert all(c.isprintable() or c == "\n" for c in out), out
        assert out.count(WRITTEN) == times, out


def _run(path: Path, *, spec: str = "split{w1}", step: int = 3, loss: float = 0.5) -> RunDirectory:
    run = create_run(path, "")
    run.append("started", parameters=10, flops=1, budget={"parameters": 20}, steps=10)
    run.append("evaluated", step=5, phase="train", loss=loss, accuracy=None, parameters=12)
    run.append("grown", growth=1, step=step, specs=[spec], realised=-0.1, parameters=12, flops=3, backed_off=0)
    return run


@pytest.mark.parametrize("spec", [HOSTILE[:-1], "$\\frac$", "a" * 5000, "_^{"])
def test_a_report_of_strange_names_is_told_and_drawn(tmp_path: Path, spec: str) -> None:
    run = _run(tmp_path / "$\\frac$ \x1b", spec=spec)
    for options in ((), ("--json",), ("--markdown",), ("--plot", tmp_path / "plot.png")):
        done = archir("report", run.path, *options)
        assert done.code == 0 and all(c.isprintable() or c == "\n" for c in done.out + done.err)
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_numbers_beyond_what_can_be_drawn_are_told(tmp_path: Path) -> None:
    huge = _run(tmp_path / "huge", loss=1e308)
    assert archir("report", huge.path).code == 0
    error = refused("report", huge.path, "--plot", tmp_path / "plot.png")
    assert "too large to be drawn" in error
    assert not (tmp_path / "plot.png").exists() and not list(tmp_path.glob(".*"))
    for step in (-1, 2**63):
        error = refused("report", _run(tmp_path / str(step), step=step).path)
        assert f"step is {step}, not a whole number from 0" in error


def test_plots_need_the_name_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = _run(tmp_path / "run")
    for name in ("", ".", "/", tmp_path, tmp_path / "absent" / "plot.png"):
        assert "cannot write" in refused("report", run.path, "--plot", name)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
