"""What a graph is, as data, and how it is read; what is done with graphs is typed on this.

A node is an input, a parameter (any stored tensor, buffers included), a call of an operator, or the one output.
A value is one result of a node. Arguments are kept by schema name, defaults left out, so
`node.argument("groups")` never depends on how the call was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import networkx as nx
import torch

from archir.errors import GraphError, suggest
from archir.ir.names import check_title
from archir.ir.node import PARAMETER, Node, Signature, Use, Value
from archir.ir.overlay import frozen
from archir.ir.structure import Structure, structure_of
from archir.ir.types import Type


@dataclass(frozen=True, eq=False, repr=False)
class GraphData:
    """Nodes, stored tensors and signature of a program; never changed.

    Attributes:
        name: name of the program.
        structure: all nodes, and the uses of their results.
        tensors: the tensor of each parameter node, by id; shared with other graphs, and never written into.
        signature: nesting of inputs and outputs, and what the sizes of the inputs have to satisfy.
        history: specs of the passes applied so far.

    Raises:
        GraphError: no class can be called that.
    """

    name: str
    structure: Structure
    tensors: Mapping[int, torch.Tensor]
    signature: Signature
    history: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_title(self.name)
        object.__setattr__(self, "tensors", frozen(self.tensors))

    @property
    def networkx(self) -> nx.MultiDiGraph:
        """The graph as networkx has it, read-only: node attribute `node`, edge key (argument, position, result)."""
        return self.structure.networkx

    @property
    def order(self) -> tuple[int, ...]:
        """Node ids in the one topological order all of archir uses: inputs, parameters, then calls by id.

        Raises:
            GraphError: the graph has a cycle.
        """
        return self.structure.order

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes in topological order."""
        return self.structure.nodes

    @property
    def calls(self) -> Iterator[Node]:
        """The nodes that call operators, in topological order."""
        return iter(self.structure.calls)

    @cached_property
    def inputs(self) -> tuple[Node, ...]:
        """Input nodes, in the order of the signature's leaves."""
        return tuple(map(self.structure.by_id.__getitem__, self.structure.inputs))

    @cached_property
    def parameters(self) -> tuple[Node, ...]:
        """Parameter nodes (buffers and constants included), in order."""
        found = (node for node in self.structure.by_id.values() if node.op == PARAMETER)
        return tuple(sorted(found, key=lambda node: node.id))

    @property
    def output(self) -> Node:
        """The output node; its arguments `0`, `1`, ... are the returned values."""
        return self.structure.by_id[self.structure.output]

    @property
    def device(self) -> torch.device:
        """Where the stored tensors are; the CPU if there are none."""
        return next((t.device for t in self.tensors.values()), torch.device("cpu"))

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Parameter nodes by every name they have."""
        return {name: self.structure.by_id[i] for name, i in self.structure.names.items()}

    def __len__(self) -> int:
        return len(self.structure.by_id)

    def __contains__(self, node: int) -> bool:
        return node in self.structure.by_id

    def node(self, node: int) -> Node:
        """Return a node by id.

        Raises:
            GraphError: there is no such node.
        """
        try:
            return self.structure.by_id[node]
        except KeyError as error:
            raise GraphError(f"graph {self.name} has no node {node}") from error

    def type_of(self, value: Value) -> Type:
        """Return the type of a value."""
        return self.node(value.node).results[value.index]

    def uses(self, value: Value) -> list[Use]:
        """Return all places that use a value, in order of node id and argument."""
        return self.structure.uses(value)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a stored tensor by name.

        Raises:
            GraphError: there is no such tensor.
        """
        if name not in self.by_name:
            raise GraphError(f"graph {self.name} has no tensor {name!r}", hint=suggest(name, self.by_name))
        return self.tensors[self.by_name[name].id]

    @property
    def parameter_count(self) -> int:
        """Number of trainable parameters, tied ones once."""
        return sum(self.tensors[n.id].numel() for n in self.parameters if n.is_trainable)

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Self:
        """Return the same program with some stored tensors replaced, by name (a state dict will do).

        Raises:
            GraphError: a name is not in the graph, or a shape or element type differs.
        """
        found: dict[int, torch.Tensor] = {}
        problems: list[str] = []
        for name, tensor in tensors.items():
            node = self.by_name.get(name)
            if node is None:
                problems.append(f"{name}: not in the graph")
            elif (old := self.tensors[node.id]).shape != tensor.shape:
                problems.append(f"{name}: {list(tensor.shape)} instead of {list(old.shape)}")
            else:
                found[node.id] = tensor.detach().to(old.dtype, copy=True)
        if problems:
            raise GraphError("tensors do not fit the graph", where="; ".join(problems))
        return self.with_stored(found)

    def with_stored(self, tensors: Mapping[int, torch.Tensor]) -> Self:
        """Return the same program with some stored tensors replaced, by parameter node, of the same types."""
        return replace(self, tensors={**self.tensors, **tensors})

    def to(self, dtype: torch.dtype) -> Self:
        """Return the same program with every floating-point tensor, constant and type in another precision."""
        nodes = [n.to(dtype) for n in self.nodes]
        tensors = {i: t.to(dtype) if t.is_floating_point() else t for i, t in self.tensors.items()}
        return replace(self, structure=structure_of(nodes), tensors=tensors)

    def with_history(self, *specs: str) -> Self:
        """Return the same program with its history replaced."""
        return replace(self, history=specs)
