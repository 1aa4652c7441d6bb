from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from archir.errors import FileError, GrowError
from archir.growing.plot import plot
from archir.growing.report import Point, make_report, summarise
from archir.growing.report_tables import (
    columns,
    columns_of_endings,
    columns_of_test,
    loss_change,
    notes,
    rows,
    rows_of_endings,
    rows_of_test,
)
from archir.growing.run import Event


def _event(kind: str, **fields: Any) -> Event:
    return {"event": kind, "time": 0.0, **fields}


def _evaluated(step: int, accuracy: float | None, parameters: int, phase: str = "train") -> Event:
    return _event("evaluated", step=step, phase=phase, loss=1 - step / 1000, accuracy=accuracy, parameters=parameters)


STARTED = _event(
    "started", parameters=100, flops=1000, budget={"parameters": 400, "flops": None}, steps=300, growth_at=[100, 200]
)
HISTORY: list[Event] = [
    STARTED,
    _event("train", step=100, loss=1.0, rate=0.1, examples=6400),
    _evaluated(100, 0.5, 100, "before growth"),
    _event("scored", step=100, growth=1, candidates=10, rule="linearised", ranked=10, seconds=1.25),
    _event(
        "grown",
        growth=1,
        step=100,
        specs=["split{width=w0, units=[1]}", "prune{width=w1, units=[0]}", "split{width=w0, units=[2]}"],
        predicted=-0.2,
        realised=-0.15,
        parameters_before=100,
        parameters=200,
        flops=2000,
        backed_off=1,
    ),
    _evaluated(100, 0.6, 200, "after growth"),
    _event("train", step=200, loss=0.5, rate=0.1, examples=6400),
    _evaluated(200, 0.7, 200, "before growth"),
    _event("scored", step=200, growth=2, candidates=12, rule="linearised", ranked=12, seconds=1.5),
    _event("rejected", step=200, growth=2, chosen=4, note="nothing was committed: there are no other candidates"),
    _event("train", step=300, loss=0.4, rate=0.0, examples=6400),
    _evaluated(300, 0.8, 200),
    _event("finished", step=300, loss=0.7, accuracy=0.8, parameters=200, flops=2000, seconds=12.0),
    _event("control", name="seed", parameters=100, flops=1000, loss=0.9, accuracy=0.7),
    _event("tested", name="grown", parameters=200, flops=2000, training_flops=1_234_000_000, loss=0.75, accuracy=0.78),
]


def test_report_reads_what_a_run_did() -> None:
    report = make_report(HISTORY)
    assert (report.parameters, report.flops, report.limit, report.steps) == (100, 1000, 400, 300)
    assert report.seconds == 12.0
    assert rows_of_test(report) == [
        ("seed", "100", "1,000", "", "70.00 %", "0.9000"),
        ("grown", "200", "2,000", "1.23e+09", "78.00 %", "0.7500"),
    ]
    assert report.last == Point(300, 0.7, 0.8, 200)
    first, second = report.growth
    assert (first.changes, first.predicted, first.realised) == ("2 split, 1 prune", -0.2, -0.15)
    assert (first.parameters_before, first.parameters, first.flops, first.backed_off) == (100, 200, 2000, 1)
    assert (first.seconds, second.seconds) == (1.25, 1.5)
    assert (first.rule, second.predicted) == ("linearised", None)
    assert (second.changes, second.parameters, second.backed_off) == ("", 200, 4)
    assert notes(report) == ["growth 2 at step 200: nothing was committed: there are no other candidates"]


@pytest.mark.parametrize(
    ("change", "shown"), [(0.0, "+0.0000"), (-0.02345, "-0.0234"), (0.001, "+0.0010"), (-3.2e-6, "-3.2e-06")]
)
def test_changes_of_the_loss_are_shown_with_the_digits_they_need(change: float, shown: str) -> None:
    assert loss_change(change) == shown


def test_table_has_a_row_for_the_seed_each_growth_step_and_the_end() -> None:
    report = make_report(HISTORY)
    table = rows(report)
    measured = (">predicted", ">realised", ">validation", ">seconds")
    assert columns(report) == (">step", "what", "changes", ">parameters", ">FLOPs", *measured)
    assert columns_of_test(report) == ("network", ">parameters", ">FLOPs", ">training FLOPs", ">accuracy", ">loss")
    assert all(len(row) == len(columns(report)) for row in table)
    assert [row[1] for row in table] == ["seed", "growth 1", "growth 2", "end"]
    assert table[1] == ("100", "growth 1", "2 split, 1 prune", "200", "2,000", "-0.2000", "-0.1500", "60.00 %", "1.2")
    assert table[2][2:7] == ("rejected", "200", "2,000", "", "")
    assert table[3][7] == "80.00 %"


COSTS: dict[str, dict[str, Any]] = {
    "started": {"peak_bytes": 12_000, "latency": 9.996e-4},
    "grown": {"peak_bytes": 34_567, "latency": 0.0123},
    "control": {"peak_bytes": 12_000, "latency": 1.23456},
    "tested": {"peak_bytes": 34_567, "latency": 4.2e-6},
}


def _costly(**started: Any) -> list[Event]:
    """Return the history with what networks cost beside parameters and FLOPs, and more about its beginning."""
    history = [e | COSTS.get(e["event"], {}) for e in HISTORY]
    return [history[0] | started, *history[1:]]


@pytest.mark.parametrize(
    "started",
    [
        {"budget": {"peak_bytes": 50_000, "latency": 0.5}},
        {"prices": {"peak_bytes": 1e-6, "latency": 0.1}},
        {"budget": {"latency": 0.5}, "prices": {"peak_bytes": 1e-6}},
    ],
)
def test_tables_tell_of_the_costs_a_budget_or_a_price_is_on(started: dict[str, Any]) -> None:
    """After a growth step that committed nothing, the network costs what it did before."""
    report = make_report(_costly(**started))
    assert columns(report)[3:7] == columns_of_test(report)[1:5] == (">parameters", ">FLOPs", ">peak bytes", ">latency")
    assert all(len(row) == len(columns(report)) for row in rows(report))
    grown = ("34,567", "12.3 ms")
    assert [row[5:7] for row in rows(report)] == [("12,000", "1.00 ms"), grown, grown, grown]
    assert [row[3:5] for row in rows_of_test(report)] == [("12,000", "1,230 ms"), ("34,567", "0.00420 ms")]


def test_tables_tell_of_one_cost_alone_where_the_other_is_not_asked_for() -> None:
    assert columns(make_report(_costly(prices={"latency": 0.1})))[5:7] == (">latency", ">predicted")
    assert columns(make_report(_costly(budget={"peak_bytes": 50_000})))[5:7] == (">peak bytes", ">predicted")
    unasked = make_report(_costly(prices={}))
    assert rows(unasked) == rows(make_report(HISTORY)) and rows_of_test(unasked) == rows_of_test(make_report(HISTORY))


def test_costs_an_older_version_did_not_record_are_left_empty() -> None:
    report = make_report([STARTED | {"budget": {"peak_bytes": 50_000, "latency": 0.5}}, *HISTORY[1:]])
    assert [row[3:7] for row in rows(report)] == [("100", "1,000", "", ""), *[("200", "2,000", "", "")] * 3]
    assert [row[3:5] for row in rows_of_test(report)] == [("", "")] * 2
    later = make_report([STARTED | COSTS["started"] | {"budget": {"peak_bytes": 50_000}}, *HISTORY[1:]])
    assert [row[5] for row in rows(later)] == ["12,000", "", "", ""]


GROWN = {"loss": 0.7, "accuracy": 0.8, "parameters": 200, "flops": 2000, "training_flops": 900, "seconds": 9.0}
RETRAINED = _event(
    "retrained",
    step=300,
    **GROWN | {"loss": 0.6, "accuracy": 0.85, "training_flops": 600, "seconds": 3.0},
    grown=GROWN,
    kept=True,
    note="",
)
UNGROWN = _event(
    "counterfactual",
    step=300,
    **GROWN | {"loss": 0.65, "parameters": 500, "flops": 5000, "training_flops": 700, "seconds": 4.0},
    note="over the budget: 125% of it",
)
ENDED = [
    *HISTORY[:-3],
    RETRAINED,
    UNGROWN,
    _event("finished", step=300, **GROWN | {"loss": 0.6, "accuracy": 0.85, "training_flops": 1500}, kept="retrained"),
]


def test_the_networks_beside_the_grown_one_have_a_table() -> None:
    report = make_report(ENDED)
    assert columns_of_endings() == (
        *("network", ">parameters", ">FLOPs", ">training FLOPs", ">accuracy", ">loss", ">seconds", ""),
    )
    assert rows_of_endings(report) == [
        ("grown", "200", "2,000", "9.00e+02", "80.00 %", "0.7000", "9", ""),
        ("the same, from scratch", "200", "2,000", "6.00e+02", "85.00 %", "0.6000", "3", "kept"),
        ("without growth", "500", "5,000", "7.00e+02", "80.00 %", "0.6500", "4", "over the budget: 125% of it"),
    ]
    assert rows(report)[-1] == ("300", "end", "retrained", "200", "2,000", "", "", "85.00 %", "9")
    assert rows_of_endings(make_report(HISTORY)) == []


def test_the_network_that_was_kept_is_told() -> None:
    lost = {"loss": None, "accuracy": None, "kept": False, "note": "it failed: the loss diverged twice"}
    finished = ENDED[-1] | GROWN | {"kept": "grown"}
    report = make_report([*HISTORY[:-3], RETRAINED | lost, UNGROWN, finished])
    assert [row[4:] for row in rows_of_endings(report)[:2]] == [
        ("80.00 %", "0.7000", "9", "kept"),
        ("", "", "3", "it failed: the loss diverged twice"),
    ]
    assert rows(report)[-1][1:3] == ("end", "")
    alone = make_report([*HISTORY[:-3], UNGROWN, {k: v for k, v in finished.items() if k != "kept"}])
    assert [(row[0], row[-1]) for row in rows_of_endings(alone)] == [
        ("grown", "kept"),
        ("without growth", "over the budget: 125% of it"),
    ]
    assert [row[0] for row in rows_of_endings(make_report([STARTED | {"kind": "compression"}, *ENDED[1:]]))] == [
        "compressed",
        "the same, from scratch",
        "without growth",
    ]


def test_what_was_done_again_after_an_interruption_counts_once() -> None:
    # Interrupted after step 250, gone on from the checkpoint after growth step 1.
    cut = [*HISTORY[:10], _evaluated(250, 0.1, 999)]
    again = [*cut, _event("resumed", step=100, growth=1), *HISTORY[6:]]
    assert make_report(again) == make_report(HISTORY)


def test_a_finished_run_may_be_finished_again() -> None:
    again = [*HISTORY, _event("resumed", step=300, growth=2), *HISTORY[-3:]]
    assert make_report(again) == make_report(HISTORY)


def test_a_run_that_goes_on_is_reported_so_far() -> None:
    report = make_report(HISTORY[:6])
    assert report.seconds is None and report.tested == ()
    assert [row[1] for row in rows(report)] == ["seed", "growth 1", "so far"]


def test_losses_are_shown_where_there_are_no_labels() -> None:
    history = [e | {"accuracy": None} if "accuracy" in e else e for e in HISTORY]
    assert rows(make_report(history))[-1][7] == "0.7000"


@pytest.mark.parametrize("history", [[], HISTORY[1:], [{"event": "started", "time": 0.0}]])
def test_other_histories_are_refused(history: list[Event]) -> None:
    with pytest.raises(GrowError, match="this is not the history of a run"):
        make_report(history)


def test_summary_counts_passes() -> None:
    assert summarise(["split{width=w0}", "prune", "split"]) == "2 split, 1 prune"
    assert summarise(["split{width=w0, units=[3, 1, 2]}", "merge{width=w1, units=[0, 1, 2, 5]}"]) == "3 split, 2 merge"
    assert summarise([]) == ""


@pytest.mark.parametrize("labelled", [True, False])
def test_plot_is_a_picture(tmp_path: Path, labelled: bool) -> None:
    history = HISTORY if labelled else [e | {"accuracy": None} if "accuracy" in e else e for e in HISTORY]
    plot(make_report(history), tmp_path / "growth.png", title="a run")
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.size == (1200, 810)
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 50
    assert [p.name for p in tmp_path.iterdir()] == ["growth.png"]


def test_plot_tells_why_it_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(GrowError, match="nothing to plot"):
        plot(make_report([STARTED]), tmp_path / "growth.png")
    with pytest.raises(FileError, match="cannot write"):
        plot(make_report(HISTORY), tmp_path / "absent" / "growth.png")
