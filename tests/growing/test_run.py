"""Run directories: events that survive a crash, checkpoints that are whole or absent."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from archir.errors import FileError, GrowError
from archir.growing.run import Checkpoint, RunDirectory, create_run, open_run
from archir.ir.graph import Graph
from frontends.pytorch import trace


def _graph(seed: int = 0) -> Graph:
    torch.manual_seed(seed)
    return trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3))


def _checkpoint(step: int, seed: int = 0) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    buffer = torch.randn(3, 4, generator=generator).T
    tensors = {"optimiser/momentum_buffer/0.weight": buffer, "row": buffer[0], "random": generator.get_state()}
    return Checkpoint(step, _graph(seed), tensors, {"steps": 10 * step, "rate": 0.1, "names": ["a", "b"]})


def _assert_same(found: Checkpoint | None, expected: Checkpoint) -> None:
    assert found is not None and (found.step, found.state) == (expected.step, expected.state)
    assert str(found.graph) == str(expected.graph)
    for name in expected.graph.by_name:
        assert torch.equal(found.graph.tensor(name), expected.graph.tensor(name))
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(t, expected.tensors[n]) for n, t in found.tensors.items())


def test_events_are_kept_in_order(tmp_path: Path) -> None:
    run = create_run(tmp_path / "a" / "b", "seed = 1\n")
    run.append("start", parameters=10)
    run.append("grow", predicted=-0.5, specs=["split{w1}"])
    again = open_run(run.path)
    assert again.config == "seed = 1\n"
    assert [(e["event"], e.get("parameters"), e.get("specs")) for e in again.history()] == [
        ("start", 10, None),
        ("grow", None, ["split{w1}"]),
    ]
    assert all(isinstance(e["time"], float) for e in again.history())


@pytest.mark.parametrize("torn", [b'{"event":"gro', b'{"event":"grow","time":1.0}', b"\x00\x00"])
def test_an_event_cut_off_by_a_crash_is_dropped(tmp_path: Path, torn: bytes) -> None:
    run = create_run(tmp_path / "run", "")
    run.append("start")
    with (run.path / "history.jsonl").open("ab") as file:
        file.write(torn)
    assert [e["event"] for e in run.history()] == ["start"]
    resumed = open_run(run.path)
    resumed.append("resumed")
    assert [e["event"] for e in open_run(run.path).history()] == ["start", "resumed"]


@pytest.mark.parametrize("line", [b"not json\n", b"[1]\n", b"{}\n"])
def test_a_damaged_line_before_the_end_is_an_error(tmp_path: Path, line: bytes) -> None:
    run = create_run(tmp_path / "run", "")
    with (run.path / "history.jsonl").open("ab") as file:
        file.write(line)
    run.append("start")
    with pytest.raises(FileError, match="line 1"):
        open_run(run.path)


def test_what_is_not_json_is_not_recorded(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", "")
    with pytest.raises(GrowError, match="finite"):
        run.append("train", loss=float("nan"))
    with pytest.raises(GrowError, match="JSON"):
        run.append("train", loss=torch.zeros(2))
    with pytest.raises(GrowError, match="JSON"):
        run.save(Checkpoint(1, _graph(), {}, {"loss": torch.zeros(2)}))
    assert sorted(p.name for p in run.path.iterdir()) == ["config.toml", "fingerprint.json", "history.jsonl"]
    assert run.history() == []


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", "a = 1\n")
    run.append("start")
    with pytest.raises(FileError, match=r"there is a run in .* already"):
        create_run(run.path, "a = 2\n")
    assert run.config == "a = 1\n" and len(run.history()) == 1


def test_a_run_is_replaced_on_request_and_other_files_stay(tmp_path: Path) -> None:
    run = create_run(tmp_path, "a = 1\n")
    run.save(_checkpoint(1))
    (tmp_path / "notes.txt").write_text("mine")
    again = create_run(tmp_path, "a = 2\n", replace=True)
    assert again.config == "a = 2\n" and again.history() == [] and again.steps() == []
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_is_no_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no run in"):
        open_run(tmp_path)


def test_a_run_needs_a_folder_it_can_make(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write into"):
        create_run(tmp_path / "file" / "run", "")


def test_checkpoints_come_back_as_they_were(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", "")
    assert run.latest() is None
    for step in (1, 2, 10):
        assert run.save(_checkpoint(step, seed=step)).name == f"step-{step:04d}.archir"
    assert open_run(run.path).steps() == [1, 2, 10]
    _assert_same(run.latest(), _checkpoint(10, seed=10))
    _assert_same(run.load(2), _checkpoint(2, seed=2))
    assert not list(run.path.glob(".*"))


def test_a_checkpoint_is_replaced_whole(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", "")
    run.save(_checkpoint(1, seed=1))
    run.save(_checkpoint(1, seed=2))
    _assert_same(run.latest(), _checkpoint(1, seed=2))


@pytest.mark.parametrize("part", ["archir", "safetensors", "json"])
def test_a_checkpoint_without_its_last_part_does_not_count(tmp_path: Path, part: str) -> None:
    run = create_run(tmp_path / "run", "")
    run.save(_checkpoint(1))
    run.save(_checkpoint(2))
    (run.path / f"step-0002.{part}").unlink()
    passed_over: list[int] = []
    _assert_same(run.latest(on_damage=lambda step, _: passed_over.append(step)), _checkpoint(1))
    assert passed_over == ([] if part == "json" else [2])


@pytest.mark.parametrize("part", ["archir", "safetensors", "json"])
def test_a_damaged_checkpoint_is_an_error(tmp_path: Path, part: str) -> None:
    run = create_run(tmp_path / "run", "")
    run.save(_checkpoint(1))
    file = run.path / f"step-0001.{part}"
    content = bytearray(file.read_bytes())
    content[-3] ^= 0xFF
    file.write_bytes(bytes(content))
    with pytest.raises(FileError, match=r"every checkpoint in .* is damaged"):
        RunDirectory(run.path).latest()
    run.save(_checkpoint(0))
    passed_over: list[tuple[int, str]] = []
    found = run.latest(on_damage=lambda step, error: passed_over.append((step, error.what)))
    _assert_same(found, _checkpoint(0))
    assert passed_over == [(1, f"checkpoint 1 in {run.path} is missing or damaged")]


def test_a_checkpoint_that_a_run_cannot_go_on_from_is_passed_over(tmp_path: Path) -> None:
    """Newest first; those before the one that will do are not asked about, and those after it are told of."""
    run = create_run(tmp_path / "run", "")
    for step in (1, 2, 3, 4):
        run.save(_checkpoint(step, seed=step))
    asked: list[int] = []
    told: list[tuple[int, str]] = []

    def accept(found: Checkpoint) -> None:
        asked.append(found.step)
        if found.step > 2:
            raise GrowError(f"not {found.step}", why="mine")

    found = run.latest(accept=accept, on_damage=lambda step, error: told.append((step, error.what)))
    _assert_same(found, _checkpoint(2, seed=2))
    assert asked == [4, 3, 2] and told == [(4, "not 4"), (3, "not 3")]

    def refuse(found: Checkpoint) -> None:
        raise GrowError("never", why="mine")

    told.clear()
    with pytest.raises(FileError, match=r"steps 4, 3, 2, 1\n  why:   the newest: mine"):
        run.latest(accept=refuse, on_damage=lambda step, error: told.append((step, error.what)))
    assert told == []


def test_a_checkpoint_does_not_count_while_its_parts_change_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed then leaves parts of two checkpoints; the one before is what a run goes on from."""
    run = create_run(tmp_path / "run", "")
    run.save(_checkpoint(1, seed=1))
    run.save(_checkpoint(2, seed=2))
    seen: list[tuple[str, list[int]]] = []
    rename, sync = os.replace, os.fsync

    def noted(old: Path, new: Path) -> None:
        seen.append((new.name, run.steps()))
        rename(old, new)

    def synced(descriptor: int) -> None:
        seen.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, run.steps()))
        sync(descriptor)

    monkeypatch.setattr(os, "replace", noted)
    monkeypatch.setattr(os, "fsync", synced)
    run.save(_checkpoint(2, seed=3))
    assert [(name, steps) for name, steps in seen if not name.startswith(".")][-5:] == [
        ("run", [1]),  # that it is gone is on disk before anything else is
        *((f"step-0002.{part}", [1]) for part in ("archir", "safetensors", "json")),
        ("run", [1, 2]),
    ]
    _assert_same(run.load(2), _checkpoint(2, seed=3))


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", "")
    (run.path / "step-0001.safetensors").mkdir()
    with pytest.raises(FileError, match="cannot write checkpoint 1"):
        run.save(_checkpoint(1))
    assert run.steps() == [] and not list(run.path.glob(".*"))


def test_the_checksum_of_a_checkpoint_covers_its_graph(tmp_path: Path) -> None:
    """A sound graph of another checkpoint is damage."""
    run = create_run(tmp_path / "run", "")
    for step in (1, 2):
        run.save(_checkpoint(step, seed=step))
    (run.path / "step-0001.archir").replace(run.path / "step-0002.archir")
    with pytest.raises(FileError, match="its checksum does not fit what it holds"):
        run.load(2)


def _rewritten(run: RunDirectory, change: Callable[[dict[str, object]], object]) -> None:
    path = run.path / "step-0001.json"
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps(change(content)))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: [c], "TypeError"),
        (lambda c: {**c, "step": 2}, "is not the state of step 1"),
        (lambda c: {**c, "step": True}, "is not the state of step 1"),
        (lambda c: {**c, "state": {"step": 1}}, "is not the state of step 1"),
        (lambda c: {"step": 1}, "KeyError"),
        (lambda c: {**c, "more": float("nan")}, "NaN is no number of JSON"),
        (lambda c: {**c, "more": 10**3000}, "a whole number of 3001 digits"),
    ],
)
def test_a_state_of_another_kind_is_damage(tmp_path: Path, change: Callable[..., object], why: str) -> None:
    run = create_run(tmp_path / "run", "")
    run.save(_checkpoint(1))
    _rewritten(run, change)
    with pytest.raises(FileError, match=r"checkpoint 1 in .* is missing or damaged") as caught:
        run.load(1)
    assert why in str(caught.value)


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "line",
    [
        b'{"event": 1, "time": 1.0}',
        b'{"event": ["started"], "time": 1.0}',
        b'{"event": "started"}',
        b'{"event": "started", "time": "now"}',
        b'{"event": "started", "time": 1e999}',
        b'{"event": "started", "time": NaN}',
        b'{"event": "started", "time": 1.0, "step": ' + b"9" * 5000 + b"}",
        b'{"event": "started", "time": 1.0, "name": "\\ud800"}',
        b'{"event": "\xff", "time": 1.0}',
        DEEP,
    ],
)
def test_a_line_that_is_no_event_is_damage(tmp_path: Path, line: bytes) -> None:
    run = create_run(tmp_path / "run", "")
    (run.path / "history.jsonl").write_bytes(line + b"\n")
    with pytest.raises(FileError, match=r"history\.jsonl is damaged"):
        open_run(run.path)


def test_state_that_is_nested_too_deep_is_damage(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", "")
    run.save(_checkpoint(1))
    for name in ("step-0001.json", "fingerprint.json"):
        (run.path / name).write_bytes(DEEP)
    with pytest.raises(FileError, match="nested too deep"):
        run.load(1)
    with pytest.raises(FileError, match="nested too deep"):
        _ = run.fingerprint


def test_links_in_a_run_are_not_followed(tmp_path: Path) -> None:
    """Neither to write, nor to read, nor to remove."""
    victim = tmp_path / "victim"
    run = create_run(tmp_path / "run", "")
    run.append("started")
    victim.write_bytes((run.path / "history.jsonl").read_bytes())
    before = victim.read_bytes()
    (run.path / "history.jsonl").unlink()
    (run.path / "history.jsonl").symlink_to(victim)
    with pytest.raises(FileError, match=r"history\.jsonl"):
        run.append("more")
    with pytest.raises(FileError, match="there is no run"):
        open_run(run.path)
    for name in ("step-0001.archir", "step-0001.safetensors", "step-0001.json", "config.toml"):
        (run.path / name).unlink(missing_ok=True)
        (run.path / name).symlink_to(victim)
    with pytest.raises(FileError, match="missing or damaged"):
        run.load(1)
    run.save(_checkpoint(1))
    _assert_same(run.load(1), _checkpoint(1))
    create_run(run.path, "", replace=True)
    assert victim.read_bytes() == before and not any(p.is_symlink() for p in run.path.iterdir())


def test_a_pipe_in_place_of_a_file_does_not_stop_the_process(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", "")
    (run.path / "history.jsonl").unlink()
    os.mkfifo(run.path / "history.jsonl")
    with pytest.raises(FileError, match="there is no run"):
        open_run(run.path)


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "pwrite", "replace"])
def test_a_full_disk_leaves_the_run_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    run = create_run(tmp_path / "run", "")
    run.append("started")
    run.save(_checkpoint(1))
    with monkeypatch.context() as patched:
        patched.setattr(os, call, _full)
        if call != "replace":
            with pytest.raises(FileError, match="No space left"):
                run.append("more")
        if call != "pwrite":
            with pytest.raises(FileError, match="No space left"):
                run.save(_checkpoint(2))
            with pytest.raises(FileError, match="No space left"):
                create_run(tmp_path / "other", "")
    assert [e["event"] for e in open_run(run.path).history()] == ["started"]
    _assert_same(run.latest(), _checkpoint(1))
    assert not list(run.path.glob(".*"))


def test_a_checkpoint_is_on_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is synced before it is renamed, and the folder after that, the state last of all."""
    run = create_run(tmp_path / "run", "")
    done: list[tuple[str, str]] = []
    sync, rename = os.fsync, os.replace

    def noted_sync(descriptor: int) -> None:
        done.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def noted_rename(old: Path, new: Path) -> None:
        done.append((str(old), str(new)))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_rename)
    run.save(_checkpoint(1))
    renamed = [(i, old, Path(new).name) for i, (old, new) in enumerate(done) if old != "sync"]
    assert all(("sync", old) in done[:i] for i, old, _ in renamed)
    assert [name for *_, name in renamed][-3:] == [f"step-0001.{e}" for e in ("archir", "safetensors", "json")]
    assert done[-1] == ("sync", str(run.path))


def test_a_run_whose_making_was_interrupted_can_be_made_again(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", "seed = 1")
    (run.path / "history.jsonl").unlink()
    with pytest.raises(FileError, match="there is no run"):
        open_run(run.path)
    with pytest.raises(FileError, match="there is a run"):
        create_run(run.path, "seed = 2")
    assert create_run(run.path, "seed = 1").history() == []


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", "")
    left = [".step-0001.json.0123456789abcdef.tmp", "..step-0001.archir.0123456789abcdef.tmp.0a.tmp"]
    for name in (*left, ".mine.tmp"):
        (run.path / name).write_bytes(b"x")
    run.clear()
    assert [p.name for p in run.path.glob(".*")] == [".mine.tmp"]
