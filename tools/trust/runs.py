"""Directories of runs with files changed, cut short, swapped, removed, forged or linked: told of, and gone on with.

What is only damaged is refused, or the run ends in the network it would have ended in, bit for bit; a run that is gone
on with under another configuration is refused in any case.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from archir.growing.report import make_report
from archir.growing.run import open_run
from archir.ir.load import load
from tools.trust import seeds
from tools.trust.archives import packed, unpacked
from tools.trust.attack import LINK, PIPE, Attack, Files, Wrong
from tools.trust.growing import BUDGET, grow_small, is_same, seed_of_run
from tools.trust.hostile import CONSTANTS, NAMES
from tools.trust.mutate import mutate_bytes, mutate_text
from tools.trust.sound import examine
from tools.trust.watch import VICTIM

_JSON = (
    *("null", "true", "-1", "1e999", "NaN", "9" * 30, "9" * 5000, '""', "[]", "{}", '"\\ud800"', "[" * 20_000),
    *('{"a":' * 9000, "1.5", '"x"', "[" * 900 + "]" * 900, "0", "60", "2", "1e-320"),
)
_KEYS = tuple(
    f'"{key}"'
    for key in ("event", "time", "step", "state", "checksum", "predicted", "loss", "growth", "begin", "end", "specs")
)
_STATES = (
    *("{}", "[]", "null", '{"step": 60}', '{"step": 60, "growth_steps": 2, "seconds": "x"}'),
    *('{"step": 60, "growth_steps": 99, "seconds": 1}', '{"step": 60, "growth_steps": -1, "seconds": 1}'),
    *('{"step": -60, "growth_steps": 0, "seconds": 1}', '{"step": 60.0, "growth_steps": 2, "seconds": 1}'),
    *('{"step": 60, "growth_steps": true, "seconds": 1}', '{"step": 60, "growth_steps": 2, "seconds": 1e999}'),
    *('{"step": ' + "9" * 5000 + "}", '{"a":' * 9000, '{"step": 60, "growth_steps": 0, "seconds": -1}'),
)
"""States of a checkpoint that fit nothing."""

OTHERS: Mapping[str, Mapping[str, Any]] = {
    "budget": {"budget": BUDGET - 10},
    "larger budget": {"budget": BUDGET + 1},
    "data": {"data": 7},
    "loss": {"loss": "mse"},
    "seed": {"options": replace(seeds.SPARSE, seed=1)},
    "rate": {"options": replace(seeds.SPARSE, clip=2.0)},
    "steps": {"options": replace(seeds.SPARSE, steps=80)},
}
"""Configurations that are not those of the run, by what is other."""

_LINKS = (f"../../nest/{VICTIM}", "/dev/zero", "/etc/passwd", ".", "history.jsonl", "nowhere", "lock")


def known() -> Sequence[Files]:
    """Return the whole run, one damage to every file, every forged state, and links and pipes in place of files."""
    whole, last = dict(seeds.run_files()), f"step-{seeds.last_step():04d}"
    cases = [planned(whole, resume=what) for what in ("", "same", *OTHERS)]
    for name, data in whole.items():
        gone = {n: c for n, c in whole.items() if n != name}
        if name.startswith("step-") and not name.startswith(last):
            cases.append(planned(gone))
            continue
        middle = len(data) // 2
        cases += [planned(gone), planned(whole | {name: data[:middle]}), planned(whole | {name: b""})]
        cases += [planned(whole | {name: flipped(data, at)}) for at in (middle, -1)]
        cases += [planned(gone | {f"{LINK}{name}": target.encode()}) for target in _LINKS[:2]]
        cases.append(planned(gone | {f"{PIPE}{name}": b""}))
    cases += [planned(whole | {f"{LINK}step-9999.{e}": t.encode()}) for e in ("json", "archir") for t in _LINKS]
    cases += [planned(forged(whole, last, state=state), fake=True) for state in _STATES]
    before = {name: c for name, c in whole.items() if not name.startswith(last)}
    newest = max(name for name in before if name.endswith(".safetensors"))
    cases += [planned(before | {newest: flipped(before[newest], at)}) for at in (-1, -7)]
    older = {name: c for name, c in whole.items() if not name.startswith("step-")}
    cases.append(planned(older))  # it begins anew
    return cases


def flipped(data: bytes, at: int) -> bytes:
    """Return bytes with one bit changed."""
    found = bytearray(data)
    found[at] ^= 1
    return bytes(found)


def make(dice: random.Random) -> Files:
    """Return a directory, one to three files of which are not as they were."""
    files, fake = dict(seeds.run_files()), False
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        names = sorted(n for n in files if not n.startswith((LINK, PIPE)))
        if len(names) < 2:
            break
        name = dice.choice(names if dice.random() < 0.5 else names[-3:])  # those of the newest checkpoint come last
        match dice.randrange(9):
            case 0:
                del files[name]
            case 1:
                other = dice.choice(names)
                files[name], files[other] = files[other], files[name]
            case 2:
                files[name] = files[name][: dice.randrange(len(files[name]) + 1)]
            case 3 if name.endswith(".archir"):
                files[name] = _archive(dice, files[name])
            case 4:
                number = dice.choice(("0001", "9999", "9" * 60, "00001", "x", "-1"))
                files[f"step-{number}{Path(name).suffix}"] = files[name]
            case 5 | 6 if name.endswith((".json", ".jsonl")):
                files[name] = _text(dice, files[name])
            case 7:
                content = files.pop(name)
                files[f"{LINK}{name}"] = dice.choice(_LINKS).encode()
                files["other"] = content
            case 8:
                files, fake = _forged(dice, files), True
            case _:
                files[name] = mutate_bytes(dice, files[name])
    # What was forged after it was linked stands in place of the link.
    files = {n: c for n, c in files.items() if not n.startswith(LINK) or n.removeprefix(LINK) not in files}
    # Going on takes four times as long as telling, so that most are told of.
    resume = dice.choice((*("",) * 12, *("same",) * 6, dice.choice(tuple(OTHERS))))
    return planned(files, resume=resume, fake=fake)


def planned(files: Files, *, resume: str = "same", fake: bool = False) -> Files:
    """Return a directory, how it is gone on with, and what is to come of it.

    Args:
        files: what is in the directory.
        resume: `same`, a key of `OTHERS`, or nothing: it is only told of.
        fake: a checkpoint was made to fit, so that another network may come of it.
    """
    placed: dict[str, bytes] = {}
    for name, content in files.items():
        kind = next((k for k in (LINK, PIPE) if name.startswith(k)), "")
        placed[f"{kind}run/{name.removeprefix(kind)}"] = content
    last = seeds.run_files()[f"step-{seeds.last_step():04d}.archir"]
    return {**placed, "plan.json": json.dumps({"resume": resume, "fake": fake}).encode(), "whole.archir": last}


def forged(files: Files, stem: str, *, state: str | None = None) -> dict[str, bytes]:
    """Return a directory in which the checksum of a checkpoint fits its files and, if given, another state."""
    found = dict(files)
    content = json.loads(found[f"{stem}.json"])
    text = content["state"] if state is None else state
    digest = hashlib.sha256(f"{content['step']}\n{text}\n".encode("utf-8", "surrogatepass"))
    for suffix in ("archir", "safetensors"):
        digest.update(hashlib.sha256(found[f"{stem}.{suffix}"]).digest())
    made = {"step": content["step"], "checksum": digest.hexdigest(), "state": text}
    return found | {f"{stem}.json": json.dumps(made).encode()}


def _forged(dice: random.Random, files: dict[str, bytes]) -> dict[str, bytes]:
    """Return a directory with a checkpoint that says it is whole and is not."""
    whole = seeds.run_files()
    stem = dice.choice([Path(n).stem for n in whole if n.endswith(".json") and n.startswith("step-")][-2:])
    parts = {n: whole[n] for n in whole if n.startswith(stem)}
    state = None
    match dice.randrange(3):
        case 0:
            parts[f"{stem}.archir"] = _archive(dice, parts[f"{stem}.archir"])
        case 1:
            parts[f"{stem}.safetensors"] = mutate_bytes(dice, parts[f"{stem}.safetensors"])
        case _:
            old = json.loads(parts[f"{stem}.json"])["state"]
            state = dice.choice((*_STATES, mutate_text(dice, old, (_JSON, _JSON, _KEYS))))
            state = state.encode("utf-8", "replace").decode()
    return {**files, **forged(parts, stem, state=state)}


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
    """Tell what the run did and load its checkpoint, or go on with it as it was, or as another one."""
    plan = json.loads((folder / "plan.json").read_bytes())
    if not plan["resume"]:
        _tell(folder / "run")
    elif plan["resume"] == "same":
        done = _go_on(folder / "run", {})
        if done.parameter_count > BUDGET:
            raise Wrong(f"{done.parameter_count} parameters under a budget of {BUDGET}")
        if not plan["fake"] and not is_same(done, load(folder / "whole.archir")):
            raise Wrong("a damaged run goes on and ends in another network")
    else:
        _go_on(folder / "run", OTHERS[plan["resume"]])
        raise Wrong(f"a run goes on with another {plan['resume']}")


def _tell(directory: Path) -> None:
    run = open_run(directory)
    report = make_report(run.history())
    json.dumps([report.steps], allow_nan=False)
    len(run.config)
    checkpoint = run.latest()
    if checkpoint is not None:
        examine(checkpoint.graph)


def _go_on(directory: Path, other: Mapping[str, Any]) -> Any:
    with torch.random.fork_rng(devices=[]):  # training seeds the generator, as it says
        return grow_small(seed_of_run(), directory, resume=True, **{"options": seeds.SPARSE, **other}).graph


RUNS = Attack("run", make, use, known, seconds=30, short=200)
