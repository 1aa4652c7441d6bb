"""Applies passes to graphs: one after another, or a set of candidates at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from archir.axes.infer import infer_widths
from archir.errors import PassError
from archir.ir.graph import Graph
from archir.rewrite.derived import with_theta
from archir.rewrite.family import merged_changes
from archir.rewrite.morphism import Morphism, Pass, Theta, WidthMorphism
from archir.rewrite.reference import Later
from archir.rewrite.reindex import Reindexing, plan_reindexing, reindex
from archir.rewrite.spec import format_spec, format_specs

Members = Sequence[tuple[Morphism, Theta | None]]
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
            raise PassError(what, where=where, why=error.why, mend=error.mend) from error
        done.append(format_spec(pass_))
    return graph


@dataclass(frozen=True)
class Rewriting:
    """A set of candidates, applied together; made by `rewrite_together`.

    Attributes:
        before: the graph they were found in.
        spliced: that graph after all rewrites that are no changes of widths.
        others: these rewrites, in order.
        plan: the changes of widths, as one reindexing of it; None if there are none.
        graph: the result.
    """

    before: Graph
    spliced: Graph
    others: tuple[Morphism, ...]
    plan: Reindexing | None
    graph: Graph

    def carry(self, tensors: Mapping[int, torch.Tensor], power: int = 1) -> dict[int, torch.Tensor]:
        """Return what an optimiser has gathered of the gradients as it is in the result.

        Copies of units hold what they would have gathered (see `Reindexing.gradient`); what is new holds nought; what
        is gone is left out. Nought is also where a rewrite changes a tensor by rules that ask for numbers only the
        weights have.

        Args:
            tensors: by parameter node, shaped like what is stored.
            power: of the gradients in them: 1 for momentum, 2 for second moments.
        """
        try:
            carried = _carry(self.before, self.spliced, self.others, tensors)
        except PassError:
            old, new = self.before.tensors, self.spliced.tensors
            carried = {i: t if new[i] is old[i] else torch.zeros_like(new[i]) for i, t in tensors.items() if i in new}
        if self.plan is None:
            return carried
        return {i: self.plan.gradient(i, t, power) for i, t in carried.items()}


def rewrite_together(graph: Graph, members: Members) -> Rewriting:
    """Apply a set of candidates that all were found in the same graph.

    Splices come first, one after another; changes of widths are then carried out as one reindexing, so that units keep
    the numbers they were scored under, and what was spliced in changes with the widths it stands in.

    Args:
        graph: the graph they were found in.
        members: each candidate with its θ.

    Raises:
        PassError: they cannot be done together.
    """
    others = [(m, theta) for m, theta in members if not isinstance(m, WidthMorphism)]
    on_widths = [(m, theta) for m, theta in members if isinstance(m, WidthMorphism)]
    spliced = graph
    applied: list[Morphism] = []
    for morphism, theta in others:
        moved = morphism.followed(Later(graph, spliced)) if applied else morphism
        after = moved.apply(spliced)
        spliced = with_theta(spliced, after, theta) if theta else after
        applied.append(moved)
    if not on_widths:
        return Rewriting(graph, spliced, tuple(applied), None, spliced)
    named = _carried(graph, spliced, applied, on_widths) if applied else on_widths
    plan = plan_reindexing(infer_widths(spliced), merged_changes(spliced, named))
    result = reindex(plan, by=format_specs([m for m, _ in named]))
    return Rewriting(graph, spliced, tuple(applied), plan, result)


def apply_together(graph: Graph, members: Members) -> Graph:
    """Return the graph with a set of candidates applied, as `rewrite_together` does.

    Raises:
        PassError: they cannot be done together.
    """
    return rewrite_together(graph, members).graph if members else graph


def _carry(
    before: Graph, spliced: Graph, others: Sequence[Morphism], tensors: Mapping[int, torch.Tensor]
) -> dict[int, torch.Tensor]:
    """Return tensors shaped like stored ones after some rewrites, which are done on them where they change any."""
    kept = {i: t for i, t in tensors.items() if i in spliced or i < 0}
    if all(i < 0 or spliced.tensors[i] is before.tensors[i] for i in kept):
        return kept
    named = {n.parameter.names[0]: kept[i] for i in kept if i >= 0 and (n := before.node(i)).parameter}
    graph = before.with_tensors(named)
    for morphism in others:
        graph = morphism.apply(graph)
    return {i: t if i < 0 else graph.tensors[i] for i, t in kept.items()}


def _carry_theta(before: Graph, spliced: Graph, others: Sequence[Morphism], theta: Theta) -> dict[int, torch.Tensor]:
    """Return θ of a change of widths after some rewrites; that of fresh units has another size than what is stored."""
    stored = {i: t for i, t in theta.items() if i < 0 or t.shape == before.tensors[i].shape}
    fresh = {i: t for i, t in theta.items() if i not in stored and i in spliced}
    carried = {i: _carry_fresh(before, spliced, others, i, t) for i, t in fresh.items()}
    return {**_carry(before, spliced, others, stored), **carried}


def _carry_fresh(
    before: Graph, spliced: Graph, others: Sequence[Morphism], node: int, tensor: torch.Tensor
) -> torch.Tensor:
    """Return what fresh units hold after some rewrites: they are put into the place of old units for a while."""
    full = before.tensors[node]
    if spliced.tensors[node] is full:
        return tensor
    for axis, (size, room) in enumerate(zip(tensor.shape, full.shape, strict=True)):
        if size > room:
            parts = [_carry_fresh(before, spliced, others, node, t) for t in torch.split(tensor, room, axis)]
            return torch.cat(parts, axis)
    placed = torch.zeros_like(full)
    placed[tuple(map(slice, tensor.shape))] = tensor
    carried = _carry(before, spliced, others, {node: placed})[node]
    sizes = zip(tensor.shape, full.shape, strict=True)
    return carried[tuple(slice(size if size < room else None) for size, room in sizes)]


def _carried(
    before: Graph,
    spliced: Graph,
    others: Sequence[Morphism],
    members: Sequence[tuple[WidthMorphism, Theta | None]],
) -> list[tuple[WidthMorphism, Theta | None]]:
    """Return changes of widths as they are after some rewrites.

    Raises:
        PassError: a width is gone, may no longer change, or two of them have become one.
    """
    later = Later(before, spliced)
    shared: dict[frozenset[tuple[int, int]], Theta] = {}  # members of a family go on sharing θ
    found: list[tuple[WidthMorphism, Theta | None]] = []
    for morphism, theta in members:
        key = frozenset((i, id(t)) for i, t in (theta or {}).items())
        if theta and key not in shared:
            shared[key] = _carry_theta(before, spliced, others, theta)
        found.append((morphism.followed(later), theta and shared[key]))
    names = {(old.width, new.width) for (old, _), (new, _) in zip(members, found, strict=True)}
    if len({new for _, new in names}) < len(names):
        raise PassError("two widths have become one by another rewrite of the set")
    return found
