"""Records of faults: the files of the trial and what became of them, enough to run it again."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from tools.trust.attack import FAULTS, Attack, Files, Outcome

MOST = 20
"""Records kept of one cause."""


class Records:
    """A folder of records."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Write into a folder, which is made if it is not there."""
        self._folder = folder
        self._seed = seed
        self._kept: Counter[tuple[str, str, str]] = Counter()
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, attack: Attack, number: int, files: Files, outcome: Outcome) -> None:
        """Keep a trial if it is a fault, and not one of many alike."""
        key = attack.name, outcome.kind, outcome.cause
        if outcome.kind not in FAULTS or self._kept[key] >= MOST:
            return
        self._kept[key] += 1
        content = {
            "attack": attack.name,
            "seed": self._seed,
            "number": number,
            **asdict(outcome),
            "files": {name: base64.b64encode(data).decode() for name, data in files.items()},
        }
        cause = re.sub(r"\W+", "-", outcome.cause)[:60]
        path = self._folder / f"{attack.name}-{outcome.kind}-{cause}-{number:06d}.json"
        path.write_text(json.dumps(content, indent=1))


def read_record(path: Path) -> tuple[str, int, Files]:
    """Return the name of the attack, the number of the trial, and its files."""
    content = json.loads(path.read_text())
    return content["attack"], content["number"], {n: base64.b64decode(d) for n, d in content["files"].items()}
