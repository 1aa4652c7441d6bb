"""The text form of a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archir.ir.graph import Graph


def print_graph(graph: Graph) -> str:
    """Return the text form of a graph."""
    return "\n".join(f"%{n.id} = {n.op}{dict(n.arguments)} : {', '.join(map(str, n.results))}" for n in graph.nodes)
