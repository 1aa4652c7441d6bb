"""The lock on the directory of a run: one process writes into it at a time, and others are told which."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from archir.errors import FileError
from archir.grow.records import from_json
from archir.ir.files import open_plain

LOCK = "lock"
"""The file that is locked. It stays in the directory, and says who has the lock or had it last."""


@contextmanager
def lock_run(path: Path) -> Iterator[None]:
    """Hold the lock on a directory, which exists; no other process holds it meanwhile.

    The system lets go of it when the process ends, however that ends, so a lock is never left behind by a dead one. On
    a network disk it holds among the processes of one machine, and among machines if the disk carries `flock` to its
    server, as NFS from version 4 does; a disk that has no such locks is refused.

    Raises:
        FileError: another process holds it, which is named; or the directory cannot be written or locked.
    """
    try:
        descriptor = open_plain(path / LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise FileError(f"cannot write into {path}", why=str(error)) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holder = {"pid": os.getpid(), "host": os.uname().nodename, "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)
        except OSError as error:
            raise _refused(path, descriptor, error) from error
        yield
    finally:
        os.close(descriptor)


def _refused(path: Path, descriptor: int, error: OSError) -> FileError:
    if error.errno in (errno.EAGAIN, errno.EACCES):
        return FileError(
            f"the run in {path} is in use",
            why=f"{_holder(descriptor)} holds its lock",
            mend="wait until that process has ended, or choose another directory",
        )
    return FileError(f"cannot lock {path}", why=str(error), mend="keep the run on a disk that has locks and room")


def _holder(descriptor: int) -> str:
    """Return who holds the lock, as far as that can be read while it may be written."""
    try:
        found = from_json(os.pread(descriptor, 1000, 0))
        return f"process {int(found['pid'])} on {found['host']!s:.80}, since {found['since']!s:.40},"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
