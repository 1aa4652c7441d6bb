"""Remove block: a block whose result has the type of its input is replaced by its input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from archir.ir.edit import Edit
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.rewrite.block import Block, find_block, find_blocks
from archir.rewrite.equations import Miss
from archir.rewrite.identity import find_identity, is_residual
from archir.rewrite.morphism import Morphism, Site
from archir.rewrite.reindex import missed
from archir.rewrite.spec import format_spec
from passes.sweep import Sweep


@dataclass(frozen=True)
class RemoveBlock(Morphism):
    """Let the users of a block use its input, and remove the block.

    Candidates are blocks with residual connections; it applies to any module whose result has the type of
    what it is given. There is nothing to learn.

    Attributes:
        block: path of the module.

    Source: Huang et al. 2016 (stochastic depth) for blocks that can be done without.
    """

    name: ClassVar[str] = "remove-block"
    summary: ClassVar[str] = "replace a block by its input"
    preserves: ClassVar[str] = "all but the removed block"

    block: str = ""

    def sites(self, graph: Graph) -> Iterator[Site]:
        """Yield a family of one candidate for each block with residual connections."""
        for block in find_blocks(graph):
            if is_residual(graph, block) and not isinstance(_plan(graph, block), Miss):
                yield Site(block.path, (RemoveBlock(block.path),))

    def match(self, graph: Graph) -> Miss | None:
        """Say why the block cannot be replaced by its input, or None if it can."""
        plan = _plan(graph, find_block(graph, self.block))
        return plan if isinstance(plan, Miss) else None

    def apply(self, graph: Graph) -> Graph:
        """Return the graph without the block, and without what only the block needed.

        Raises:
            PassError: there is no such block, or which of its inputs takes its place cannot be told.
        """
        plan = _plan(graph, find_block(graph, self.block))
        if isinstance(plan, Miss):
            raise missed(graph, f"{format_spec(self)} does not apply", plan)
        with graph.edit(by=format_spec(self)) as edit:
            _remove(graph, edit, *plan)
        return edit.graph


def _plan(graph: Graph, block: Block | Miss) -> tuple[Block, Value] | Miss:
    """Return the block and the input that takes its place."""
    if isinstance(block, Miss):
        return block
    if len(block.given) == 1:
        return block, block.given[0]
    for source in block.given:
        if not isinstance(find_identity(graph, block, source), Miss):
            return block, source
    return Miss("it is given several values of the type of its result", tuple(v.node for v in block.given))


def _remove(graph: Graph, edit: Edit, block: Block, source: Value) -> None:
    inside = {n.id for n in block.calls}
    edit.replace_uses(block.out, source, [u for u in graph.uses(block.out) if u.node not in inside])
    walk = Sweep(graph, edit)
    for node in reversed(block.calls):
        walk.drop(node.id)
    for id_ in block.stored:
        stored = walk.find(id_)
        if stored is None or stored.parameter is None:
            continue
        names = tuple(name for name in stored.parameter.names if not block.holds(name))
        if names:
            edit.update(id_, parameter=replace(stored.parameter, names=names))
        else:
            walk.drop(id_)
