"""Files that appear whole or not at all and stay after a power cut, and plain files, read without following links."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"
"""How the names of files end that are still being written; they begin with a dot and the name of the file."""


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yield the name of a new, empty file beside a path, which is gone when the block ends unless it was renamed.

    Raises:
        OSError: there can be no such file.
    """
    if not path.name:
        raise OSError(errno.EISDIR, "the path names no file", str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
    # Made here, under a name nobody can foresee: a link that waits there would be written through.
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a new file that takes the place of another, synced, when the block ends without an error.

    Raises:
        OSError: it cannot be written or renamed; the other is as it was.
    """
    with beside(path) as temporary:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)


def write_file(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; it is on disk when this returns.

    Raises:
        OSError: it cannot be written; an old one is as it was.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def sync(path: Path) -> None:
    """Bring what was written to a file, or the names in a folder, to the disk.

    Raises:
        OSError: the disk is full or broken.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network disks do not sync folders; there the names are kept by the server.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def open_plain(path: Path, flags: int = os.O_RDONLY, *, follow: bool = False) -> int:
    """Return a descriptor of a regular file, to be closed by the caller; links and devices are refused.

    One that is to be written has no other name either: what is written would be found under that, too.

    Args:
        path: the file.
        flags: as `os.open` takes them.
        follow: whether a link to a regular file will do.

    Raises:
        OSError: there is no such file, or it is none of its own.
    """
    # A pipe would let the process wait for ever if it were opened in blocking mode.
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, 0o666)
    found = os.fstat(descriptor)
    why = "" if stat.S_ISREG(found.st_mode) else "it is no regular file"
    if not why and found.st_nlink > 1 and flags & (os.O_WRONLY | os.O_RDWR):
        why = "it is one file with others of other names; copy it, and put the copy in its place"
    if why:
        os.close(descriptor)
        raise OSError(errno.EINVAL, why, str(path))
    return descriptor


def read_plain(path: Path) -> bytes:
    """Return the content of a regular file; links and devices are refused.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    with os.fdopen(open_plain(path), "rb") as file:
        return file.read()


def open_regular(path: Path) -> BinaryIO:
    """Return a regular file that a user named, or a link to one, open for reading; pipes and devices are refused.

    Raises:
        OSError: there is no such file, or it is something that reading might never come to the end of.
    """
    return os.fdopen(open_plain(path, follow=True), "rb")


def is_plain(path: Path) -> bool:
    """Say whether a path is a regular file itself, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
