"""Files that are written whole or not at all, under names of their own, and plain files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from archir.ir.files import open_plain, read_plain, replacing, write_file


def test_a_link_at_the_name_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_bytes(b"mine")
    path.symlink_to(victim)
    write_file(path, b"new")
    assert victim.read_bytes() == b"mine" and not path.is_symlink() and path.read_bytes() == b"new"


def test_a_link_at_the_name_of_the_temporary_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the name could be foreseen."""
    monkeypatch.setattr(secrets, "token_hex", lambda _: "ab")
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    for target in (victim, tmp_path / "absent"):
        link = tmp_path / ".file.ab.tmp"
        link.symlink_to(target)
        with pytest.raises(FileExistsError):
            write_file(tmp_path / "file", b"new")
        assert link.is_symlink(), "what is not ours is not removed"
        link.unlink()
    assert victim.read_bytes() == b"mine" and [p.name for p in tmp_path.iterdir()] == ["victim"]


def test_temporary_names_cannot_be_foreseen(tmp_path: Path) -> None:
    names = []
    for _ in range(2):
        with replacing(tmp_path / "file") as temporary:
            names.append(temporary.name)
            assert temporary.parent == tmp_path and str(os.getpid()) != temporary.name.split(".")[2]
    assert len(set(names)) == 2 and all(len(name.split(".")[2]) >= 16 for name in names)


@pytest.mark.parametrize("name", ["", ".", "/", ".."])
def test_a_path_that_names_no_file_is_refused(name: str) -> None:
    with pytest.raises(OSError):
        write_file(Path(name), b"new")


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"old")
    with pytest.raises(ValueError), replacing(tmp_path / "file") as temporary:
        temporary.write_bytes(b"new")
        raise ValueError
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_only_regular_files_are_read(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "file")
    with pytest.raises(OSError):
        read_plain(tmp_path / "file")


def test_a_file_with_another_name_is_read_but_not_written_in_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    os.link(tmp_path / "file", tmp_path / "other")
    assert read_plain(tmp_path / "other") == b"mine"
    for flags in (os.O_RDWR, os.O_WRONLY | os.O_CREAT):
        with pytest.raises(OSError, match="one file with others"):
            open_plain(tmp_path / "other", flags)
    write_file(tmp_path / "other", b"new")
    assert (tmp_path / "file").read_bytes() == b"mine"
    os.close(open_plain(tmp_path / "other", os.O_RDWR))
