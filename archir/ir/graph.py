"""The graph IR: nodes that call operators on values, immutable, changed only through `edit`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from archir.ir.data import GraphData
from archir.ir.edit import Edit
from archir.ir.module import to_module
from archir.ir.node import Node, Signature
from archir.ir.patch import GraphPatch
from archir.ir.store import save
from archir.ir.structure import Structure, structure_of
from archir.ir.text import print_graph


class Graph(GraphData):
    """A program: an immutable graph of nodes, the stored tensors, and the signature.

    Graphs share tensors with the graphs they were made from; nothing ever writes into them.
    """

    def __init__(
        self,
        name: str,
        structure: Structure | Sequence[Node],
        tensors: Mapping[int, torch.Tensor],
        signature: Signature,
        history: tuple[str, ...] = (),
    ) -> None:
        """Build a graph.

        Args:
            name: name of the program.
            structure: all nodes in topological order, inputs and parameters in order, one output; or the structure
                of another graph.
            tensors: the tensor of each parameter node, by id.
            signature: nesting of inputs and outputs.
            history: specs of the passes applied so far.

        Raises:
            GraphError: no class can be called that.
        """
        nodes = structure if isinstance(structure, Structure) else structure_of(structure)
        super().__init__(name, nodes, tensors, signature, history)

    @contextmanager
    def edit(self, by: str) -> Iterator[Edit[Graph]]:
        """Change a copy of the graph: `with graph.edit(by="deepen") as e: ...; new = e.graph`.

        The new graph is verified when the block ends without an error.

        Args:
            by: spec of the pass that makes the change, for the history and for `born`.

        Raises:
            GraphError: the edited graph is malformed; all violations at once.
        """
        edit = Edit(self, by)
        yield edit
        edit._finish()

    def module(self) -> torch.nn.Module:
        """Return a live module that computes what the graph says, with its own copies of the tensors.

        Raises:
            GraphError: an operator is not there in this process.
        """
        return to_module(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the graph to an `.archir` file, which `archir.load` reads; no half-written file is left behind.

        Raises:
            FileError: it cannot be written there, or a tensor is of a kind the file does not hold.
        """
        save(self, path)

    def __str__(self) -> str:
        return print_graph(self)


Patch = GraphPatch[Graph]
"""A graph before and after edits, and what differs."""
