"""Why a rewrite does not apply."""

from __future__ import annotations

from dataclasses import dataclass

from archir.errors import PassError
from archir.ir.graph import Graph


@dataclass(frozen=True)
class Miss:
    """A rewrite that does not apply.

    Attributes:
        reason: why, for a person.
        nodes: ids of the nodes that stand in the way.
    """

    reason: str
    nodes: tuple[int, ...] = ()


def missed(graph: Graph, what: str, miss: Miss) -> PassError:
    """Return the error that says why a rewrite does not apply."""
    lines = [f"{n.op} {n.location or ''}".strip() for n in (graph.node(i) for i in miss.nodes if i in graph)]
    return PassError(what, where="; ".join(lines), why=miss.reason)
