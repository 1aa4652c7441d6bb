"""Writes constraints.txt: the installed version of everything archir and its tests need, directly or not.

Usage: `.venv/bin/python tools/pin.py`, in an environment in which the tests pass.
"""

from __future__ import annotations

from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = frozenset({"test", "zoo", "bench", "lightning", "trainer"})
HEADER = "# The versions everything is tested with; written by tools/pin.py, used by the Makefile.\n"


def pins(package: str, extras: frozenset[str]) -> dict[str, str]:
    """Return the versions of what a package needs, by canonical name, local suffixes such as `+cpu` left off."""
    found: dict[str, str] = {}
    waiting = [(package, extras)]
    while waiting:
        name, wanted = waiting.pop()
        for requirement in map(Requirement, requires(name) or ()):
            marker, needed = requirement.marker, canonicalize_name(requirement.name)
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in wanted | {""}):
                if needed not in found:
                    waiting.append((needed, frozenset(requirement.extras)))
                found[needed] = version(needed).partition("+")[0]
    return found


def main() -> None:
    """Write the file beside pyproject.toml."""
    lines = [f"{name}=={number}\n" for name, number in sorted(pins("archir", EXTRAS).items())]
    Path(__file__).parent.parent.joinpath("constraints.txt").write_text(HEADER + "".join(lines))


if __name__ == "__main__":
    main()
