"""How much memory there is, so that what does not fit is refused before it is taken."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells what a container may take."""

MEMBERSHIP = Path("/proc/self/cgroup")
"""Where it tells in which groups this process is, a line each: number, controllers, path."""

_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""What a group may take and what it has, in versions 2 and 1."""


def free_memory() -> int:
    """Return the bytes of memory that this process can still take, as far as the system tells."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in _read(Path("/proc/meminfo")).splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            found.append(1024 * int(rest.split()[0]))
    for folder in _groups():
        for names in _FILES:
            most, used = (_read(folder / name).strip() for name in names)
            if most.isdigit() and used.isdigit():
                found.append(max(int(most) - int(used), 0))
    return min(found)


def _groups() -> set[Path]:
    """Return the folders of the groups that bound the memory of this process, and of those these are in."""
    found = {CGROUP, CGROUP / "memory"}
    for line in _read(MEMBERSHIP).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUP / "memory" if controllers else CGROUP
        inner = root.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
        found |= {inner, *(p for p in inner.parents if p.is_relative_to(root))}
    return found


LITTLE = 2**20
"""So many bytes are taken without asking for how many there are, which takes a while."""


def too_large(size: int) -> str:
    """Say why there is no room for so many bytes; nothing if there is."""
    if size <= LITTLE:
        return ""
    free = free_memory()
    return f"it would take {in_words(size)}, there are {in_words(free)} of memory" if size > free else ""


def in_words(size: int) -> str:
    """Return a number of bytes as people say it: `3.1 GiB`."""
    if size >= 2**80:
        return "more bytes than any machine has"
    power = max(0, (size.bit_length() - 1) // 10) if size else 0
    unit = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB")[power]
    return f"{size / 1024**power:.3g} {unit}" if power else f"{size} bytes"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
