"""Expansion: every width of a network that can grow does so by the same factor, before it is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from archir.axes.infer import infer_widths
from archir.axes.terms import Atom, Product, Term, leaves
from archir.axes.widths import Widths
from archir.cost import Cost, cost
from archir.errors import GrowError
from archir.growing.birth import Birth, born
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.rewrite.miss import Miss
from archir.rewrite.multiplicity import solve_exponents
from archir.rewrite.set_cost import cost_of_sizes
from archir.scoring.budget import Budget

MOST = 1024.0
"""The largest factor that is tried."""


@dataclass(frozen=True)
class Expansion:
    """A network whose widths have grown.

    Attributes:
        graph: the wider network.
        birth: how its weights start.
        factor: the factor by which widths have grown, up to rounding.
        sizes: the new size of each width that has grown, by name.
        held: why the other widths have not grown, by name.
        cost: cost of the wider network.
        budget: what it had to be within.
    """

    graph: Graph
    birth: Birth
    factor: float
    sizes: Mapping[str, int]
    held: Mapping[str, str]
    cost: Cost
    budget: Budget

    @property
    def reach(self) -> float:
        """How far it got: the largest share of a limit that is used, 1 at most."""
        shares: list[float] = [getattr(self.cost, name) / max(n, 1) for name, n in _sized(self.budget).items()]
        return max(shares)

    def __str__(self) -> str:
        why: dict[str, list[str]] = {}
        for name, reason in self.held.items():
            why.setdefault(reason, []).append(name)
        held = "".join(f"; not {', '.join(names)}: {reason}" for reason, names in why.items())
        return f"{len(self.sizes)} widths grew {self.factor:.3g}-fold, to {self.reach:.0%} of {self.budget}{held}"


def widen_uniformly(
    graph: Graph, budget: Budget, *, fixed: Mapping[str, int] | None = None, birth: Birth = "fresh", seed: int = 0
) -> Expansion:
    """Widen a network by the same factor everywhere, as far as a budget allows.

    The factor is the largest for which the network is within all limits; width by width, what is left over is then
    used up as far as it goes. A head, or a group, stays as large as it is: there are more of them. A network that is
    born `split` keeps its function, so widths that statistics run over grow by whole multiples, and those of which
    units cannot be repeated not at all.

    Args:
        graph: the network.
        budget: the limits; that on latency is not looked at.
        fixed: the sizes of some widths, by name, in place of what the factor makes of them.
        birth: how the weights of the wider network start.
        seed: of everything random.

    Raises:
        GrowError: there is no limit but on latency, or the network exceeds one already.
        PassError: the stored tensors would not fit into memory.
    """
    limits = _sized(budget)
    if not limits:
        raise GrowError("a network cannot be widened without a limit on parameters, FLOPs or peak bytes")
    has = {name: getattr(cost(graph), name) for name in limits}
    if any(has[name] > limit for name, limit in limits.items()):
        over = "; ".join(f"{has[n]} {n}, more than {limit}" for n, limit in limits.items() if has[n] > limit)
        raise GrowError("the network exceeds the budget already", why=over)
    widths = infer_widths(graph)
    steps, held = _growing(widths, birth)
    growing = {name: (widths[name].size, step) for name, step in steps.items()}
    given = {name: size for name, size in (fixed or {}).items() if name in growing}
    factor, sizes = _largest(graph, budget, {n: g for n, g in growing.items() if n not in given}, given)
    grown = {name: size for name, size in sizes.items() if size > widths[name].size}
    held |= {name: "one more unit is too many" for name in sizes.keys() - grown.keys()}
    wide = born(graph, grown, birth, seed, by=f"widen-uniformly{{factor={factor:.4g}, birth={birth}}}")
    return Expansion(wide, birth, factor, grown, held, cost(wide), budget)


def uniform_sizes(graph: Graph, budget: Budget, birth: Birth) -> dict[str, int]:
    """Return the sizes that the widths which may grow have in the network that is uniformly widened within a budget."""
    widths = infer_widths(graph)
    steps, _ = _growing(widths, birth)
    return _largest(graph, budget, {name: (widths[name].size, step) for name, step in steps.items()}, {})[1]


def _sized(budget: Budget) -> dict[str, float]:
    """Return the limits on what is read off sizes."""
    return {name: limit for name, limit in budget.limits.items() if name != "latency"}


def _growing(widths: Widths, birth: Birth) -> tuple[dict[str, int], dict[str, str]]:
    """Return the widths that may grow, with the number of units that have to come at once, and why others may not."""
    steps: dict[str, int] = {}
    held: dict[str, str] = {}
    for width in widths:
        found = solve_exponents(widths, width) if birth == "split" else None
        if isinstance(found, Miss):
            held[width.name] = found.reason
        else:
            steps[width.name] = width.size if found and found.uniform else 1
    free = frozenset(widths[name].atom for name in steps)
    fixed: set[Atom] = set()
    for node in widths.graph.parameters:
        for term in widths.axes[Value(node.id)]:
            fixed.update(_inner(term, free - fixed))
    for name in [name for name in steps if widths[name].atom in fixed]:
        del steps[name]
        held[name] = "there are more of what it is the size of"
    return steps, held


def _inner(term: Term, free: frozenset[Atom]) -> Iterator[Atom]:
    """Yield the atoms that have to stay for an axis to grow no faster than its widths: all but the outer factors."""
    if isinstance(term, Atom):
        return
    for part in term.parts:
        yield from _inner(part, free)
    if isinstance(term, Product):
        first, *rest = [*filter(None, (free.intersection(leaves(part)) for part in term.parts)), frozenset[Atom]()]
        for atoms in rest:
            yield from atoms - first


def _largest(
    graph: Graph, budget: Budget, widths: Mapping[str, tuple[int, int]], fixed: Mapping[str, int]
) -> tuple[float, dict[str, int]]:
    """Return the largest factor within a budget, and the sizes of widths.

    Args:
        graph: the graph.
        budget: the limits.
        widths: the size of each width that may grow, and the number of units that have to come at once.
        fixed: the sizes of other widths.
    """

    def at(factor: float) -> dict[str, int]:
        return {**fixed} | {
            name: size + math.floor(size * (factor - 1) / step) * step for name, (size, step) in widths.items()
        }

    def fits(sizes: Mapping[str, int]) -> bool:
        return budget.allows(cost_of_sizes(graph, sizes))

    low, high = 1.0, 2.0
    while widths and high < MOST and fits(at(high)):
        low, high = high, 2 * high
    while widths and high - low > 1 / max(size for size, _ in widths.values()) / 8:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(at(middle)) else (low, middle)
    sizes = at(low)
    for name, (_, step) in widths.items():
        more = {**sizes, name: sizes[name] + 1}
        if step == 1 and fits(more):
            sizes = more
    return low, sizes
