"""How much memory there is: what the machine has, and what the groups of the process may take."""

from __future__ import annotations

from pathlib import Path

import pytest

from archir.ir import room
from archir.ir.room import free_memory, in_words, too_large


@pytest.mark.parametrize(
    ("groups", "inner", "limit", "usage"),
    [
        ("0::/\n", "", "memory.max", "memory.current"),
        ("0::/a.slice/b\n", "a.slice/b", "memory.max", "memory.current"),
        ("0::/a.slice/b\n", "a.slice", "memory.max", "memory.current"),
        ("4:memory:/job/7\n0::/\n", "memory/job/7", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("4:cpu,memory:/job/7\n", "memory/job", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_the_narrowest_group_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, inner: str, limit: str, usage: str
) -> None:
    monkeypatch.setattr(room, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(room, "LITTLE", 0)
    monkeypatch.setattr(room, "MEMBERSHIP", tmp_path / "self")
    whole = free_memory()
    (tmp_path / "self").write_text(groups)
    folder = tmp_path / "cgroup" / inner
    folder.mkdir(parents=True)
    (folder / usage).write_text("1000\n")
    (folder / limit).write_text("max\n")
    assert free_memory() > 10**6 and whole > 10**6
    (folder / limit).write_text("5096\n")
    assert free_memory() == 4096
    assert too_large(4096) == "" and too_large(4097) == "it would take 4 KiB, there are 4 KiB of memory"
    (folder / limit).write_text("500\n")
    assert free_memory() == 0


def test_other_groups_and_lines_that_say_nothing_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    monkeypatch.setattr(room, "LITTLE", 0)
    monkeypatch.setattr(room, "MEMBERSHIP", tmp_path / "self")
    (tmp_path / "self").write_text("x\n:\n7:cpu:/other\n0::/../..\n")
    (tmp_path / "other").mkdir()
    for name in ("memory.max", "memory.current"):
        (tmp_path / "other" / name).write_text("1")
    assert free_memory() > 10**6


def test_sizes_in_words() -> None:
    assert [in_words(n) for n in (0, 1023, 1024, 3 * 2**30, 2**80)] == [
        "0 bytes",
        "1023 bytes",
        "1 KiB",
        "3 GiB",
        "more bytes than any machine has",
    ]
