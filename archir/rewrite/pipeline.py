"""Applies passes to graphs: one after another, or a set of candidates at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from archir.axes.infer import infer_widths
from archir.axes.widths import Widths
from archir.errors import PassError
from archir.ir.graph import Graph, Patch
from archir.ir.patch import no_patch
from archir.ir.tensor_map import TensorMap
from archir.rewrite.changes import Change, merge
from archir.rewrite.derived import with_theta
from archir.rewrite.morphism import Morphism, WidthMorphism
from archir.rewrite.passes import Pass
from archir.rewrite.reference import Later
from archir.rewrite.reindex import plan_reindexing, reindex
from archir.rewrite.spec import format_spec, format_specs
from archir.rewrite.theta import Added, Key, Theta

Rewrites = Sequence[tuple[Morphism, Theta | None]]
"""A set of candidates of one graph, each with its θ."""


def apply_passes(graph: Graph, passes: Iterable[Pass]) -> Graph:
    """Apply passes one after another; every result is verified.

    Raises:
        PassError: one of them does not apply; the error names it and those before it.
    """
    done: list[str] = []
    for pass_ in passes:
        try:
            graph = pass_.apply(graph)
        except PassError as error:
            where = "; ".join(filter(None, [error.where, f"after {'; '.join(done)}" if done else ""]))
            what = f"{format_spec(pass_)}: {error.what}"
            raise PassError(what, where=where, why=error.why, hint=error.hint) from error
        done.append(format_spec(pass_))
    return graph


def rewrite_together(graph: Graph, members: Rewrites) -> Patch:
    """Return what a set of candidates that all were found in the same graph changes.

    Splices come first, one after another; changes of widths are then carried out as one reindexing, so that units keep
    the numbers they were scored under, and what was spliced in changes with the widths it stands in.

    Args:
        graph: the graph they were found in.
        members: each candidate with its θ.

    Raises:
        PassError: they cannot be done together.
    """
    on_widths = [(m, theta) for m, theta in members if isinstance(m, WidthMorphism)]
    spliced = no_patch(graph)
    for morphism, theta in members:
        if not isinstance(morphism, WidthMorphism):
            moved = morphism.followed(Later(graph, spliced.after)) if spliced.after is not graph else morphism
            patch = moved.patch(spliced.after)
            spliced = spliced.then(with_theta(patch, theta) if theta else patch)
    if not on_widths:
        return spliced
    named, widths = follow_widths(spliced, on_widths), infer_widths(spliced.after)
    plan = plan_reindexing(widths, merged_changes(widths, named))
    return spliced.then(reindex(plan, by=format_specs([m for m, _ in named])))


def apply_together(graph: Graph, members: Rewrites) -> Graph:
    """Return the graph with a set of candidates applied, as `rewrite_together` does.

    Raises:
        PassError: they cannot be done together.
    """
    return rewrite_together(graph, members).after if members else graph


def merged_changes(widths: Widths, members: Sequence[tuple[WidthMorphism, Theta | None]]) -> Mapping[str, Change]:
    """Return one change for each width that some members of a set act on.

    Raises:
        PassError: there is no such width or unit, or two changes contradict each other.
    """
    by_width: dict[str, list[Change]] = {}
    for morphism, theta in members:
        for name, change in morphism.changes(widths, theta).items():
            by_width.setdefault(name, []).append(change)
    return {name: merge(widths[name], changes) for name, changes in by_width.items()}


def follow_widths(
    spliced: Patch, members: Sequence[tuple[WidthMorphism, Theta | None]]
) -> Sequence[tuple[WidthMorphism, Theta | None]]:
    """Return changes of widths as they are after other rewrites.

    Raises:
        PassError: a width is gone, may no longer change, or two of them have become one; or another rewrite changes
            the units of one for which θ was found.
    """
    if spliced.after is spliced.before:
        return members
    before, later = spliced.before, Later(spliced.before, spliced.after)
    shared: dict[frozenset[tuple[Key, int]], Theta] = {}  # members of a family go on sharing θ
    names: set[tuple[str, str]] = set()
    found: list[tuple[WidthMorphism, Theta | None]] = []
    widths, then = infer_widths(before), infer_widths(spliced.after)
    for morphism, theta in members:
        key = frozenset((i, id(t)) for i, t in (theta or {}).items())
        if theta and key not in shared:
            shared[key] = {i: _carry(spliced, i, t) for i, t in theta.items() if _is_there(spliced, i)}
        moved = morphism.followed(later)
        names |= set(zip(morphism.changes(widths), moved.changes(then), strict=True))
        found.append((moved, theta and shared[key]))
    if len({new for _, new in names}) < len(names):
        raise PassError("two widths have become one by another rewrite of the set")
    return found


def check_whole(widths: Widths, morphism: WidthMorphism, then: Widths, moved: WidthMorphism) -> None:
    """Check that what gives a width fresh units still does so where they are summed up, after some other rewrites.

    Args:
        widths: the widths before these.
        morphism: the change of widths.
        then: the widths after them.
        moved: the change as it is then.

    Raises:
        PassError: one of them has come between, so that fresh units would not be seen any more.
    """
    now = moved.changes(then)
    for (name, change), new in zip(morphism.changes(widths).items(), now, strict=True):
        held, left = ({(p.node, p.axis) for p in of.places} for of in (widths[name], then[new]))
        if change.fresh and any(node in then.graph for node, _ in held - left):
            raise PassError(f"another rewrite of the set divides width {name}, which is given fresh units")


def _carry(spliced: Patch, key: Key, change: torch.Tensor) -> torch.Tensor:
    """Return a part of θ, shaped like a stored tensor but for an axis of fresh units, as it is after some rewrites.

    Raises:
        PassError: they change that axis.
    """
    if isinstance(key, Added):
        return change
    by, old = spliced.maps.get(key, TensorMap()), spliced.before.tensors[key]
    if by is None or any(change.shape[a.axis] != old.shape[a.axis] for a in by.axes):
        raise PassError("what was learned for a width does not fit after another rewrite of the set")
    return by.change(change)


def _is_there(spliced: Patch, key: Key) -> bool:
    return isinstance(key, Added) or key in spliced.after
