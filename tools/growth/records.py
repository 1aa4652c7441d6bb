"""Records of trainings, one a file, none made twice; several processes may fill a folder at once."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from archir.growing.training import Metrics
from archir.ir.files import write_file
from tools.growth.training import Point


@dataclass(frozen=True)
class Key:
    """What is trained.

    Attributes:
        task: name of the task.
        arm: name of the arm.
        seed: seed of weights, batches and augmentation.
        rate: learning rate.
        steps: optimiser steps.
    """

    task: str
    arm: str
    seed: int
    rate: float
    steps: int

    @property
    def path(self) -> Path:
        """Where the record is kept in a folder."""
        return Path(self.task) / f"{self.arm}-seed{self.seed}-rate{self.rate:g}-steps{self.steps}.json"


@dataclass(frozen=True)
class Record:
    """One training.

    Attributes:
        key: what was trained.
        settings: of the task.
        sizes: units of each width, of networks whose widths are those of the seed.
        parameters: of the final network.
        flops: of the final network's forward pass, for one example.
        training_flops: all that were spent.
        seconds: of wall time.
        validation: how the final network does on the validation split, None if there is none.
        test: how it does on the test split; nothing is decided on it.
        curve: the network on its way.
        notes: what the arm has to say.
        failure: what went wrong; empty if nothing did.
        made_by: versions of what it was made with.
    """

    key: Key
    settings: str
    sizes: Mapping[str, int]
    parameters: int
    flops: int
    training_flops: int
    seconds: float
    validation: Metrics | None
    test: Metrics | None
    curve: tuple[Point, ...]
    notes: Mapping[str, Any]
    failure: str
    made_by: str


@dataclass(frozen=True)
class Records:
    """A folder of records.

    Attributes:
        folder: where they are kept.
    """

    folder: Path

    def read(self, key: Key) -> Record | None:
        """Return a record, None if there is none yet."""
        path = self.folder / key.path
        return _from_json(json.loads(path.read_text())) if path.exists() else None

    def all(self) -> list[Record]:
        """Return all records, in the order of their files."""
        return [_from_json(json.loads(p.read_text())) for p in sorted(self.folder.glob("*/[!.]*.json"))]

    def write(self, record: Record) -> None:
        """Keep a record: its file appears whole or not at all."""
        write_file(self.folder / record.key.path, (json.dumps(asdict(record), indent=1) + "\n").encode())

    @contextmanager
    def claim(self, key: Key) -> Iterator[bool]:
        """Say whether a record is to be made: it is not there, and no other process is about to make it.

        None will for the length of the block; a claim ends with the process that has it.
        """
        path = self.folder / key.path
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield not path.exists()
            if path.exists():
                lock.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _from_json(found: Mapping[str, Any]) -> Record:
    metrics = {name: None if found[name] is None else Metrics(**found[name]) for name in ("validation", "test")}
    curve = tuple(Point(**p) for p in found["curve"])
    return Record(**{**found, **metrics, "key": Key(**found["key"]), "curve": curve})
