"""Which free widths of the models of both zoos grow by one unit, by a tenth and to their double, and which are scored.

The function has to be kept to 1e-9 in float64. Each model has a process of its own and 300 seconds. Models of packages
that are not installed are left out; where none is, the tables of docs/coverage.md that say so are written anew.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

from tests.models.wide.catalog import FAMILIES
from tests.models.wide.packages import installed
from tests.models.zoo import ZOO
from tools.coverage import write_growth_reach
from tools.growth_reach import GrowthReach, growth_reach
from tools.limited import limited

LIMIT = 300.0
"""Seconds a model may take, tracing included."""


def run(only: str = "") -> Mapping[str, object]:
    """Return the figures, and write the tables.

    Args:
        only: families of models, with commas between; all of them if empty.
    """
    families = {"own": ZOO, **{f: models for f, (package, models) in FAMILIES.items() if installed(package)}}
    names = [f"{f}/{m}" for f, models in families.items() if not only or f in only.split(",") for m in models]
    found: dict[str, GrowthReach | str] = {}
    for name in names:
        done = limited(growth_reach, (name,), LIMIT)
        found[name] = done.error or done.result
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    if not only and all(installed(package) for package, _ in FAMILIES.values()):
        write_growth_reach(found)
    known = [reach for reach in found.values() if isinstance(reach, GrowthReach)]
    free = sum(reach.free for reach in known)
    parts = {part: sum(getattr(reach, part) for reach in known) / max(free, 1) for part in PARTS}
    return {
        "models": len(known),
        "not_captured": len(found) - len(known),
        "free": free,
        **parts,
        "reasons": dict(Counter(reason for reach in known for reason in reach.reasons.values()).most_common()),
        "by_model": {n: reach if isinstance(reach, str) else asdict(reach) for n, reach in found.items()},
    }


PARTS = ("one", "tenth", "doubled", "scored", "nothing")
