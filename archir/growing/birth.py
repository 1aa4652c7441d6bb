"""Birth: what the weights of a network that was widened start as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch

from archir.axes.infer import infer_widths
from archir.axes.positions import gather_index, occurrences, unit_index
from archir.axes.terms import Atom, leaves
from archir.axes.widths import Width, Widths
from archir.ir.graph import Graph
from archir.ir.node import Node, Value
from archir.ir.seeds import derived_seed
from archir.ir.tensor_map import along
from archir.rewrite.changes import Change
from archir.rewrite.miss import Miss
from archir.rewrite.multiplicity import relate, solve_exponents
from archir.rewrite.reindex import plan_reindexing, reindex
from archir.rewrite.theta import noise_like

Birth = Literal["fresh", "split"]
"""How a wider network starts: drawn anew, or with copies of its units, so that it computes what it did."""


def born(graph: Graph, sizes: Mapping[str, int], birth: Birth, seed: int, *, by: str) -> Graph:
    """Return a graph with widths of larger sizes.

    Args:
        graph: the graph.
        sizes: the new size of each width that grows, by name.
        birth: `fresh` or `split`; see `redrawn` and `told_apart`.
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
    return (told_apart if birth == "split" else redrawn)(wide, widths, sizes, seed)


def redrawn(wide: Graph, widths: Widths, sizes: Mapping[str, int], seed: int) -> Graph:
    """Return a wider network whose trainable matrices and kernels are drawn anew, at the scale its author chose.

    A tensor W in which widths have grown is drawn from a normal distribution with the mean and the standard deviation
    that it had, where m is by how much a width along it has grown and e the exponent with which it stands there:

        mean = mean(W) Π m^-e        std = std(W) Π m^(-e/2)

    The fan-in of a weight has e = 1. Zeros stay zero where units come from copies of them, and tell nothing about the
    others; so layers that start at zero do so, and rows of padding. Biases that look like noise about zero are drawn
    like the weights that go with them; other vectors, and buffers, are those of the copies.

    Args:
        wide: the network with copies of units, undivided.
        widths: the widths of the network before.
        sizes: the new size of each width that has grown, by name.
        seed: of what is drawn.

    Source: ours; variance scaling after Glorot, Bengio 2010 and He et al. 2015.
    """
    factors, found = _fan_in(widths, sizes), dict[int, torch.Tensor]()
    for node in widths.graph.parameters:
        before, copied = widths.graph.tensors[node.id], wide.tensors[node.id]
        factor = factors.get(node.id) if copied.dim() > 1 else bias_factor(widths, node, before, factors)
        if node.is_trainable and (factor is not None or (copied.dim() > 1 and copied.shape != before.shape)):
            found[node.id] = drawn_like(before, copied, factor, derived_seed(seed, node.id))
    return wide.with_stored(found)


def redrawn_alike(graph: Graph, seed: int) -> Graph:
    """Return a network whose trainable matrices and kernels are drawn anew at the scale they have; as `redrawn`."""
    weights = {n.id: t for n in graph.parameters if n.is_trainable and (t := graph.tensors[n.id]).dim() > 1}
    return graph.with_stored({i: drawn_like(t, t, None, derived_seed(seed, i)) for i, t in weights.items()})


def drawn_like(before: torch.Tensor, copied: torch.Tensor, factor: torch.Tensor | None, seed: int) -> torch.Tensor:
    """Return a tensor drawn like another one, at some scale.

    Args:
        before: the other one.
        copied: what it becomes if units are copied; what is zero in it stays so.
        factor: `Π m^-e`, one if None; broadcastable to `copied`.
        seed: of what is drawn.
    """
    if not before.is_floating_point() or not bool(before.any()):
        return copied
    scale = torch.ones((), dtype=copied.dtype) if factor is None else factor.to(copied)
    drawn = before[before != 0].mean() * scale + _scale(before) * scale.sqrt() * _normal(copied, seed)
    return torch.where(copied == 0, copied, drawn)


def _fan_in(widths: Widths, sizes: Mapping[str, int]) -> dict[int, torch.Tensor]:
    """Return `Π m^-e` for the stored tensors in which a width has an exponent; broadcastable to their shape."""
    found: dict[int, torch.Tensor] = {}
    new = {widths[name].atom: n for name, n in sizes.items()}
    for name, size in sizes.items():
        width = widths[name]
        for node, axis, occurrence, exponent in exponents_in(widths, width):
            terms = widths.axes[Value(node)]
            owner = unit_index(terms[axis], width.atom, occurrence, new)
            here = along(axis, torch.where(owner >= 0, (width.size / size) ** exponent, 1.0), len(terms))
            found[node] = found.get(node, torch.ones(())) * here
    return found


def bias_factor(
    widths: Widths, node: Node, bias: torch.Tensor, factors: Mapping[int, torch.Tensor]
) -> torch.Tensor | None:
    """Return the mean factor of the weights that go with a bias, None if it does not look like noise about zero.

    A weight goes with it if a call takes both and they have an axis in common.

    Args:
        widths: the widths of the network.
        node: the node of the bias.
        bias: what it began as.
        factors: by node, by how much less the weights sum up.
    """
    graph = widths.graph
    if bias.dim() != 1 or not bias.is_floating_point() or len(set(bias.tolist())) < max(len(bias), 2):
        return None
    if bias.mean().abs() > 3 * bias.std() / len(bias) ** 0.5:
        return None
    own = leaves(widths.axes[Value(node.id)][0])
    near = {v.node: v for use in graph.uses(Value(node.id)) for v in graph.node(use.node).values}
    weights = [i for i in near if i in graph.tensors and graph.tensors[i].dim() > 1]
    with_it = [i for i in weights if any(leaves(term) == own for term in widths.axes[near[i]])]
    return torch.stack([factors.get(i, torch.ones(())).mean() for i in with_it]).mean() if with_it else None


def exponents_in(widths: Widths, width: Width) -> Iterator[tuple[int, int, int, int]]:
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


def told_apart(wide: Graph, widths: Widths, sizes: Mapping[str, int], seed: int) -> Graph:
    """Return a wider network that sees different sums of the same copies, so that these get different gradients.

    Where a weight W is summed over against the m copies k of unit i, and nothing else is done with it, it becomes

        W'[o, k] = W[o, i] / m + D[o, k]        Σ_k D[o, k] = 0

    which changes nothing in what is computed. D is normal, and as large as makes the standard deviation of W' that of
    a weight drawn anew, `std(W) m^-½`. Zeros stay zero.

    Args:
        wide: the network with copies of units, divided equally.
        widths: the widths of the network before.
        sizes: the new size of each width that has grown, by name.
        seed: of D.

    Source: Chen, Goodfellow, Shlens 2016 (Net2Net) for copies, Wang et al. 2023 (LEMON) for unequal shares; D is ours.
    """
    new = {widths[name].atom: n for name, n in sizes.items()}
    found: dict[int, torch.Tensor] = {}
    for (node, axis), atoms in _summed(widths, sizes).items():
        if node in found or not wide.node(node).is_trainable:
            continue
        sources = {atom: torch.arange(new[atom]) % atom.size for atom in atoms}
        unit = gather_index(widths.axes[Value(node)][axis], sources, {a: n for a, n in new.items() if a not in atoms})
        scale = _scale(widths.graph.tensors[node])
        found[node] = wide.tensors[node] + scale * _differences(
            wide.tensors[node], axis, unit, derived_seed(seed, node)
        )
    return wide.with_stored(found)


def _summed(widths: Widths, sizes: Mapping[str, int]) -> dict[tuple[int, int], list[Atom]]:
    """Return the widths that stored tensors are summed over, by node and axis, where that is all that is done."""
    found: dict[tuple[int, int], list[Atom]] = {}
    for name in sizes:
        width, ends = widths[name], relate(widths, widths[name]).ends
        solved = solve_exponents(widths, width)
        assert not isinstance(solved, Miss)  # or there could be no copies
        for place in width.places:
            value = Value(place.node)
            summed = all((use.node, value) in ends for use in widths.graph.uses(value))
            if summed and set(solved.of(value, place.axis)) == {1}:
                found.setdefault((place.node, place.axis), []).append(width.atom)
    return found


def _differences(weight: torch.Tensor, axis: int, unit: torch.Tensor, seed: int) -> torch.Tensor:
    """Return normal numbers with variance `1/m` that add up to zero over the m copies of each unit.

    Args:
        weight: what they will be added to; they are zero where it is.
        axis: the axis of the copies.
        unit: for each place along it what it is a copy of.
        seed: of the numbers.
    """
    copies = along(axis, unit.bincount()[unit], weight.dim()).to(weight)
    drawn = _normal(weight, seed) / copies.sqrt()
    shape = [int(unit.max()) + 1 if d == axis else n for d, n in enumerate(weight.shape)]
    unit = unit.to(weight.device)
    total = drawn.new_zeros(shape).index_add_(axis, unit, drawn).index_select(axis, unit)
    return (drawn - total / copies) * ((weight != 0) & (copies > 1))


def _scale(tensor: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation of what is not zero in a tensor; zero if everything is."""
    present = tensor[tensor != 0]
    return present.std(correction=0) if len(present) else tensor.new_zeros(())


def _normal(like: torch.Tensor, seed: int) -> torch.Tensor:
    """Return standard normal numbers in the shape of a tensor, drawn on the CPU."""
    return noise_like(like, torch.Generator().manual_seed(seed))
