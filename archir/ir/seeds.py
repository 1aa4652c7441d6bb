"""Seeds made from others."""

from __future__ import annotations

MOST = 2**63 - 1
"""The largest seed; torch takes no larger ones everywhere."""


def derived_seed(seed: int, number: int) -> int:
    """Return the seed of one of many things that are random under a seed, between 0 and `MOST`."""
    return (seed * 1_000_003 + number) % (MOST + 1)
