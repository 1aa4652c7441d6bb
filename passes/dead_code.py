"""DeadCode: calls and stored tensors that nothing needs go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from archir.ir.graph import Graph, Patch
from archir.ir.node import INPUT
from archir.ir.patch import no_patch
from archir.rewrite.passes import Pass
from archir.rewrite.spec import format_spec
from passes.sweep import counters, statistics_of


@dataclass(frozen=True)
class DeadCode(Pass):
    """Remove calls whose results nothing needs, and stored tensors that no call uses.

    Inputs stay, and so does what is called for its effect: calls without results, and normalisation that shares its
    running statistics with a call that is needed. Training is the same afterwards, random numbers aside.

    Source: the standard optimisation of compilers.
    """

    name: ClassVar[str] = "dead-code"
    summary: ClassVar[str] = "remove calls and stored tensors that nothing needs"
    preserves: ClassVar[str] = "the function, in training too"

    def patch(self, graph: Graph) -> Patch:
        """Return a patch without dead code; an empty one if there is none."""
        needed = _needed(graph)
        dead = [node for node in reversed(graph.nodes) if node.id not in needed and node.op != INPUT]
        if not dead:
            return no_patch(graph)
        with graph.edit(by=format_spec(self)) as edit:
            for node in dead:
                edit.remove(node.id)
        return edit.patch


def _needed(graph: Graph) -> set[int]:
    waiting = [graph.output.id]
    normalisations = [n for n in graph.calls if statistics_of(n)]
    counted = counters(graph)
    needed: set[int] = set()
    while waiting:
        id_ = waiting.pop()
        if id_ in needed:
            continue
        needed.add(id_)
        waiting += [value.node for value in graph.node(id_).values]
        if id_ in counted:
            waiting.append(counted[id_])
        if not waiting:
            waiting += [n.id for n in normalisations if n.id not in needed and statistics_of(n) & needed]
    return needed
