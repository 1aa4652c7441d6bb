"""How much memory there is, so that what does not fit is refused before it is taken."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells what a container may take."""


def free_memory() -> int:
    """Return the bytes of memory that this process can still take, as far as the system tells."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in _read(Path("/proc/meminfo")).splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            found.append(1024 * int(rest.split()[0]))
    most, used = (_read(CGROUP / name).strip() for name in ("memory.max", "memory.current"))
    if most.isdigit() and used.isdigit():
        found.append(max(int(most) - int(used), 0))
    return min(found)


def too_large(size: int) -> str:
    """Say why there is no room for so many bytes; nothing if there is."""
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
    except OSError:
        return ""
