"""Faults planted into the package, one after another: the attacks have to see each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from archir.errors import GraphError
from archir.growing.arrays import _IDX_TYPES, read_npz
from archir.ir import registry
from archir.ir.load import load
from passes.prune import Prune
from tools.trust import nets, runs, seeds
from tools.trust.attack import Attack, Files, Outcome
from tools.trust.catalog import ATTACKS
from tools.trust.data_files import known as known_data
from tools.trust.payloads import around
from tools.trust.runner import pool
from tools.trust.watch import VICTIM

Fault = Callable[[], AbstractContextManager[object]]


class Anything(str):
    """A text that no other differs from."""

    def __ne__(self, other: object) -> bool:
        return False


def planted(fault: Fault, use: Callable[[Path], None], folder: Path) -> None:
    """Use the files of a trial with a fault in the package."""
    with fault():
        use(folder)


def unchecked_archives() -> Any:
    return patch("archir.ir.load.checksum", lambda *given: Anything())


def unchecked_checkpoints() -> Any:
    return patch("archir.growing.run._checksum", lambda *given: Anything())


def any_run_goes_on() -> Any:
    return patch("archir.growing.grow.differences", lambda before, now: [])


def _loading(effect: Callable[[], object]) -> Any:
    """Return a fault: loading has an effect."""

    def loaded(path: Path) -> Any:
        effect()
        return load(path)

    return patch("tools.trust.archives.load", loaded)


def native_code_writes_into_memory() -> Any:
    return _loading(lambda: torch.from_file(VICTIM, shared=True, size=4, dtype=torch.uint8).fill_(65))


def native_code_makes_a_file() -> Any:
    return _loading(lambda: torch.from_file("../other", shared=True, size=4, dtype=torch.uint8))


def the_file_is_changed() -> Any:
    def change() -> None:
        Path("../trial/net.archir").touch()
        Path("../trial/more").write_text("more")

    return _loading(change)


def wrong_end_of_numbers() -> Any:
    kinds = {code: str(kind).replace(">", "<") for code, kind in _IDX_TYPES.items()}
    return patch("archir.growing.arrays._IDX_TYPES", kinds)


def wrong_order_of_examples() -> Any:

    def turned(path: Path, keys: Sequence[str]) -> list[Any]:
        inputs, *rest = read_npz(path, keys)
        return [inputs[::-1].copy(), *rest]

    return patch("archir.growing.files.read_npz", turned)


def prune_of_another_unit() -> Any:
    change = Prune.change

    def other(self: Prune, width: Any, theta: Any = None) -> Any:
        return change(replace(self, units=tuple((u + 1) % width.size for u in self.units)), width, theta)

    return patch("passes.prune.Prune.change", other)


def prune_of_nothing() -> Any:
    return patch("passes.prune.Prune.apply", lambda self, graph, theta=None: graph)


def split_of_nothing() -> Any:
    return patch("passes.split.Split.apply", lambda self, graph, theta=None: graph)


def no_guards() -> Any:
    return patch("archir.ir.forwards.entry_check", lambda graph: lambda *inputs: None)


@contextmanager
def any_operator() -> Iterator[None]:
    known = registry.function

    def function(op: str) -> Any:
        try:
            return known(op)
        except GraphError:
            return registry._overload(op)

    with ExitStack() as patched:
        for place in ("constants", "ops", "registry"):
            patched.enter_context(patch(f"archir.ir.{place}.function", function))
        yield


def _raw(text: str) -> Any:
    raise KeyError(text)


def raw_errors() -> Any:
    return patch("tools.trust.texts.parse_graph", _raw)


def _text(call: str) -> Files:
    return {"net.txt": around(call).encode()}


def _damaged_momentum() -> Files:
    """Return a run whose newest checkpoint is gone and whose last but one has another momentum."""
    whole = seeds.run_files()
    left = {name: c for name, c in whole.items() if not name.startswith(f"step-{seeds.last_step():04d}")}
    newest = max(name for name in left if name.endswith(".safetensors"))
    return runs.planned(left | {newest: runs.flipped(left[newest], -1)})


def cases() -> list[tuple[Fault, str, Files, str]]:
    """Return the faults: what is wrong, the attack that sees it, on which files, and as what."""
    archive = seeds.archives()[0]
    sound, damaged = {"net.archir": archive}, {"net.archir": runs.flipped(archive, -1)}
    integers = next(f for f in known_data() if any(c[:4] == bytes((0, 0, 12, 3)) for c in f.values()))
    return [
        (unchecked_archives, "archive", damaged, "wrong"),
        (unchecked_checkpoints, "run", _damaged_momentum(), "wrong"),
        (any_run_goes_on, "run", runs.planned(seeds.run_files(), resume="budget"), "wrong"),
        (native_code_writes_into_memory, "archive", sound, "ran"),
        (native_code_makes_a_file, "archive", sound, "ran"),
        (the_file_is_changed, "archive", sound, "ran"),
        (wrong_end_of_numbers, "data", integers, "wrong"),
        (wrong_order_of_examples, "data", known_data()[0], "wrong"),
        (prune_of_another_unit, "net-prune", nets.known()[0], "wrong"),
        (prune_of_nothing, "net-prune", nets.known()[0], "wrong"),
        (split_of_nothing, "net-split", nets.known()[0], "wrong"),
        (no_guards, "net-trace", nets.known()[0], "wrong"),
        (any_operator, "text", _text("%0 = aten.relu_(x)"), "wrong"),
        (raw_errors, "text", _text("%0 = aten.relu(x)"), "crashed"),
    ]


@pytest.mark.slow
def test_every_planted_fault_is_seen() -> None:
    found: list[tuple[str, str]] = []

    def listen(attack: Attack, number: int, files: Files, outcome: Outcome) -> None:
        found.append((attack.name, f"{outcome.kind}: {outcome.cause}"))

    planned = cases()
    with pool() as workers:
        for fault, name, files, _ in planned:
            attack = replace(ATTACKS[name], name=fault.__name__, use=partial(planted, fault, ATTACKS[name].use))
            workers.run(attack, iter([(0, files)]), listen)
    wanted = {fault.__name__: kind for fault, _, _, kind in planned}
    assert [name for name, _ in found] == list(wanted)
    assert {name: told for name, told in found if told.partition(":")[0] != wanted[name]} == {}
