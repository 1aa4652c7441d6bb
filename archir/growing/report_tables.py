"""The tables of what a run did."""

from __future__ import annotations

from archir.growing.report import Point, Report, Step, Tested

_HEADS = {"parameters": ">parameters", "flops": ">FLOPs", "peak_bytes": ">peak bytes", "latency": ">latency"}


def columns(report: Report) -> tuple[str, ...]:
    """Return the columns of the table of a run; `>` marks those of numbers."""
    costs = (_HEADS[name] for name in report.costs)
    loss = (">loss",) if report.compresses else ()
    return (">step", "what", "changes", *costs, ">predicted", ">realised", *loss, ">validation", ">seconds")


def rows(report: Report) -> list[tuple[str, ...]]:
    """Return the rows of the table of a run: the seed, each growth step, and the end.

    `predicted` and `realised` are changes of the loss; `validation` is the accuracy on the validation data after
    the step, or the loss where there are no labels. Of a compression they tell the loss on the validation data, too,
    also before anything is done and after each stretch of training.
    """
    costs = _costs(report, report)
    before = {p.step: p for p in report.points if p.phase == "before growth"} if report.compresses else {}
    what = "network" if report.compresses else "seed"
    found: list[tuple[str, ...]] = [("0", what, "", *costs, "", "", *_qualities(report, before.pop(0, None)), "")]
    for g in report.growth:
        if g.step in before:
            trained = _qualities(report, before[g.step])
            found.append((str(g.step), "trained on", "", *costs, "", "", *trained, ""))
        costs = _costs(report, g)
        after = [p for p in report.points if p.step <= g.step]
        predicted = "" if g.predicted is None else loss_change(g.predicted)
        losses = (predicted, loss_change(g.realised)) if g.changes else ("", "")
        quality = _qualities(report, after[-1] if after else None)
        seconds = "" if g.seconds is None else f"{g.seconds:.1f}"
        cells = (g.changes or "rejected", *costs, *losses, *quality, seconds)
        found.append((str(g.step), f"{g.kind} {g.number}", *cells))
    if report.last is not None:
        seconds = "" if report.seconds is None else f"{report.seconds:.0f}"
        what = "so far" if report.seconds is None else "end"
        quality = _qualities(report, report.last)
        changes = "retrained" if report.kept == "retrained" else ""
        found.append((str(report.last.step), what, changes, *costs, "", "", *quality, seconds))
    return found


def notes(report: Report) -> list[str]:
    """Return what there is to say of growth steps that did not end where they should."""
    return [f"{g.kind} {g.number} at step {g.step}: {g.note}" for g in report.growth if g.note]


def notes_on_test(report: Report) -> list[str]:
    """Return why controls could not be tested."""
    return [f"{t.name}: {t.failure}" for t in report.tested if t.failure]


def loss_change(value: float) -> str:
    """Return a change of the loss with four digits after the point, or more where it needs them."""
    return f"{value:+.1e}" if 0 < abs(value) < 1e-3 else f"{value:+.4f}"


def columns_of_endings() -> tuple[str, ...]:
    """Return the columns of the table of the networks a run might have ended with; `>` marks those of numbers."""
    return ("network", ">parameters", ">FLOPs", ">training FLOPs", ">accuracy", ">loss", ">seconds", "")


def rows_of_endings(report: Report) -> list[tuple[str, ...]]:
    """Return the rows of that table: the grown network, the same from scratch, and that without growth, if any.

    Accuracy and loss are those on the validation data; training FLOPs and seconds are each network's own.
    """
    return [
        (
            "compressed" if e.name == "grown" and report.compresses else e.name,
            f"{e.parameters:,}",
            f"{e.flops:,}",
            f"{e.training_flops:.2e}",
            "" if e.accuracy is None else f"{100 * e.accuracy:.2f} %",
            "" if e.loss is None else f"{e.loss:.4f}",
            f"{e.seconds:.0f}",
            e.note,
        )
        for e in report.endings
    ]


def columns_of_test(report: Report) -> tuple[str, ...]:
    """Return the columns of the table of the test data; `>` marks those of numbers."""
    return ("network", *(_HEADS[name] for name in report.costs), ">training FLOPs", ">accuracy", ">loss")


def rows_of_test(report: Report) -> list[tuple[str, ...]]:
    """Return the rows of the table of the test data: the controls, if any, and the grown network."""
    return [
        (
            t.name,
            *_costs(report, t),
            "" if t.training_flops is None else f"{t.training_flops:.2e}",
            "" if t.accuracy is None else f"{100 * t.accuracy:.2f} %",
            "failed" if t.loss is None else f"{t.loss:.4f}",
        )
        for t in report.tested
    ]


def _costs(report: Report, network: Report | Step | Tested) -> tuple[str, ...]:
    """Return the cells of what a network costs, those of what is not known empty."""
    values = {name: getattr(network, name) for name in report.costs}
    return tuple(
        "" if value is None else _milliseconds(value) if name == "latency" else f"{value:,}"
        for name, value in values.items()
    )


def _milliseconds(seconds: float) -> str:
    """Return a time with three significant digits."""
    rounded = f"{1000 * seconds:.2e}"
    places = max(0, 2 - int(rounded.partition("e")[2]))
    return f"{float(rounded):,.{places}f} ms"


def _qualities(report: Report, point: Point | None) -> tuple[str, ...]:
    """Return the cells of how the network did on the validation data, empty where it was not evaluated."""
    if point is None:
        return ("",) * (1 + report.compresses)
    return (f"{point.loss:.4f}", _quality(point)) if report.compresses else (_quality(point),)


def _quality(point: Point) -> str:
    return f"{point.loss:.4f}" if point.accuracy is None else f"{100 * point.accuracy:.2f} %"
