"""What the command line prints: errors, tables, and the progress of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from archir.cli.lazy import LazyModule
from archir.errors import ArchirError
from archir.ir.printable import printable

if TYPE_CHECKING:
    from archir.growing import report_tables
    from archir.growing.run import Event
else:
    report_tables = LazyModule("archir.growing.report_tables")

WIDTH = 120
"""Columns of what is printed where there is no terminal."""


def standard() -> Console:
    """Return the console of results."""
    return _console(stderr=False)


def standard_error() -> Console:
    """Return the console of errors and of progress."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    return console


def print_error(error: ArchirError) -> None:
    """Print an error on standard error, in red."""
    text = Text()
    text.append("error: ", style="bold red")
    first, _, rest = printable(str(error)).partition("\n")
    text.append(first, style="red")
    if rest:
        text.append(f"\n{rest}")
    standard_error().print(text, soft_wrap=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Print a table; columns whose names begin with `>` are aligned to the right."""
    standard().print(make_table(columns, rows, title=title))


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> Table:
    """Return a table; columns whose names begin with `>` are aligned to the right."""
    table = Table(title=_cell(title) or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in columns:
        side: JustifyMethod = "right" if name.startswith(">") else "left"
        table.add_column(_cell(name.removeprefix(">")), justify=side, overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def _cell(value: object) -> str:
    return escape(printable(str(value)))


def say(text: str) -> None:
    """Print a line of a result."""
    standard().print(printable(text), markup=False, soft_wrap=True)


_BESIDE = {
    "retrained": "from scratch",
    "counterfactual": "no growth",
    "control-seed": "control, seed",
    "control-uniform": "control, uniform",
    "control-longer": "control, longer",
}
"""What networks that are trained beside a run are called while they are, by their folders."""


class RunProgress:
    """Shows the progress of a run: a bar on a terminal, one line for each growth step anywhere.

    Its instances are the `on_event` of `archir.grow`.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        """Begin with no steps known.

        Args:
            quiet: show nothing.
        """
        self._console = standard_error()
        self._quiet = quiet
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._progress.add_task("train", total=None, note="")
        self._kind = "growth"

    def __enter__(self) -> Self:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self._progress.stop()

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        if not self._quiet:
            self._console.print(printable(text), markup=False, soft_wrap=True)

    def __call__(self, event: Event) -> None:
        """Show an event of a run, or of a network that is trained beside it."""
        if "beside" in event:
            self._show_beside(event)
            return
        match event["event"]:
            case "started":
                self._progress.update(self._task, total=event["steps"])
                what = "network" if event["kind"] == "compression" else "seed"
                self.line(f"{what}: {event['parameters']:,} parameters, {event['flops']:,} FLOPs")
            case "resumed":
                self._progress.update(self._task, completed=event["step"], total=event["steps"])
                self.line(f"going on from step {event['step']}, after growth step {event['growth']}")
            case "damaged":
                self.line(f"checkpoint {event['checkpoint']} is damaged and passed over: {event['why']}")
            case "rate":
                self.line(f"learning rate: {event['rate']:.3g}, found in {event['steps']} steps")
            case "diverged":
                self.line(
                    f"{event['why']}: going back to the last checkpoint, at a learning rate of {event['rate']:.3g}"
                )
            case "train":
                if "overflowed" in event:
                    self.line(f"{event['overflowed']} steps before step {event['step']} were left out: beyond float16")
                if "skipped" in event:
                    self.line(f"{event['skipped']} batches before step {event['step']} without a label were skipped")
                self._describe("train", completed=event["step"])
            case "evaluated":
                phase = "score" if event["phase"] == "before growth" else "train"
                self._describe(phase, completed=event["step"], note=f"{_quality(event)}, {event['parameters']:,} par.")
            case "expanded":
                self.line(
                    f"expanded: {event['widths']} widths {event['factor']:.2f}-fold, born {event['birth']}, "
                    f"{event['parameters']:,} parameters, {event['flops']:,} FLOPs"
                )
            case "scored":
                self._kind = event["kind"]
            case "grown":
                told = report_tables.loss_change
                predicted = "" if event["predicted"] is None else f"{told(event['predicted'])} predicted, "
                self.line(
                    f"{self._kind} {event['growth']} at step {event['step']}: {event['parameters_before']:,} -> "
                    f"{event['parameters']:,} parameters, loss {predicted}{told(event['realised'])} realised"
                )
                if event["note"]:
                    self.line(f"  {event['note']}")
            case "retrained":
                kept = "the network from scratch is kept" if event["kept"] else "the grown one is kept"
                self.line(f"from scratch: {_ending(event)}; grown: {_quality(event['grown'])}; {kept}")
            case "counterfactual":
                self.line(f"no growth: {_ending(event)}")
            case "rejected":
                self.line(f"{self._kind} {event['growth']} at step {event['step']}: {event['note']}")

    def _show_beside(self, event: Event) -> None:
        name = _BESIDE[event["beside"]]
        match event["event"]:
            case "started":
                self._progress.update(self._task, completed=0, total=event["steps"])
                self.line(f"{name}: {event['parameters']:,} parameters, {event['steps']} steps")
            case "resumed":
                self._progress.update(self._task, completed=event["step"], total=event["steps"])
                self.line(f"{name}: going on from step {event['step']}")
            case "damaged":
                self.line(f"{name}: checkpoint {event['checkpoint']} is damaged and passed over: {event['why']}")
            case "rate":
                self.line(f"{name}: learning rate {event['rate']:.3g}, found in {event['steps']} steps")
            case "diverged":
                self.line(f"{name}: {event['why']}: going back, at a learning rate of {event['rate']:.3g}")
            case "train" | "evaluated":
                self._describe(name, completed=event["step"])

    def _describe(self, phase: str, **fields: object) -> None:
        note = fields.pop("note", None)
        more = {} if note is None else {"note": note}
        self._progress.update(self._task, description=phase, **fields, **more)  # type: ignore[arg-type]


def _ending(event: Event) -> str:
    """Return how a network has ended that was trained beside the run."""
    quality = "" if event["loss"] is None else _quality(event)
    return ", ".join(filter(None, (quality, f"{event['training_flops']:.2e} training FLOPs", event["note"])))


def _quality(event: Event) -> str:
    accuracy = event["accuracy"]
    return f"loss {event['loss']:.3f}" if accuracy is None else f"{100 * accuracy:.1f} %"
