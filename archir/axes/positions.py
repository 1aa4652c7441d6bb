"""Index maps of axis terms: which positions along an axis belong to which units of an atom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType

import torch

from archir.axes.terms import Atom, Product, Sum, Term, leaves


def size_of(term: Term, sizes: Mapping[Atom, int]) -> int:
    """Return the size of a resolved term where some atoms have new sizes."""
    if isinstance(term, Atom):
        return sizes.get(term, term.size)
    parts = [size_of(p, sizes) for p in term.parts]
    return math.prod(parts) if isinstance(term, Product) else sum(parts)


def run_time_sizes(
    terms: Sequence[Term],
    shape: Sequence[int],
    run_time: Set[Atom],
    known: Mapping[Atom, int] = MappingProxyType({}),
    *,
    last: bool = False,
) -> dict[Atom, int]:
    """Return the sizes of atoms known at run time only, as the shape of a tensor tells them.

    Where it tells no more than the product of several, the first of them is taken to be all of it, or the last.

    Args:
        terms: the resolved terms of all axes of the tensor.
        shape: its shape.
        run_time: the atoms whose sizes are known at run time only.
        known: the sizes of some of them.
        last: which one is all of a product.
    """
    found = dict(known)
    axes = [(term, size) for term, size in zip(terms, shape, strict=True) if not run_time.isdisjoint(leaves(term))]
    while axes:
        waiting = [(term, size, _unknown(term, run_time, found)) for term, size in axes]
        waiting = [entry for entry in waiting if entry[2]]
        if not waiting:
            break
        term, size, atoms = min(waiting, key=lambda entry: len(entry[2]))
        whole = atoms[-1] if last else atoms[0]
        found |= dict.fromkeys(atoms, 1)
        none = size_of(term, {**found, whole: 0})
        each = size_of(term, found) - none
        found[whole] = (size - none) // each if each else size
    return found


def _unknown(term: Term, run_time: Set[Atom], known: Mapping[Atom, int]) -> list[Atom]:
    return [atom for atom in dict.fromkeys(leaves(term)) if atom in run_time and atom not in known]


def contains(term: Term, atom: Atom) -> bool:
    """Say whether an atom occurs in a resolved term."""
    return term is atom if isinstance(term, Atom) else any(contains(p, atom) for p in term.parts)


def occurrences(term: Term, atom: Atom) -> int:
    """Return how often an atom occurs in a resolved term."""
    return int(term is atom) if isinstance(term, Atom) else sum(occurrences(p, atom) for p in term.parts)


def mixes(term: Term, atom: Atom) -> bool:
    """Say whether a resolved term concatenates the units of an atom with others."""
    if isinstance(term, Atom):
        return False
    present = [contains(p, atom) for p in term.parts]
    if isinstance(term, Sum) and any(present) and not all(present):
        return True
    return any(mixes(p, atom) for p in term.parts)


def gather_index(term: Term, sources: Mapping[Atom, torch.Tensor], sizes: Mapping[Atom, int]) -> torch.Tensor:
    """Return the old position each new position along an axis is filled from.

    Args:
        term: the resolved term of the axis.
        sources: for each atom that changes, the old unit each new unit repeats, or -1 for a fresh one.
        sizes: the present sizes of atoms, where they differ from those in the term.

    Returns:
        Old positions, -1 where any unit involved is fresh; `[new size of the axis]`.
    """
    if isinstance(term, Atom):
        return sources[term] if term in sources else torch.arange(sizes.get(term, term.size))
    indices = [gather_index(p, sources, sizes) for p in term.parts]
    extents = [size_of(p, sizes) for p in term.parts]
    if isinstance(term, Sum):
        offsets = torch.tensor([0, *extents]).cumsum(0)
        return torch.cat([torch.where(i < 0, i, i + o) for i, o in zip(indices, offsets, strict=False)])
    result = indices[0]
    for extent, index in zip(extents[1:], indices[1:], strict=True):
        outer, inner = result[:, None], index[None, :]
        result = torch.where((outer < 0) | (inner < 0), -1, outer * extent + inner).flatten()
    return result


def unit_index(
    term: Term, atom: Atom, occurrence: int | None = None, sizes: Mapping[Atom, int] = MappingProxyType({})
) -> torch.Tensor:
    """Return the unit of an atom that each position along an axis belongs to, -1 for none.

    Args:
        term: the resolved term of the axis.
        atom: the atom.
        occurrence: which occurrence to look at, in row-major order; any of them if not given
            (the last one wins where a position belongs to two).
        sizes: the present sizes of atoms, where they differ from those in the term.

    Returns:
        Unit numbers, `[size of the axis]`.
    """
    return _unit_index(term, atom, occurrence, sizes, 0)[0]


def _unit_index(
    term: Term, atom: Atom, wanted: int | None, sizes: Mapping[Atom, int], seen: int
) -> tuple[torch.Tensor, int]:
    if isinstance(term, Atom):
        count = sizes.get(term, term.size)
        if term is not atom:
            return torch.full((count,), -1), seen
        found = torch.arange(count) if wanted in (None, seen) else torch.full((count,), -1)
        return found, seen + 1
    parts: list[torch.Tensor] = []
    for part in term.parts:
        index, seen = _unit_index(part, atom, wanted, sizes, seen)
        parts.append(index)
    if isinstance(term, Sum):
        return torch.cat(parts), seen
    result = parts[0]
    for index in parts[1:]:
        outer = result[:, None].expand(-1, len(index))
        inner = index[None, :].expand(len(result), -1)
        result = torch.where(inner >= 0, inner, outer).flatten()
    return result, seen


def positions(
    term: Term, atom: Atom, units: torch.Tensor, sizes: Mapping[Atom, int] = MappingProxyType({})
) -> torch.Tensor:
    """Return the positions along an axis that belong to any of some units, in order; `[positions]`."""
    hit = torch.zeros(size_of(term, sizes), dtype=torch.bool)
    for occurrence in range(occurrences(term, atom)):
        index = unit_index(term, atom, occurrence, sizes)
        hit |= torch.isin(index, units) & (index >= 0)
    return hit.nonzero()[:, 0]
