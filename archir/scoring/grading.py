"""Grades: members of families in sets that grow with their rank, so that a few hundred sets hold all of thousands."""

from __future__ import annotations

from collections.abc import Sequence

HALVINGS = 40
"""How often the interval in which the growth of the sets lies is halved."""

Grade = tuple[int, tuple[int, ...]]
"""Number of a family, and members of it that are taken together."""


def grade(ranked: Sequence[Sequence[int]], united: Sequence[bool], most: int) -> list[Grade]:
    """Return all members of some families in sets: the best alone, those after them in ever larger ones.

    The sets of a family end at members `e_1 = 1, e_(k+1) = max(e_k + 1, ⌊r e_k⌋)` in order of rank: `r = 2` doubles
    what they hold together. One r holds for all families, the least at which there are at most `most` sets, or as few
    as can be. Where that is 1, every member is alone.

    Args:
        ranked: the members of each family, the best first.
        united: for each family whether its members can be taken together.
        most: most sets.

    Source: ours.
    """

    def sets(growth: float) -> list[Grade]:
        found: list[Grade] = []
        for family, (members, whole) in enumerate(zip(ranked, united, strict=True)):
            start = 0
            while start < len(members):
                end = max(start + 1, min(len(members), int(start * growth) if whole else 0))
                found.append((family, tuple(members[start:end])))
                start = end
        return found

    low, high = 1.0, float(max(map(len, ranked), default=1))
    if len(sets(low)) <= most:
        return sets(low)
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if len(sets(middle)) <= most else (middle, high)
    return sets(high)
