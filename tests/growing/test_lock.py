"""The lock on a run directory: one process at a time, the others are told which, and the dead hold nothing."""

from __future__ import annotations

import fcntl
import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from archir.errors import FileError
from archir.growing.lock import LOCK, lock_run
from archir.growing.run import open_run
from archir.ir.graph import Graph
from tests.growing.small_run import OPTIONS, grow

SHORT = replace(OPTIONS, steps=5, growth_steps=0)


def _hold(path: Path) -> int:
    """Let another process hold the lock until it is killed, and return its number."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with lock_run(path):
            os.write(tell, b"x")
            signal.pause()
    os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    return child


def _kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_second_process_is_told_who_holds_the_lock(seed_graph: Graph, tmp_path: Path) -> None:
    grow(seed_graph, options=SHORT, directory=tmp_path)
    before = (tmp_path / "history.jsonl").read_bytes()
    child = _hold(tmp_path)
    try:
        for resume in (True, False):
            with pytest.raises(FileError, match="is in use") as caught:
                grow(seed_graph, options=SHORT, directory=tmp_path, resume=resume)
            assert f"process {child} on {os.uname().nodename}, since 20" in caught.value.why
        assert (tmp_path / "history.jsonl").read_bytes() == before
        assert len(open_run(tmp_path).history()) > 1, "who only reads needs no lock"
    finally:
        _kill(child)
    # What the dead process wrote is still there; its lock is not.
    assert str(child) in (tmp_path / LOCK).read_text()
    assert grow(seed_graph, options=SHORT, directory=tmp_path, resume=True).directory == tmp_path


def _is_free(path: Path) -> bool:
    try:
        with lock_run(path):
            return True
    except FileError:
        return False


@pytest.mark.parametrize("fails", [False, True])
def test_the_lock_is_let_go_at_the_end_of_the_block_though_a_child_has_it_open(tmp_path: Path, fails: bool) -> None:
    child = 0
    try:
        with suppress(KeyError), lock_run(tmp_path):
            assert not _is_free(tmp_path), "not even this process gets it twice"
            child = os.fork()
            if child == 0:
                signal.pause()
            if fails:
                raise KeyError
        assert _is_free(tmp_path)
    finally:
        _kill(child)


def test_a_lock_whose_file_was_replaced_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a run that was moved away between the opening of the file and the locking of it."""
    flock, left = fcntl.flock, [1]

    def late(descriptor: int, operation: int) -> None:
        if left.pop() if left else 0:
            (tmp_path / LOCK).unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    before = len(os.listdir("/proc/self/fd"))
    with lock_run(tmp_path):
        assert not _is_free(tmp_path) and str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert _is_free(tmp_path) and len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"pid": "x"}', b"[" * 900])
def test_a_lock_that_says_nothing_sensible_is_still_one(tmp_path: Path, content: bytes) -> None:
    child = _hold(tmp_path)
    try:
        (tmp_path / LOCK).write_bytes(content)
        with pytest.raises(FileError, match="another process holds its lock"), lock_run(tmp_path):
            pass
    finally:
        _kill(child)


def test_a_link_or_a_pipe_is_no_lock(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(victim)
    with pytest.raises(FileError, match="cannot write into"), lock_run(tmp_path / "run"):
        pass
    assert victim.read_text() == "mine"
    (tmp_path / "run" / LOCK).unlink()
    os.mkfifo(tmp_path / "run" / LOCK)
    with pytest.raises(FileError, match="no regular file"), lock_run(tmp_path / "run"):
        pass
