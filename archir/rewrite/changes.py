"""Changes of widths: what becomes of their units, and how several changes of one width become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from archir.axes.positions import positions, unit_index
from archir.axes.widths import Width
from archir.errors import PassError
from archir.rewrite.theta import Key, Theta


@dataclass(frozen=True)
class Change:
    """What becomes of the units of one width.

    Attributes:
        source: for each new unit the old unit it repeats; numbers from the old size on are fresh units.
        fresh: number of fresh units.
        sign: for each new unit, the sign with which `theta` is added to it; all zero if empty.
        theta: by parameter node, a tensor of the parameter's shape to add to the units with a sign.
        values: by parameter node, what the fresh units hold: the parameter's shape with its positions along the
            width replaced by those of the fresh units. Where they hold means it is added to these. Where not given:
            zero in every place where a repeated unit would be divided, random like the other units elsewhere.
        adds_up: whether what fresh units do is the same whatever other fresh units the width is given besides.
        merged: pairs of old units that become one, which holds the mean of what they held, doubled where a repeated
            unit would be divided. `source` has the first of each pair and not the second.
    """

    source: tuple[int, ...]
    fresh: int = 0
    sign: tuple[int, ...] = ()
    theta: Theta = field(default_factory=dict)
    values: Theta = field(default_factory=dict)
    adds_up: bool = False
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
        PassError: a unit is both removed and copied, or merged and changed otherwise; or two changes bring different θ,
            or fresh units that do not do the same besides others.
    """
    if len(changes) == 1:
        return changes[0]
    removed: set[int] = set()
    merged: list[tuple[int, int]] = []
    appended: list[tuple[int, int]] = []
    sign: dict[int, int] = {}
    fresh = [change for change in changes if change.fresh]
    if len(fresh) > 1 and not all(change.adds_up for change in fresh):
        raise PassError(f"width {width.name} is given fresh units twice in one set")
    brought = 0
    theta: dict[object, object] = {}
    for change in changes:
        kept = [u for u in change.source if u < width.size]
        removed |= set(range(width.size)) - set(kept) - {other for _, other in change.merged}
        merged += change.merged
        seen: set[int] = set()
        signs = change.sign or (0,) * len(change.source)
        for unit, s in zip(change.source, signs, strict=True):
            if unit >= width.size:
                appended.append((unit + brought, s))
            elif unit in seen:
                appended.append((unit, s))
            elif s:
                sign[unit] = s
            seen.add(unit)
        brought += change.fresh
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
        fresh=brought,
        sign=tuple(s for _, s in source) if any(s for _, s in source) else (),
        theta=first.theta,
        values=_joined(width, fresh),
        adds_up=bool(fresh) and all(change.adds_up for change in fresh),
        merged=tuple(merged),
    )


def _joined(width: Width, changes: Sequence[Change]) -> Theta:
    """Return what the fresh units of several changes of a width hold, those of one after those of another.

    Raises:
        PassError: some of them say what theirs hold, and others do not.
    """
    if len(changes) < 2:
        return changes[0].values if changes else {}
    nodes = changes[0].values.keys()
    if any(change.values.keys() != nodes for change in changes):
        raise PassError(f"two changes of width {width.name} disagree about what fresh units hold")
    sizes = {width.atom: width.size + sum(change.fresh for change in changes)}
    places = {place.node: place for place in width.places}
    found: dict[Key, torch.Tensor] = {}
    for node in places.keys() & nodes:
        place, parts = places[node], [change.values[node] for change in changes]
        unit = unit_index(place.term, width.atom, None, sizes)
        unit = unit[positions(place.term, width.atom, torch.arange(width.size, sizes[width.atom]), sizes)]
        which = torch.bucketize(unit - width.size, torch.tensor([c.fresh for c in changes]).cumsum(0), right=True)
        joined = torch.cat(parts, place.axis)
        found[node] = torch.empty_like(joined).index_copy(
            place.axis, which.argsort(stable=True).to(joined.device), joined
        )
    return found


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
