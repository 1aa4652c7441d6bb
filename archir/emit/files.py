"""Puts finished files where they belong, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from archir.ir.files import sync


def place(files: Sequence[Path], folder: Path) -> None:
    """Move files that are one whole into a folder under their names: all of them, or none.

    They are synced first. Of several, old ones are out of the way before the first new one is there, so that no
    mixture of the two is ever found, and are put back if a new one cannot be placed.

    Args:
        files: in one folder of their own on the same file system, in the order in which to place them.
        folder: where they belong.

    Raises:
        OSError: one cannot be placed; what was there before is there still.
    """
    for file in files:
        sync(file)
    aside: list[Path] = []
    placed: list[Path] = []
    try:
        if len(files) > 1:
            kept = files[0].parent / "replaced"
            kept.mkdir()
            for goal in [g for f in reversed(files) if (g := folder / f.name).exists()]:
                os.replace(goal, kept / goal.name)
                aside.append(kept / goal.name)
        for file in files:
            os.replace(file, folder / file.name)
            placed.append(folder / file.name)
    except BaseException:
        for goal in placed[: len(files) - 1]:
            goal.unlink(missing_ok=True)
        for old in aside:
            os.replace(old, folder / old.name)
        raise
    sync(folder)
