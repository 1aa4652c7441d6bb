"""The lock on the directory of a run: one process writes into it at a time, and others are told which."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from archir.errors import FileError
from archir.growing.records import from_json
from archir.ir.files import open_plain

LOCK = "lock"
"""The file that is locked. It stays in the directory, and says who has the lock or had it last."""


@contextmanager
def lock_run(path: Path) -> Iterator[None]:
    """Hold the lock on a directory, which exists; no process that asks for it gets it meanwhile, nor does this one.

    It is released at the end of the block. If the process ends before that, however it ends, the system releases it,
    so that no lock is left behind by a dead process; but children that it forked, and that run no other program, hold
    it with it until they have ended, too. It is a lock on the file: who removes that lets others in.

    On a network disk it holds among machines where the disk carries `flock` to its server, as NFS on Linux does unless
    it was told otherwise (`nolock`, `local_lock`); else among the processes of one machine alone. A disk that has no
    such locks is refused.

    Raises:
        FileError: another process holds it, which is named; or the directory cannot be written or locked.
    """
    descriptor = _open(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            while not _is_still(path / LOCK, descriptor):  # it was removed in between
                stale, descriptor = descriptor, _open(path)
                os.close(stale)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holder = {"pid": os.getpid(), "host": os.uname().nodename, "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)
        except OSError as error:
            raise _refused(path, descriptor, error) from error
        yield
    finally:
        # Closing it would not do where a child has it open; what does not have the lock lets nothing go.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return open_plain(path / LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise FileError(f"cannot write into {path}", why=str(error)) from error


def _is_still(path: Path, descriptor: int) -> bool:
    """Say whether a path is that of an open file."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _refused(path: Path, descriptor: int, error: OSError) -> FileError:
    if error.errno in (errno.EAGAIN, errno.EACCES):
        return FileError(
            f"the run in {path} is in use",
            why=f"{_holder(descriptor)} holds its lock",
            hint="wait until that process has ended, or choose another directory",
        )
    return FileError(f"cannot lock {path}", why=str(error), hint="keep the run on a disk that has locks and room")


def _holder(descriptor: int) -> str:
    """Return who holds the lock, as far as that can be read while it may be written."""
    try:
        found = from_json(os.pread(descriptor, 1000, 0))
        return f"process {int(found['pid'])} on {found['host']!s:.80}, since {found['since']!s:.40},"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
