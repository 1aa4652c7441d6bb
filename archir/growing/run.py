"""The directory of a growth run: its configuration, what happened, and checkpoints to go on from.

config.toml         the configuration, as given; it is kept for people, and never read back
fingerprint.json    everything that decides the run; see `archir.growing.fingerprint`
history.jsonl       one event a line, only ever appended to; a run has begun once it is there
lock                who is writing; see `archir.growing.lock`
step-0003.archir    the graph after growth step 3, weights included
step-0003.safetensors   tensors of the trainer: optimiser state and the like
step-0003.json      the rest of its state, and the checksum of all three; a checkpoint without it does not count
retrained/          such checkpoints of the network that was found, drawn anew and trained from scratch, if it was
counterfactual/     and of the network that the first growth step began from, trained without any growth step
control-seed/       and of each control; see `archir.growing.controls`

A run directory is data, whoever wrote it: nothing that a file in it names is imported, run, or followed as a link.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise

from archir.errors import ArchirError, FileError
from archir.growing.records import from_json, to_json
from archir.ir.files import TEMPORARY, beside, is_plain, open_plain, read_plain, sync, write_file
from archir.ir.graph import Graph
from archir.ir.load import load
from archir.ir.store import save

Event = dict[str, Any]
"""A JSON object with at least `event`, its kind, and `time`, in seconds since 1970."""

CONFIG, FINGERPRINT, HISTORY = "config.toml", "fingerprint.json", "history.jsonl"
RETRAINED, COUNTERFACTUAL = "retrained", "counterfactual"
CONTROLS = ("control-seed", "control-uniform", "control-longer")
"""Folders of the networks that are trained beside the run."""

_STEP = re.compile(r"step-(\d{4,18})\.(archir|safetensors|json)")


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


def create_run(
    path: Path, config: str, *, fingerprint: Mapping[str, Any] | None = None, replace: bool = False
) -> RunDirectory:
    """Make the directory of a new run.

    Args:
        path: the directory; files of others in it are left alone.
        config: text of the configuration.
        fingerprint: what decides the run, as JSON.
        replace: remove the run that is there, if any.

    Raises:
        FileError: there is a run already, or the directory cannot be written.
        GrowError: the fingerprint is not JSON.
    """
    found = [] if _is_cut_off(path, config) else _files(path)
    names = (RETRAINED, COUNTERFACTUAL, *CONTROLS)
    folders = [path / name for name in names if not (path / name).is_symlink()]
    found += [file for folder in folders for file in _files(folder)]
    if found and not replace:
        raise FileError(
            f"there is a run in {path} already",
            why=f"it has {', '.join(p.name for p in found[:3])}",
            hint="resume it, or choose another directory",
        )
    record = to_json(dict(fingerprint or {}))
    try:
        path.mkdir(parents=True, exist_ok=True)
        # The history first: what is left if this is interrupted is no run.
        for file in sorted(found, key=lambda p: p.name != HISTORY):
            file.unlink()
        for folder in folders:
            with contextlib.suppress(OSError):  # it is not there, or holds files of others
                folder.rmdir()
        write_file(path / CONFIG, config.encode())
        write_file(path / FINGERPRINT, record + b"\n")
        write_file(path / HISTORY, b"")
    except OSError as error:
        raise FileError(f"cannot write into {path}", why=str(error)) from error
    return RunDirectory(path)


def _is_cut_off(path: Path, config: str) -> bool:
    """Say whether the making of a run of this configuration was interrupted in a directory before the run began."""
    names = {p.name for p in _files(path)}
    if not names or not names <= {CONFIG, FINGERPRINT} or CONFIG not in names:
        return False
    try:
        return read_plain(path / CONFIG) == config.encode()
    except OSError:
        return False


def open_run(path: Path) -> RunDirectory:
    """Return the directory of a run that was begun; nothing is written.

    Raises:
        FileError: there is no run, or its history is damaged.
    """
    if not is_plain(path / CONFIG) or not is_plain(path / HISTORY):
        raise FileError(f"there is no run in {path}", hint="start one there")
    run = RunDirectory(path)
    run.history()
    return run


@dataclass(frozen=True)
class RunDirectory:
    """The directory of a run; made by `create_run` or `open_run`. Who writes into it holds its lock.

    Attributes:
        path: the directory.
    """

    path: Path

    @property
    def config(self) -> str:
        """Text of the configuration the run was started with.

        Raises:
            FileError: it cannot be read.
        """
        try:
            return read_plain(self.path / CONFIG).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"cannot read {self.path / CONFIG}", why=str(error)) from error

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What decided the run when it was started, as JSON.

        Raises:
            FileError: it is missing or damaged.
        """
        path = self.path / FINGERPRINT
        try:
            found = from_json(read_plain(path))
        except (OSError, ValueError) as error:
            hint = "a run without it cannot go on: start it anew"
            raise FileError(f"{path} is missing or damaged", why=str(error), hint=hint) from error
        if not isinstance(found, dict):
            raise FileError(f"{path} is damaged", why=f"it holds a {type(found).__name__}, no object")
        return found

    def append(self, event: str, **fields: Any) -> Event:
        """Add an event to the history; it is on disk when this returns. One that was cut off before is dropped.

        Args:
            event: its kind.
            fields: what else there is to say, as JSON.

        Returns:
            The event as written.

        Raises:
            FileError: it cannot be written; the history is as it was.
            GrowError: a field is not JSON, or not finite.
        """
        line: Event = {"event": event, "time": round(time.time(), 3), **fields}
        content = to_json(line) + b"\n"
        try:
            descriptor = open_plain(self.path / HISTORY, os.O_RDWR)
            try:
                _append(descriptor, content)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise FileError(f"cannot write into {self.path / HISTORY}", why=str(error)) from error
        return line

    def history(self) -> list[Event]:
        """Return all events in order; one that was cut off at the end is left out.

        Raises:
            FileError: it cannot be read, or a line before the end is damaged.
        """
        path = self.path / HISTORY
        events: list[Event] = []
        try:
            *lines, _ = read_plain(path).split(b"\n")
        except OSError as error:
            raise FileError(f"cannot read {path}", why=str(error)) from error
        for number, line in enumerate(lines, start=1):
            try:
                event = from_json(line)
            except ValueError as error:
                raise FileError(f"{path} is damaged", where=f"line {number}", why=str(error)) from error
            if not _is_event(event):
                raise FileError(f"{path} is damaged", where=f"line {number}", why="it is no event")
            events.append(event)
        return events

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, in place of an older one of the same step, and return the file of its graph.

        Raises:
            FileError: it cannot be written; an older one is as it was if the disk is full.
            GrowError: its state is not JSON.
        """
        step = checkpoint.step
        paths = graph, tensors, state = self._paths(step)
        stored = {
            n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in checkpoint.tensors.items()
        }
        text = to_json(dict(checkpoint.state)).decode()
        try:
            with beside(graph) as new_graph, beside(tensors) as new_tensors, beside(state) as new_state:
                save(checkpoint.graph, new_graph)
                new_tensors.write_bytes(serialise(stored))
                check = _checksum(step, text, (new_graph, new_tensors))
                new_state.write_bytes(to_json({"step": step, "checksum": check, "state": text}))
                for new in (new_graph, new_tensors, new_state):
                    sync(new)
                # While its parts change places, there is no checkpoint of this step.
                state.unlink(missing_ok=True)
                sync(self.path)
                for new, path in zip((new_graph, new_tensors, new_state), paths, strict=True):
                    os.replace(new, path)
                sync(self.path)
        except (OSError, SafetensorError) as error:
            raise FileError(f"cannot write checkpoint {step} into {self.path}", why=str(error)) from error
        return graph

    def steps(self) -> list[int]:
        """Return the growth steps that have checkpoints, in order."""
        found = (_STEP.fullmatch(p.name) for p in self.path.glob("step-*.json"))
        return sorted({int(m[1]) for m in found if m})

    def load(self, step: int) -> Checkpoint:
        """Read the checkpoint of a growth step.

        Raises:
            FileError: it is missing or damaged.
        """
        graph, tensors, state = self._paths(step)
        try:
            content = from_json(read_plain(state))
            text, number = content["state"], content["step"]
            if type(text) is not str or type(number) is not int or number != step:
                raise ValueError(f"{state.name} is not the state of step {step}")
            if content["checksum"] != _checksum(step, text, (graph, tensors)):
                raise ValueError("its checksum does not fit what it holds")
            found = from_json(text)
            if not isinstance(found, dict):
                raise ValueError("its state is no object")
            return Checkpoint(step, load(graph), load_file(tensors), found)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, FileError) as error:
            raise FileError(
                f"checkpoint {step} in {self.path} is missing or damaged",
                why=f"{type(error).__name__}: {error}",
            ) from error

    def latest(
        self,
        *,
        accept: Callable[[Checkpoint], object] | None = None,
        on_damage: Callable[[int, ArchirError], None] | None = None,
    ) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, None if there is none yet.

        Args:
            accept: raises an error of archir if a run cannot go on from a checkpoint, which then counts as damaged.
            on_damage: is told of each damaged one that was passed over, and why.

        Raises:
            FileError: all are damaged.
        """
        errors: dict[int, ArchirError] = {}
        for step in reversed(self.steps()):
            try:
                found = self.load(step)
                if accept is not None:
                    accept(found)
            except ArchirError as error:
                errors[step] = error
                continue
            for damaged, reason in errors.items():
                if on_damage is not None:
                    on_damage(damaged, reason)
            return found
        if errors:
            newest = next(iter(errors.values()))
            raise FileError(
                f"every checkpoint in {self.path} is damaged",
                where=f"steps {', '.join(map(str, list(errors)[:10]))}",
                why=f"the newest: {newest.why or newest.what}",
                hint="start the run anew in another directory",
            ) from newest
        return None

    def clear(self) -> None:
        """Remove what a process that was killed had not finished writing.

        Raises:
            FileError: it cannot be removed.
        """
        try:
            for path in self.path.glob(f".*{TEMPORARY}"):
                if _is_ours(re.sub(rf"(\.[0-9a-f]+{re.escape(TEMPORARY)})+", "", path.name.lstrip("."))):
                    path.unlink()
        except OSError as error:
            raise FileError(f"cannot write into {self.path}", why=str(error)) from error

    def beside(self, name: str) -> RunDirectory:
        """Return the folder of checkpoints of a network that is trained beside the run; it is made if it is not there.

        Raises:
            FileError: it cannot be made, or is a link.
        """
        found = RunDirectory(self.path / name)
        try:
            found.path.mkdir(exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot write into {found.path}", why=str(error)) from error
        if found.path.is_symlink():
            raise FileError(f"{found.path} is a link", hint="remove it: what is written there would be found elsewhere")
        found.clear()
        return found

    def _paths(self, step: int) -> tuple[Path, Path, Path]:
        stem = self.path / f"step-{step:04d}"
        return stem.with_suffix(".archir"), stem.with_suffix(".safetensors"), stem.with_suffix(".json")


def _is_ours(name: str) -> bool:
    return name in (CONFIG, FINGERPRINT, HISTORY) or _STEP.fullmatch(name) is not None


def _files(path: Path) -> list[Path]:
    """Return the files of a run in a directory, but for the lock."""
    return sorted(p for p in path.iterdir() if _is_ours(p.name)) if path.is_dir() else []


def _is_event(event: object) -> bool:
    if not isinstance(event, dict):
        return False
    return type(event.get("event")) is str and type(event.get("time")) in (int, float)


def _append(descriptor: int, content: bytes) -> None:
    """Add a line to an open file; if that fails, the file is as it was, but for a line that was cut off before."""
    end = os.fstat(descriptor).st_size
    if end and os.pread(descriptor, 1, end - 1) != b"\n":
        end = os.pread(descriptor, end, 0).rfind(b"\n") + 1
        os.ftruncate(descriptor, end)
    try:
        written = 0
        while written < len(content):
            written += os.pwrite(descriptor, content[written:], end + written)
        os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):  # the next event drops what is left otherwise
            os.ftruncate(descriptor, end)
        raise


def _checksum(step: int, state: str, files: Sequence[Path]) -> str:
    """Return the checksum of a checkpoint: of its state and of its other files.

    Raises:
        OSError: a file is missing.
    """
    digest = hashlib.sha256(f"{step}\n{state}\n".encode())
    for path in files:
        with os.fdopen(open_plain(path), "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
