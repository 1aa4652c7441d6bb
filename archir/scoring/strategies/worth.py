"""What candidates are worth under a budget: what is scarce has a price."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from archir.cost import cost
from archir.scoring.budget import Budget
from archir.scoring.families import Family
from archir.scoring.options import ScoreOptions
from archir.scoring.screen import Estimate

HALVINGS = 40
"""How often the interval in which a price lies is halved."""

HIGHEST = 1e6
"""The highest price of all of a limit, in nats."""


def asked_for(families: Sequence[Family], budget: Budget) -> int:
    """Return about how many candidates it takes to fill a budget, or to come down to it, were all of mean cost.

    Within the budget those that only free what is limited are left out, and of those that a limit does not touch all
    are asked for.
    """
    if not families:
        return 0
    now, names = cost(families[0].measured), list(budget.scarce)
    above, counts = not budget.allows(now), list[int]()
    known = [([getattr(f.cost, name) for name in names], len(f.site.members)) for f in families]
    for number, name in enumerate(names):
        room = budget.scarce[name] - getattr(now, name)
        if above and room >= 0:
            continue
        counted = known if above else [(c, n) for c, n in known if max(c) > 0 or min(c) == 0]
        touched = [(c[number], n) for c, n in counted if (c[number] < 0 if above else c[number] > 0)]
        many, rest = sum(n for _, n in touched), sum(n for _, n in counted)
        taken = min(round(room * many / sum(c * n for c, n in touched)), many) if many else 0
        counts.append(taken if above else taken + rest - many)
    return (max if above else min)(counts, default=0 if above else sum(n for _, n in known))


def worth_of(
    families: Sequence[Family], estimates: Sequence[Estimate], options: ScoreOptions, budget: Budget | None = None
) -> torch.Tensor:
    """Return the predicted change of the loss of every candidate plus the price of what it costs; `[candidates]`.

    Under a budget, another one than that of the options if given, what is scarce has a price as well (`scarcity`).
    """
    extra = [0.0 if options.price is None else options.price(f.cost) for f in families]
    parts = [e.predicted + x for e, x in zip(estimates, extra, strict=True)]
    worth, limits = torch.cat([torch.zeros(0, dtype=torch.float64), *parts]), budget or options.budget
    if limits is None or not len(worth):
        return worth
    return worth + scarcity(families, worth, torch.tensor([len(p) for p in parts]), limits)


def scarcity(families: Sequence[Family], worth: torch.Tensor, sizes: torch.Tensor, budget: Budget) -> torch.Tensor:
    """Return the price of what each candidate takes of what is scarce, negative where it frees some; `[candidates]`.

    The limits are priced in turn, each given the others, so that all candidates with a negative worth together are
    just within it: costs and worths are taken to be additive.

    Args:
        families: the families, of one graph.
        worth: predicted change of the loss plus price; `[candidates]`.
        sizes: number of members of each family.
        budget: the limits.
    """
    found, now = torch.zeros_like(worth), cost(families[0].measured)
    parts = {}
    for name, limit in budget.scarce.items():
        each = torch.tensor([float(getattr(f.cost, name)) for f in families], dtype=torch.float64)
        parts[name] = each.repeat_interleave(sizes) / max(limit, 1.0)
    paid = dict.fromkeys(parts, 0.0)
    for name in (*parts, *parts) if len(parts) > 1 else parts:
        part, room = parts[name], 1 - getattr(now, name) / max(budget.limits[name], 1.0)
        others = worth + found - paid[name] * part

        def over(at: float, others: torch.Tensor = others, part: torch.Tensor = part, room: float = room) -> bool:
            return float(part[others + at * part < 0].sum()) > room

        low, high = 0.0, 1e-9
        while over(high) and high < HIGHEST:
            low, high = high, 2 * high
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if over(middle) else (low, middle)
        found = found + ((high if over(0.0) else 0.0) - paid[name]) * part
        paid[name] = high if over(0.0) else 0.0
    return found
