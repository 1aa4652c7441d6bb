"""Makes the fx graph of an exported program plain: no dead code."""

from __future__ import annotations

from torch import fx


def remove_dead(graph: fx.Graph) -> None:
    """Remove the calls whose results nothing uses, assertions included."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)
