"""The directory of a growth run: its configuration, what happened, and checkpoints to go on from.

config.toml         the configuration, as given
history.jsonl       one event a line, only ever appended to
step-0003.archir    the graph after growth step 3, weights included
step-0003.safetensors   tensors of the trainer: optimiser state and the like
step-0003.json      the rest of its state; written last, so a checkpoint with it is whole
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise

from archir.errors import FileError, GrowError
from archir.ir.graph import Graph
from archir.ir.load import load
from archir.ir.store import checksum, save

Event = dict[str, Any]
"""A JSON object with at least `event`, its kind, and `time`, in seconds since 1970."""

CONFIG, HISTORY = "config.toml", "history.jsonl"
_STEP = re.compile(r"step-(\d+)\.(archir|safetensors|json)")


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run goes on from.

    Attributes:
        step: number of the growth step it was taken after.
        graph: the program with its weights.
        tensors: tensors of the trainer, by name.
        state: the rest of its state, as JSON.
    """

    step: int
    graph: Graph
    tensors: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]


def create_run(path: Path, config: str, *, replace: bool = False) -> RunDirectory:
    """Make the directory of a new run.

    Args:
        path: the directory; files of others in it are left alone.
        config: text of the configuration.
        replace: remove the run that is there, if any.

    Raises:
        FileError: there is a run already, or the directory cannot be written.
    """
    found = _files(path)
    if found and not replace:
        raise FileError(
            f"there is a run in {path} already",
            why=f"it has {', '.join(p.name for p in found[:3])}",
            mend="resume it, or choose another directory",
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        for file in found:
            file.unlink()
        _write(path / CONFIG, config.encode())
        _write(path / HISTORY, b"")
    except OSError as error:
        raise FileError(f"cannot write into {path}", why=str(error)) from error
    return RunDirectory(path)


def open_run(path: Path) -> RunDirectory:
    """Return the directory of a run that goes on; an event that was cut off while it was written is dropped.

    Raises:
        FileError: there is no run, or its history is damaged.
    """
    if not (path / CONFIG).is_file() or not (path / HISTORY).is_file():
        raise FileError(f"there is no run in {path}", mend="start one there")
    run = RunDirectory(path)
    run.history()
    whole = (path / HISTORY).read_bytes().rpartition(b"\n")
    if whole[2]:
        os.truncate(path / HISTORY, len(whole[0]) + len(whole[1]))
    return run


@dataclass(frozen=True)
class RunDirectory:
    """The directory of a run; made by `create_run` or `open_run`.

    Attributes:
        path: the directory.
    """

    path: Path

    @property
    def config(self) -> str:
        """Text of the configuration the run was started with."""
        return (self.path / CONFIG).read_text()

    def append(self, event: str, **fields: Any) -> Event:
        """Add an event to the history; it is on disk when this returns.

        Args:
            event: its kind.
            fields: what else there is to say, as JSON.

        Returns:
            The event as written.

        Raises:
            GrowError: a field is not JSON, or not finite.
        """
        line: Event = {"event": event, "time": round(time.time(), 3), **fields}
        with (self.path / HISTORY).open("ab") as file:
            file.write(_json(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return line

    def history(self) -> list[Event]:
        """Return all events in order; one that was cut off at the end is left out.

        Raises:
            FileError: a line before the end is damaged.
        """
        events: list[Event] = []
        *lines, _ = (self.path / HISTORY).read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                event = json.loads(line)
            except ValueError as error:
                raise FileError(f"{self.path / HISTORY} is damaged", where=f"line {number}", why=str(error)) from error
            if not isinstance(event, dict) or "event" not in event:
                raise FileError(f"{self.path / HISTORY} is damaged", where=f"line {number}", why="it is no event")
            events.append(event)
        return events

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, in place of an older one of the same step, and return the file of its graph.

        Raises:
            FileError: it cannot be written.
            GrowError: its state is not JSON.
        """
        graph, tensors, state = self._paths(checkpoint.step)
        stored = {
            n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in checkpoint.tensors.items()
        }
        text = _json(dict(checkpoint.state)).decode()
        whole = _json({"step": checkpoint.step, "checksum": checksum(text, stored), "state": text})
        try:
            state.unlink(missing_ok=True)
            save(checkpoint.graph, graph)
            _write(tensors, serialise(stored))
            _write(state, whole)
        except (OSError, SafetensorError) as error:
            raise FileError(f"cannot write checkpoint {checkpoint.step} into {self.path}", why=str(error)) from error
        return graph

    def steps(self) -> list[int]:
        """Return the growth steps that have whole checkpoints, in order."""
        found = (_STEP.fullmatch(p.name) for p in self.path.glob("step-*.json"))
        return sorted(int(m[1]) for m in found if m)

    def load(self, step: int) -> Checkpoint:
        """Read the checkpoint of a growth step.

        Raises:
            FileError: it is missing or damaged.
        """
        graph, tensors, state = self._paths(step)
        try:
            content = json.loads(state.read_bytes())
            stored = load_file(tensors)
            text = content["state"]
            if content["checksum"] != checksum(text, stored):
                raise ValueError("its checksum does not fit what it holds")
            return Checkpoint(step, load(graph), stored, json.loads(text))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise FileError(
                f"checkpoint {step} in {self.path} is missing or damaged",
                why=f"{type(error).__name__}: {error}",
                mend=f"remove {state.name} to go on from the checkpoint before",
            ) from error

    def latest(self) -> Checkpoint | None:
        """Return the checkpoint to go on from, None if there is none yet.

        Raises:
            FileError: it is damaged.
        """
        steps = self.steps()
        return self.load(steps[-1]) if steps else None

    def _paths(self, step: int) -> tuple[Path, Path, Path]:
        stem = self.path / f"step-{step:04d}"
        return stem.with_suffix(".archir"), stem.with_suffix(".safetensors"), stem.with_suffix(".json")


def _files(path: Path) -> list[Path]:
    """Return the files of a run in a directory."""
    if not path.is_dir():
        return []
    return sorted(p for p in path.iterdir() if p.name in (CONFIG, HISTORY) or _STEP.fullmatch(p.name))


def _json(value: object) -> bytes:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise GrowError("what a run records is JSON with finite numbers", why=str(error)) from error


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
