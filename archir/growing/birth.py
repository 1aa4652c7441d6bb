"""Birth: what the weights of a network that was widened start as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch

from archir.axes.infer import infer_widths
from archir.axes.positions import contains, gather_index, occurrences, unit_index
from archir.axes.terms import Atom
from archir.axes.widths import Width, Widths
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.ir.seeds import derived_seed
from archir.ir.tensor_map import along
from archir.rewrite.changes import Change
from archir.rewrite.miss import Miss
from archir.rewrite.multiplicity import relate, solve_exponents
from archir.rewrite.reindex import plan_reindexing, reindex

Birth = Literal["fresh", "split"]
"""How a wider network starts: drawn anew, or with copies of its units, so that it computes what it did."""

UNEVEN = 0.5
"""How uneven the shares of copies are: each is drawn between 1 - `UNEVEN` and 1 + `UNEVEN` before they are normalised."""


def born(graph: Graph, sizes: Mapping[str, int], birth: Birth, seed: int, *, by: str) -> Graph:
    """Return a graph with widths of larger sizes.

    Args:
        graph: the graph.
        sizes: the new size of each width that grows, by name.
        birth: `fresh` or `split`; see `redrawn` and `shared_out`.
        seed: of everything random.
        by: how it came about, for the history.

    Raises:
        PassError: there is no such width, a network born `split` could not keep its function so, or there is no room.
    """
    if not sizes:
        return graph
    widths = infer_widths(graph)
    changes = {name: Change(tuple(unit % widths[name].size for unit in range(n))) for name, n in sizes.items()}
    wide = reindex(plan_reindexing(widths, changes, keep=birth == "split"), by=by).after
    return (shared_out if birth == "split" else redrawn)(wide, widths, sizes, seed)


def redrawn(wide: Graph, widths: Widths, sizes: Mapping[str, int], seed: int) -> Graph:
    """Return a wider network whose trainable matrices and kernels are drawn anew, at the scale its author chose.

    A tensor W in which widths have grown is drawn from a normal distribution with the mean and the standard deviation
    that it had, where m is by how much a width along it has grown and e the exponent with which it stands there:

        mean = mean(W) Π m^-e        std = std(W) Π m^(-e/2)

    The fan-in of a weight has e = 1. Zeros stay zero where units come from copies of them, and tell nothing about the
    others; so layers that start at zero do so, and rows of padding. Vectors and buffers are those of the copies.

    Args:
        wide: the network with copies of units, undivided.
        widths: the widths of the network before.
        sizes: the new size of each width that has grown, by name.
        seed: of what is drawn.

    Source: ours; variance scaling after Glorot, Bengio 2010 and He et al. 2015.
    """
    old, found = widths.graph, dict[int, torch.Tensor]()
    factors = _fan_in(widths, sizes)
    for node in old.parameters:
        before, copied = old.tensors[node.id], wide.tensors[node.id]
        if copied.dim() < 2 or copied.shape == before.shape or not node.is_trainable:
            continue
        present = before[before != 0]
        if not before.is_floating_point() or not len(present):
            continue
        factor = factors.get(node.id, torch.ones(())).to(copied)
        generator = torch.Generator().manual_seed(derived_seed(seed, node.id))
        noise = torch.randn(copied.shape, generator=generator, dtype=copied.dtype).to(copied.device)
        drawn = present.mean() * factor + present.std(correction=0) * noise * factor.sqrt()
        found[node.id] = torch.where(copied == 0, copied, drawn)
    return wide.with_stored(found)


def _fan_in(widths: Widths, sizes: Mapping[str, int]) -> dict[int, torch.Tensor]:
    """Return `Π m^-e` for the places of the stored tensors that stand with an exponent; broadcastable to their shape."""
    found: dict[int, torch.Tensor] = {}
    new = {widths[name].atom: n for name, n in sizes.items()}
    for name, size in sizes.items():
        width = widths[name]
        for node, axis, occurrence, exponent in _exponents(widths, width):
            terms = widths.axes[Value(node)]
            owner = unit_index(terms[axis], width.atom, occurrence, new)
            here = along(axis, torch.where(owner >= 0, (width.size / size) ** exponent, 1.0), len(terms))
            found[node] = found.get(node, torch.ones(())) * here
    return found


def _exponents(widths: Widths, width: Width) -> Iterator[tuple[int, int, int, int]]:
    """Yield node, axis, occurrence and exponent of the places of a width in stored tensors.

    Where units cannot be repeated, the exponent is one if all that is done with a tensor is to sum over the width.
    """
    solved = solve_exponents(widths, width)
    ends = relate(widths, width).ends
    for place in width.places:
        value = Value(place.node)
        if isinstance(solved, Miss):
            summed = all((use.node, value) in ends for use in widths.graph.uses(value))
            exponents = [int(summed)] * occurrences(place.term, width.atom)
        else:
            exponents = solved.of(value, place.axis)
        yield from ((place.node, place.axis, i, e) for i, e in enumerate(exponents) if e)


def shared_out(wide: Graph, widths: Widths, sizes: Mapping[str, int], seed: int) -> Graph:
    """Return a wider network whose copies go out with unequal shares, so that they get different gradients.

    With k the copies of unit i and s their shares, drawn anew for each consumer o,

        W'[o, k] = s[o, k] W[o, i]        Σ_k s[o, k] = 1

    which changes nothing in what is computed. So it is done where a weight is summed over against copies and nothing
    else is done with it; other weights keep equal shares.

    Args:
        wide: the network with copies of units, divided equally.
        widths: the widths of the network before.
        sizes: the new size of each width that has grown, by name.
        seed: of the shares.

    Source: Chen, Goodfellow, Shlens 2016 (Net2Net) for copies, Wang et al. 2023 (LEMON) for unequal shares; widths of
        any wiring are ours.
    """
    new = {widths[name].atom: n for name, n in sizes.items()}
    summed: dict[tuple[int, int], dict[Atom, int]] = {}
    for name in sizes:
        width, ends = widths[name], relate(widths, widths[name]).ends
        solved = solve_exponents(widths, width)
        assert not isinstance(solved, Miss)  # or copies could not have been divided
        for place in width.places:
            uses = widths.graph.uses(Value(place.node))
            exponents = solved.of(Value(place.node), place.axis)
            if set(exponents) == {1} and all((use.node, Value(place.node)) in ends for use in uses):
                summed.setdefault((place.node, place.axis), {})[width.atom] = width.size
    found: dict[int, torch.Tensor] = {}
    for (node, axis), atoms in summed.items():
        if node not in found and wide.node(node).is_trainable:
            term, weight = widths.axes[Value(node)][axis], wide.tensors[node]
            sources = {atom: torch.arange(new[atom]) % size for atom, size in atoms.items()}
            unit = gather_index(term, sources, {a: n for a, n in new.items() if a not in atoms})
            found[node] = weight * _shares(weight, axis, unit, derived_seed(seed, node)).to(weight)
    return wide.with_stored(found)


def _shares(like: torch.Tensor, axis: int, unit: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the share of each copy relative to an equal one, in double precision; shaped like a tensor.

    Args:
        like: the tensor.
        axis: the axis of the copies.
        unit: for each place along it what it is a copy of.
        seed: of the shares.
    """
    drawn = torch.rand(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn = 1 - UNEVEN + 2 * UNEVEN * drawn
    shape = [int(unit.max()) + 1 if d == axis else n for d, n in enumerate(like.shape)]
    total = drawn.new_zeros(shape).index_add_(axis, unit, drawn).index_select(axis, unit)
    copies = along(axis, unit.bincount()[unit], like.dim())
    return torch.where(copies == 1, 1.0, drawn * copies / total)
