"""Remove block: a block whose result has the type of its input is replaced by its input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from archir.ir.edit import Edit
from archir.ir.graph import Graph, Patch
from archir.ir.node import Value
from archir.rewrite.block import Block, find_block, find_blocks, find_inserted
from archir.rewrite.identity import find_identity, is_gated, is_residual
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.spec import format_spec
from passes.sweep import Sweep


@dataclass(frozen=True)
class Removal:
    """A block, and the value it is given that takes the place of its result."""

    block: Block
    source: Value


@dataclass(frozen=True)
class RemoveBlock(Morphism[Removal]):
    """Let the users of a block use its input, and remove the block.

    Candidates are blocks with residual connections, gates, and what other passes have inserted; it applies to any
    module whose result has the type of what it is given. A gate is then one, a branch zero. There is nothing to learn.

    Attributes:
        block: path of the module.

    Source: Huang et al. 2016 (stochastic depth) for blocks that can be done without.
    """

    name: ClassVar[str] = "remove-block"
    summary: ClassVar[str] = "replace a block by its input"
    preserves: ClassVar[str] = "all but the removed block"

    block: str = ""

    def candidates(self, graph: Graph) -> Iterator[Self]:
        """Yield one for each block with residual connections, each gate, and each module that was inserted."""
        inserted = find_inserted(graph)
        for block in find_blocks(graph):
            own = replace(block, calls=tuple(n for n in block.calls if not n.born))
            if block.path in inserted or is_residual(graph, own) or is_gated(graph, own):
                yield replace(self, block=block.path)

    def match(self, graph: Graph) -> Removal | Miss:
        """Return the block and what takes its place, or why that cannot be told."""
        block = find_block(graph, self.block)
        return block if isinstance(block, Miss) else _plan(graph, block)

    def rewrite(self, graph: Graph, found: Removal) -> Patch:
        """Remove the block, and what only the block needed."""
        with graph.edit(by=format_spec(self)) as edit:
            _remove(graph, edit, found.block, found.source)
        return edit.patch


def _plan(graph: Graph, block: Block) -> Removal | Miss:
    if len(block.given) == 1:
        return Removal(block, block.given[0])
    for source in block.given:
        if not isinstance(find_identity(graph, block, source), Miss):
            return Removal(block, source)
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
