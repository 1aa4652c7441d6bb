"""Split: a unit becomes two, with half the outgoing weight each, that may then differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from archir.axes.infer import infer_widths
from archir.axes.positions import unit_index
from archir.axes.terms import Term
from archir.axes.widths import Width
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.rewrite.equations import Miss
from archir.rewrite.family import apply_alone, check_units
from archir.rewrite.morphism import Site, Theta, WidthMorphism
from archir.rewrite.multiplicity import solve_exponents
from archir.rewrite.perturbation import Edge, Members
from archir.rewrite.region import Region, Values, region_of
from archir.rewrite.reindex import Change
from archir.rewrite.replay import Replay


@dataclass(frozen=True)
class Split(WidthMorphism):
    """Split units of a width: the children hold the weights `w + θ` and `w - θ` and half the outgoing weights.

    The function is kept at θ = 0. The first child keeps the number of the unit, the second is appended.

    Attributes:
        width: name of the width.
        units: the units to split; all of them if empty.

    Source: Lawton, Galstyan, Ver Steeg 2024 for channels; widths of any wiring are ours.
    """

    name: ClassVar[str] = "split"
    summary: ClassVar[str] = "split units in two that may differ"
    preserves: ClassVar[str] = "the function"

    units: tuple[int, ...] = ()

    def sites(self, graph: Graph) -> Iterator[Site]:
        """Yield a family for each width whose units can be split one by one."""
        widths = infer_widths(graph)
        for width in widths:
            found = solve_exponents(widths, width)
            if not isinstance(found, Miss) and found.uniform is None:
                yield Site(width.name, tuple(Split(width.name, (unit,)) for unit in range(width.size)))

    def match(self, graph: Graph) -> Miss | None:
        """Say why the units cannot be split, or None if they can."""
        widths = infer_widths(graph)
        found = solve_exponents(widths, widths[self.width])
        if isinstance(found, Miss):
            return found
        every = len(check_units(self, self.units, widths[self.width])) == widths[self.width].size
        return None if every else found.uniform

    def perturbation(self, graph: Graph, site: Site) -> SplitPerturbation | Miss:
        """Return the change of activations for all units of a width at once."""
        widths = infer_widths(graph)
        width = widths[site.label]
        region = region_of(widths, width)
        if isinstance(region, Miss):
            return region
        if region.matched is not None:
            return region.matched
        if not region.weights:
            return Miss("no trainable weight makes its units")
        weights = {w: graph.tensors[w] for w in region.weights}
        return SplitPerturbation(region, weights, {w: _mask(widths.axes[Value(w)], region) for w in region.weights})

    def change(self, width: Width, theta: Theta | None = None) -> Change:
        """Return the units after the split: the old ones, then the second children.

        Raises:
            PassError: a unit is out of range.
        """
        units = check_units(self, self.units, width)
        sign = tuple(int(u in set(units)) for u in range(width.size)) + (-1,) * len(units)
        source = (*range(width.size), *units)
        return Change(source, sign=sign, theta=theta) if theta else Change(source)

    def apply(self, graph: Graph, theta: Theta | None = None) -> Graph:
        """Return the graph with the units split.

        Raises:
            PassError: there is no such width or unit, or the function could not be kept.
        """
        return apply_alone(self, graph, theta)


def _mask(terms: tuple[Term, ...], region: Region) -> torch.Tensor | None:
    """Return ones where a weight belongs to some unit, None if it does everywhere; broadcastable to its shape."""
    for axis, term in enumerate(terms):
        owner = unit_index(term, region.width.atom)
        if (owner >= 0).any() and not (owner >= 0).all():
            shape = [-1 if d == axis else 1 for d in range(len(terms))]
            return (owner >= 0).reshape(shape)
    return None


@dataclass(frozen=True)
class SplitPerturbation:
    """`Δ(θ) = ½[h(w + θ) + h(w − θ)] − h(w)` on every end of the region, for all units at once.

    Attributes:
        region: the region of the width.
        theta: each weight that makes units; θ changes it.
        masks: for each weight, where it belongs to units of the width.
    """

    region: Region
    theta: Mapping[int, torch.Tensor]
    masks: Mapping[int, torch.Tensor | None]

    @property
    def members(self) -> int:
        """Number of units."""
        return self.region.width.size

    @property
    def edges(self) -> Mapping[Edge, Members]:
        """The ends of the region."""
        return self.region.members

    @property
    def needs(self) -> frozenset[Value]:
        """Values of the unchanged program that are read."""
        return self.replay.needs

    @cached_property
    def replay(self) -> Replay:
        """The region with other weights."""
        return Replay(self.region, self.theta)

    def initial_theta(self, values: Values, seed: int) -> Mapping[int, torch.Tensor]:
        """Return a tenth of the weights' standard deviation, at random."""
        generator = torch.Generator().manual_seed(seed)
        found: dict[int, torch.Tensor] = {}
        for w in self.region.weights:
            weight = values[Value(w)]
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype).to(weight.device)
            found[w] = noise * weight.std() * 0.1
        return found

    def delta(self, values: Values, theta: Mapping[int, torch.Tensor]) -> Mapping[Edge, torch.Tensor]:
        """Return Δ on every end."""
        masked: dict[int, torch.Tensor] = {}
        for w, change in theta.items():
            mask = self.masks[w]
            masked[w] = change if mask is None else change * mask.to(change)
        plus, minus = self.replay(values, masked, (1, -1))
        return {
            use: (plus[v] + minus[v]).mul_(0.5).sub_(values[v]) if v in plus else torch.zeros_like(values[v])
            for use, v in self.region.ends
        }
