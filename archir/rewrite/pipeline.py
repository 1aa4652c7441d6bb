"""Applies passes to graphs: one after another, or a set of candidates at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from archir.axes.infer import infer_widths
from archir.errors import PassError
from archir.ir.graph import Graph
from archir.rewrite.family import merged_changes
from archir.rewrite.morphism import Morphism, Pass, Theta, WidthMorphism
from archir.rewrite.reindex import Reindexing, plan_reindexing, reindex
from archir.rewrite.spec import format_spec, format_specs


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


def plan_set(graph: Graph, members: Sequence[tuple[Morphism, Theta | None]]) -> Reindexing:
    """Return the one reindexing that all width morphisms of a set of candidates amount to.

    Raises:
        PassError: they cannot be done together.
    """
    on_widths = [(m, theta) for m, theta in members if isinstance(m, WidthMorphism)]
    return plan_reindexing(infer_widths(graph), merged_changes(graph, on_widths))


def apply_together(graph: Graph, members: Sequence[tuple[Morphism, Theta | None]]) -> Graph:
    """Apply a set of candidates that all were found in the same graph.

    Changes of widths are carried out as one reindexing, so that units keep the numbers they were scored under.

    Args:
        graph: the graph they were found in.
        members: each candidate with its θ.

    Raises:
        PassError: they cannot be done together.
    """
    if not members:
        return graph
    on_widths = [m for m in members if isinstance(m[0], WidthMorphism)]
    others = [m for m in members if not isinstance(m[0], WidthMorphism)]
    result = graph
    for morphism, theta in others:
        result = morphism.apply(result, theta)
    if on_widths:
        plan = plan_set(result, on_widths)
        result = reindex(plan, by=format_specs([m for m, _ in on_widths]))
    return result
