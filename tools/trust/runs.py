"""Directories of runs with files changed, cut short, swapped or removed: they are told of, and gone on with."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch

from archir.grow.report import make_report
from archir.grow.run import open_run
from tools.trust import seeds
from tools.trust.archives import packed, unpacked
from tools.trust.attack import Attack, Files, Wrong
from tools.trust.growing import grow_small, seed_of_run
from tools.trust.hostile import CONSTANTS, NAMES
from tools.trust.mutate import mutate_bytes, mutate_text
from tools.trust.sound import examine

_JSON = (
    "null",
    "true",
    "-1",
    "1e999",
    "NaN",
    "9" * 30,
    "9" * 5000,
    '""',
    "[]",
    "{}",
    '"\\ud800"',
    "[" * 20_000,
    '{"a":' * 9000,
    "1.5",
    '"x"',
)
_KEYS = (
    '"event"',
    '"time"',
    '"step"',
    '"state"',
    '"checksum"',
    '"predicted"',
    '"loss"',
    '"growth"',
    '"begin"',
    '"end"',
    '"evaluation"',
)


def make(dice: random.Random) -> Files:
    """Return a directory, one to three files of which are not as they were."""
    files = dict(seeds.run_files())
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        names = [n for n in sorted(files) if not n.startswith(".")]
        name = dice.choice(names if dice.random() < 0.5 else names[-3:])  # those of the newest checkpoint come last
        match dice.randrange(8):
            case 0:
                del files[name]
            case 1:
                other = dice.choice(sorted(files))
                files[name], files[other] = files[other], files[name]
            case 2:
                files[name] = files[name][: dice.randrange(len(files[name]) + 1)]
            case 3 if name.endswith(".archir"):
                files[name] = _archive(dice, files[name])
            case 4:
                files[f"step-{dice.choice(('0001', '9999', '9' * 60, '00001', 'x', '-1'))}{Path(name).suffix}"] = files[
                    name
                ]
            case 5 | 6 if name.endswith((".json", ".jsonl")):
                files[name] = _text(dice, files[name])
            case _:
                files[name] = mutate_bytes(dice, files[name])
        if len(files) < 2:
            break
    plan = {"resume": dice.random() < 0.1}
    return {**{f"run/{name}": content for name, content in files.items()}, "plan.json": json.dumps(plan).encode()}


def _archive(dice: random.Random, data: bytes) -> bytes:
    """Return an archive with other tensors or another text, its own checksum made to fit."""
    try:
        header, rest = unpacked(data)
        meta = header["__metadata__"]
    except (ValueError, KeyError):
        return mutate_bytes(dice, data)
    if dice.random() < 0.5:
        return packed(header, mutate_bytes(dice, rest), fitting=True)
    header["__metadata__"] = meta | {"graph": mutate_text(dice, meta["graph"], (CONSTANTS, NAMES))}
    return packed(header, rest, fitting=True)


def _text(dice: random.Random, data: bytes) -> bytes:
    text = mutate_text(dice, data.decode("utf-8", "replace"), (_JSON, _JSON, _KEYS, CONSTANTS))
    return text.encode("utf-8", "surrogatepass")


def use(folder: Path) -> None:
    """Tell what the run did, load its checkpoint, and now and then go on with it."""
    run = open_run(folder / "run")
    events = run.history()
    report = make_report(events)
    json.dumps([report.steps], allow_nan=False)
    len(run.config)
    checkpoint = run.latest()
    if checkpoint is not None:
        examine(checkpoint.graph)
    if json.loads((folder / "plan.json").read_bytes())["resume"]:
        with torch.random.fork_rng():  # training seeds the generator, as it says
            done = grow_small(seed_of_run(), folder / "run", resume=True)
        if done.graph.parameter_count > 90:
            raise Wrong(f"{done.graph.parameter_count} parameters under a budget of 90")


RUNS = Attack("run", make, use, seconds=30, short=200)
