"""What a run did, read off its history."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from archir.errors import GrowError
from archir.growing.run import COUNTERFACTUAL, RETRAINED, Event
from archir.scoring.ranges import LARGEST

COSTS = ("parameters", "flops", "peak_bytes", "latency")
"""What a network costs; the tables of a run always tell of the first two."""


@dataclass(frozen=True)
class Point:
    """The network as it did on the validation data after some steps.

    Attributes:
        step: optimiser steps done.
        loss: validation loss, in nats for likelihoods.
        accuracy: validation accuracy; None where the targets are not labels.
        parameters: number of trainable parameters.
        phase: when it was evaluated: `train`, `before growth`, `after growth`, or `end`.
    """

    step: int
    loss: float
    accuracy: float | None
    parameters: int
    phase: str = "end"


@dataclass(frozen=True)
class Step:
    """A growth step.

    Attributes:
        number: its number, from 1.
        kind: `growth`, `contraction` or `exchange`.
        step: optimiser steps done before it.
        changes: what was done, such as `8 split, 2 prune`; empty if nothing was committed.
        rule: the rule the candidates were chosen by; None if it was not recorded.
        predicted: predicted change of the loss, in nats; None if the rule predicts none, or nothing was committed.
        realised: true change of the loss on held-out examples.
        parameters_before: parameters before it.
        parameters: parameters after it.
        flops: FLOPs of one example after it.
        peak_bytes: most bytes of activations alive at once after it; None if that was not recorded.
        latency: seconds of the forward pass of one example after it; None if that was not measured.
        backed_off: candidates that were chosen but not committed.
        seconds: time spent on scoring and selecting.
        note: what there is to say of where it ended, and why.
    """

    number: int
    kind: str
    step: int
    changes: str
    rule: str | None
    predicted: float | None
    realised: float
    parameters_before: int
    parameters: int
    flops: int
    peak_bytes: int | None
    latency: float | None
    backed_off: int
    seconds: float | None
    note: str


@dataclass(frozen=True)
class Ending:
    """A network that the run might have ended with, or would have without growth, on the validation data.

    Attributes:
        name: which network.
        parameters: number of trainable parameters.
        flops: FLOPs of one example.
        training_flops: FLOPs of its own training, growth steps included.
        loss: validation loss; None if its training failed.
        accuracy: validation accuracy; None where the targets are not labels, too.
        seconds: time its own training took.
        note: whether it is the one that was kept, and what else there is to say.
    """

    name: str
    parameters: int
    flops: int
    training_flops: int
    loss: float | None
    accuracy: float | None
    seconds: float
    note: str


@dataclass(frozen=True)
class Tested:
    """How a network did on the test data.

    Attributes:
        name: which network.
        parameters: number of trainable parameters.
        flops: FLOPs of one example.
        training_flops: FLOPs of all its training, growth steps included; None if that was not recorded.
        peak_bytes: most bytes of activations alive at once; None if that was not recorded.
        latency: seconds of the forward pass of one example; None if that was not measured.
        loss: loss on the test data; None if its training failed.
        accuracy: accuracy on the test data; None where the targets are not labels, or its training failed.
        failure: why its training failed; empty if it did not.
    """

    name: str
    parameters: int
    flops: int
    training_flops: int | None
    peak_bytes: int | None
    latency: float | None
    loss: float | None
    accuracy: float | None
    failure: str = ""


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        kind: `growth`, or `compression` of a network that was trained before.
        parameters: parameters of the seed, or of that network.
        flops: FLOPs of the seed for one example.
        peak_bytes: most bytes of its activations alive at once; None if that was not recorded.
        latency: seconds of its forward pass of one example; None if that was not measured.
        costs: what the tables show of the cost of a network: parameters, FLOPs, and which of the other two a budget or
            a price was on, by name.
        limit: most parameters the grown network might have, None for no limit.
        points: evaluations on the validation data, in order.
        growth: growth steps, in order.
        steps: optimiser steps asked for.
        seconds: time the run took; None if it has not finished.
        kept: `grown` or `retrained`, which of the two it has ended with; None if nothing was retrained.
        endings: the grown network and those that were trained beside it, if any.
        tested: how the grown network, and the controls before it, did on the test data, if they were read.
    """

    kind: str
    parameters: int
    flops: int
    peak_bytes: int | None
    latency: float | None
    costs: tuple[str, ...]
    limit: int | None
    points: tuple[Point, ...]
    growth: tuple[Step, ...]
    steps: int
    seconds: float | None
    kept: str | None
    endings: tuple[Ending, ...]
    tested: tuple[Tested, ...]

    @property
    def compresses(self) -> bool:
        """Whether it began with a trained network that was above the budget."""
        return self.kind == "compression"

    @property
    def last(self) -> Point | None:
        """The last evaluation, None if there is none yet."""
        return self.points[-1] if self.points else None


def make_report(history: Iterable[Event]) -> Report:
    """Return what a run did.

    Args:
        history: its events; what was done again after an interruption counts once.

    Raises:
        GrowError: this is not the history of a run.
    """
    try:
        return _read(_effective(history))
    except (KeyError, TypeError, ValueError) as error:
        raise GrowError("this is not the history of a run", why=f"{type(error).__name__}: {error}") from error


def _effective(history: Iterable[Event]) -> list[Event]:
    """Return the events that led to where the run is: those after a checkpoint it went back to are dropped."""
    kept: list[Event] = []
    for event in history:
        if event["event"] == "started":  # anew, where there was no checkpoint yet
            kept = [event]
        elif event["event"] == "resumed":
            kept = [e for e in kept if _is_before(e, int(event["step"]), int(event["growth"]))]
        else:
            kept.append(event)
    return kept


def _is_before(event: Event, step: int, growth: int) -> bool:
    if event["event"] in ("finished", "tested", "control", "emitted"):
        return False
    return int(event.get("step", 0)) <= step and int(event.get("growth", 0)) <= growth


def _read(events: Sequence[Event]) -> Report:
    by_kind: dict[str, list[Event]] = {}
    for event in events:
        by_kind.setdefault(event["event"], []).append(event)
    if "started" not in by_kind:
        raise GrowError("this is not the history of a run", why="nothing was started", hint="wait until it has begun")
    started = by_kind["started"][0]
    finished = by_kind.get("finished", [{}])[-1]
    # An evaluation that was repeated after an interruption replaces the first.
    evaluated = {(e["step"], e["phase"]): e for e in by_kind.get("evaluated", [])}
    points = [_point(e) for e in (*evaluated.values(), *([finished] if finished else []))]
    budget, prices = _table(started["budget"]), _table(started.get("prices", {}))
    asked = {name for name, value in (*budget.items(), *prices.items()) if value is not None}
    return Report(
        kind=_perhaps(_text, started, "kind") or "growth",
        parameters=_whole(started, "parameters"),
        flops=_whole(started, "flops"),
        peak_bytes=_perhaps(_whole, started, "peak_bytes"),
        latency=_perhaps(_number, started, "latency"),
        costs=tuple(name for name in COSTS if name in ("parameters", "flops", *asked)),
        limit=_perhaps(_whole, budget, "parameters"),
        points=tuple(points),
        growth=tuple(_steps(by_kind, started)),
        steps=_whole(started, "steps"),
        seconds=_perhaps(_number, finished, "seconds"),
        kept=_perhaps(_text, finished, "kept"),
        endings=tuple(_endings(by_kind, finished)),
        tested=tuple(_tested(e) for kind in ("control", "tested") for e in by_kind.get(kind, [])),
    )


def _endings(by_kind: dict[str, list[Event]], finished: Event) -> Iterator[Ending]:
    """Yield the grown network and those beside it, as far as they are there."""
    retrained, ungrown = (by_kind.get(kind, [None])[-1] for kind in (RETRAINED, COUNTERFACTUAL))
    if retrained is not None:
        better = retrained["kept"] is True
        yield _ending("grown", _table(retrained["grown"]), "" if better else "kept")
        yield _ending("the same, from scratch", retrained, "kept" if better else "")
    elif ungrown is not None and finished:
        yield _ending("grown", finished, "kept")
    if ungrown is not None:
        yield _ending("without growth", ungrown, "")


def _ending(name: str, event: Event, kept: str) -> Ending:
    return Ending(
        name=name,
        parameters=_whole(event, "parameters"),
        flops=_whole(event, "flops"),
        training_flops=_whole(event, "training_flops"),
        loss=_perhaps(_number, event, "loss"),
        accuracy=_perhaps(_number, event, "accuracy"),
        seconds=_number(event, "seconds"),
        note=kept or _perhaps(_text, event, "note") or "",
    )


def _tested(event: Event) -> Tested:
    return Tested(
        name=_text(event, "name"),
        parameters=_whole(event, "parameters"),
        flops=_whole(event, "flops"),
        training_flops=_perhaps(_whole, event, "training_flops"),
        peak_bytes=_perhaps(_whole, event, "peak_bytes"),
        latency=_perhaps(_number, event, "latency"),
        loss=_perhaps(_number, event, "loss"),
        accuracy=_perhaps(_number, event, "accuracy"),
        failure=_perhaps(_text, event, "failure") or "",
    )


def _point(event: Event) -> Point:
    accuracy = _perhaps(_number, event, "accuracy")
    phase = _perhaps(_text, event, "phase") or "end"
    return Point(_whole(event, "step"), _number(event, "loss"), accuracy, _whole(event, "parameters"), phase)


T = TypeVar("T")


def _perhaps(read: Callable[[Event, str], T], event: Event, name: str) -> T | None:
    return None if event.get(name) is None else read(event, name)


def _whole(event: Event, name: str) -> int:
    value = event[name]
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise TypeError(f"{name} is {value!r:.60}, not a whole number from 0")
    return value


def _number(event: Event, name: str) -> float:
    value = event[name]
    if type(value) not in (int, float):
        raise TypeError(f"{name} is {value!r:.60}, not a number")
    return float(value)


def _table(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.60} is no object")
    return value


def _text(event: Event, name: str) -> str:
    value = event[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r:.60}, not a text")
    return value


def _steps(by_kind: dict[str, list[Event]], started: Event) -> list[Step]:
    scored = {_whole(e, "growth"): e for e in by_kind.get("scored", [])}
    done = {_whole(e, "growth"): e for kind in ("rejected", "grown") for e in by_kind.get(kind, [])}
    size, flops = _whole(started, "parameters"), _whole(started, "flops")
    peak_bytes, latency = _perhaps(_whole, started, "peak_bytes"), _perhaps(_number, started, "latency")
    steps: list[Step] = []
    for number, event in sorted(done.items()):
        before = _perhaps(_whole, event, "parameters_before")
        before = size if before is None else before
        if event["event"] == "grown":
            size, flops = _whole(event, "parameters"), _whole(event, "flops")
            peak_bytes, latency = _perhaps(_whole, event, "peak_bytes"), _perhaps(_number, event, "latency")
        found = scored.get(number, {})
        realised = _perhaps(_number, event, "realised")
        steps.append(
            Step(
                number=number,
                kind=_perhaps(_text, found, "kind") or "growth",
                step=_whole(event, "step"),
                changes=summarise([_text({"spec": s}, "spec") for s in event.get("specs", ())]),
                rule=_perhaps(_text, found, "rule"),
                predicted=_perhaps(_number, event, "predicted"),
                realised=0.0 if realised is None else realised,
                parameters_before=before,
                parameters=size,
                flops=flops,
                peak_bytes=peak_bytes,
                latency=latency,
                backed_off=_whole(event, "backed_off" if "backed_off" in event else "chosen"),
                seconds=_perhaps(_number, found, "seconds"),
                note=_perhaps(_text, event, "note") or "",
            )
        )
    return steps


def summarise(specs: Iterable[str]) -> str:
    """Return how many passes of each kind there are, those of several units counted as often: `8 split, 2 prune`."""
    counts: Counter[str] = Counter()
    for spec in specs:
        name, _, options = spec.partition("{")
        units = re.search(r"units=\[([^]]*)\]", options)
        many = units[1].count(",") + 1 if units else 1
        counts[name] += many // 2 if units and name == "merge" else many
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())
