"""Duplicate block: a copy of a residual block after it, the last layer of each of its branches zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from archir.ir.edit import Edit
from archir.ir.graph import Graph, Patch
from archir.ir.node import Value
from archir.rewrite.block import Block, copy_block, find_block, find_blocks
from archir.rewrite.derived import derive_perturbation
from archir.rewrite.identity import find_identity
from archir.rewrite.insertion import splice
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism, Site
from archir.rewrite.perturbation import Perturbation
from archir.rewrite.spec import format_spec


@dataclass(frozen=True)
class Copy:
    """How a block is copied so that the copy is the identity.

    Attributes:
        block: the block.
        source: what the copy is given the result of the block in place of.
        zeros: the stored tensors that are zero in the copy.
    """

    block: Block
    source: Value
    zeros: frozenset[int]


@dataclass(frozen=True)
class DuplicateBlock(Morphism[Copy]):
    """Insert a copy of a block after it: the same layers and weights, the last layer of each residual branch zero.

    The block is a module that maps a value to one of the same type through residual connections. The copy goes
    beside it, under the next free number where it is numbered. What else the block reads (masks, tables of angles) is
    read by the copy too. That the copy is the identity is proved, in training too.

    Attributes:
        block: path of the module.

    Source: Gong et al. 2019 (stacking of layers) for copying; Zhang, Dauphin, Ma 2019 (Fixup) for the last layer at
        zero; the proof is ours.
    """

    name: ClassVar[str] = "duplicate-block"
    summary: ClassVar[str] = "insert a copy of a residual block after it, its last layers zero"
    preserves: ClassVar[str] = "the function"

    block: str = ""

    def candidates(self, graph: Graph) -> Iterator[Self]:
        """Yield one for each block."""
        return (replace(self, block=block.path) for block in find_blocks(graph))

    def match(self, graph: Graph) -> Copy | Miss:
        """Return how the block is copied, or why no copy of it can be the identity."""
        block = find_block(graph, self.block)
        return block if isinstance(block, Miss) else _plan(graph, block)

    def perturbation(self, graph: Graph, site: Site[Copy]) -> Perturbation | Miss:
        """Return the change of activations, derived; it claims the block, which no other rewrite may change first."""
        found = derive_perturbation(site.members[0].rewrite(graph, site.found))
        if isinstance(found, Miss):
            return found
        return replace(found, claims=found.claims | {n.id for n in site.found.block.calls})

    def rewrite(self, graph: Graph, found: Copy) -> Patch:
        """Insert the copy."""

        def copy(e: Edit) -> Value:
            return copy_block(e, graph, found.block, found.source, found.zeros)

        return splice(graph, found.block.out, copy, by=format_spec(self))


def _plan(graph: Graph, block: Block) -> Copy | Miss:
    misses: list[Miss] = []
    for source in block.given:
        found = find_identity(graph, block, source)
        if not isinstance(found, Miss):
            return Copy(block, source, found)
        misses.append(found)
    return misses[0]
