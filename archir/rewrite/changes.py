"""Changes of widths: what becomes of their units, and how several changes of one width become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from archir.axes.widths import Width
from archir.errors import PassError
from archir.rewrite.theta import Theta


@dataclass(frozen=True)
class Change:
    """What becomes of the units of one width.

    Attributes:
        source: for each new unit the old unit it repeats; numbers from the old size on are fresh units.
        fresh: number of fresh units.
        sign: for each new unit, the sign with which `theta` is added to it; all zero if empty.
        theta: by parameter node, a tensor of the parameter's shape to add to the units with a sign.
        values: by parameter node, what the fresh units hold: the parameter's shape with its positions along the
            width replaced by those of the fresh units. Where not given: zero in every place where a repeated unit
            would be divided, random like the other units elsewhere.
        merged: pairs of old units that become one, which holds the mean of what they held, doubled where a repeated
            unit would be divided. `source` has the first of each pair and not the second.
    """

    source: tuple[int, ...]
    fresh: int = 0
    sign: tuple[int, ...] = ()
    theta: Theta = field(default_factory=dict)
    values: Theta = field(default_factory=dict)
    merged: tuple[tuple[int, int], ...] = ()

    def multiplicity(self, size: int) -> torch.Tensor:
        """Return how often each of the old and fresh units is used; `[size + fresh]`."""
        return torch.bincount(torch.tensor(self.source, dtype=torch.long), minlength=size + self.fresh)

    def partners(self, size: int) -> torch.Tensor:
        """Return the unit each of the old and fresh units is merged with, itself if none; `[size + fresh]`."""
        found = torch.arange(size + self.fresh)
        for one, other in self.merged:
            found[one], found[other] = other, one
        return found


def merge(width: Width, changes: Sequence[Change]) -> Change:
    """Combine changes of one width that all start from its present units.

    Units that any change removes or merges into another are removed; copies and fresh units of all of them are
    appended in order.

    Raises:
        PassError: a unit is both removed and copied, or merged and changed otherwise, or two changes bring fresh units
            or different θ.
    """
    if len(changes) == 1:
        return changes[0]
    removed: set[int] = set()
    merged: list[tuple[int, int]] = []
    appended: list[tuple[int, int]] = []
    sign: dict[int, int] = {}
    fresh: Change | None = None
    theta: dict[object, object] = {}
    for change in changes:
        kept = [u for u in change.source if u < width.size]
        removed |= set(range(width.size)) - set(kept) - {other for _, other in change.merged}
        merged += change.merged
        seen: set[int] = set()
        signs = change.sign or (0,) * len(change.source)
        for unit, s in zip(change.source, signs, strict=True):
            if unit in seen or unit >= width.size:
                appended.append((unit, s))
            elif s:
                sign[unit] = s
            seen.add(unit)
        if change.fresh:
            if fresh is not None:
                raise PassError(f"width {width.name} is given fresh units twice in one set")
            fresh = change
        for node, tensor in change.theta.items():
            if node in theta and theta[node] is not tensor:
                raise PassError(f"two changes of width {width.name} disagree about θ")
            theta[node] = tensor
    _check_apart(width, removed, {u for u, _ in appended}, [u for pair in merged for u in pair])
    removed |= {other for _, other in merged}
    source = [(u, sign.get(u, 0)) for u in range(width.size) if u not in removed] + appended
    first = next((c for c in changes if c.theta), changes[0])
    return Change(
        source=tuple(u for u, _ in source),
        fresh=fresh.fresh if fresh else 0,
        sign=tuple(s for _, s in source) if any(s for _, s in source) else (),
        theta=first.theta,
        values=fresh.values if fresh else {},
        merged=tuple(merged),
    )


def _check_apart(width: Width, removed: set[int], copied: set[int], paired: Sequence[int]) -> None:
    """Check that no unit is changed in two ways.

    Raises:
        PassError: one is both removed and copied, or merged and changed otherwise.
    """
    torn = removed & copied
    if torn:
        raise PassError(f"unit {min(torn)} of width {width.name} is both removed and copied in one set")
    torn = set(paired) & (removed | copied) or {u for u in paired if paired.count(u) > 1}
    if torn:
        raise PassError(f"unit {min(torn)} of width {width.name} is merged and changed otherwise in one set")
