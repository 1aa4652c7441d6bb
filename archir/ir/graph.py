"""The graph IR: nodes that call operators on values, immutable, changed only through `edit`.

A node is an input, a parameter (any stored tensor, buffers included), a call of an operator, or the one output.
A value is one result of a node. Arguments are kept by schema name, defaults left out, so
`node.argument("groups")` never depends on how the call was written.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType

import networkx as nx
import torch

from archir.errors import GraphError, suggest
from archir.ir import ops
from archir.ir.module import to_module
from archir.ir.names import check_title
from archir.ir.node import PARAMETER, Argument, Location, Node, Parameter, Signature, Use, Value
from archir.ir.overlay import copy_of
from archir.ir.patch import Patch
from archir.ir.store import save
from archir.ir.structure import Draft, Structure, structure_of
from archir.ir.tensor_map import TensorMap
from archir.ir.text import print_graph
from archir.ir.types import TensorType, Type
from archir.ir.verify import verify_patch


class Graph:
    """A program: an immutable graph of nodes, the stored tensors, and the signature.

    Graphs share tensors with the graphs they were made from; nothing ever writes into them.
    """

    def __init__(
        self,
        name: str,
        nodes: Sequence[Node],
        tensors: Mapping[int, torch.Tensor],
        signature: Signature,
        history: tuple[str, ...] = (),
    ) -> None:
        """Build a graph from nodes in topological order.

        Args:
            name: name of the program.
            nodes: all nodes; inputs and parameters in order, one output.
            tensors: the tensor of each parameter node, by id.
            signature: nesting of inputs and outputs.
            history: specs of the passes applied so far.

        Raises:
            GraphError: no class can be called that.
        """
        self._setup(name, structure_of(nodes), dict(tensors), signature, history)

    def _setup(
        self,
        name: str,
        structure: Structure,
        tensors: MutableMapping[int, torch.Tensor],
        signature: Signature,
        history: tuple[str, ...],
    ) -> None:
        check_title(name)
        self.name = name
        self.signature = signature
        self.history = history
        self.structure = structure
        self._tensors = tensors
        self.tensors: Mapping[int, torch.Tensor] = MappingProxyType(tensors)

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
            raise GraphError(f"graph {self.name} has no tensor {name!r}", mend=suggest(name, self.by_name))
        return self.tensors[self.by_name[name].id]

    @property
    def parameter_count(self) -> int:
        """Number of trainable parameters, tied ones once."""
        return sum(self.tensors[n.id].numel() for n in self.parameters if n.parameter and n.parameter.trainable)

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Graph:
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

    def with_stored(self, tensors: Mapping[int, torch.Tensor]) -> Graph:
        """Return the same program with some stored tensors replaced, by parameter node, of the same types."""
        graph = Graph.__new__(Graph)
        graph._setup(self.name, self.structure, {**self._tensors, **tensors}, self.signature, self.history)
        return graph

    def to(self, dtype: torch.dtype) -> Graph:
        """Return the same program with every floating-point tensor, constant and type in another precision."""
        nodes = [n.to(dtype) for n in self.nodes]
        tensors = {i: t.to(dtype) if t.is_floating_point() else t for i, t in self.tensors.items()}
        return Graph(self.name, nodes, tensors, self.signature, self.history)

    def with_history(self, *specs: str) -> Graph:
        """Return the same program with its history replaced."""
        graph = Graph.__new__(Graph)
        graph._setup(self.name, self.structure, self._tensors, self.signature, specs)
        return graph

    @contextmanager
    def edit(self, by: str) -> Iterator[Edit]:
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


class Edit:
    """A graph being changed; made by `Graph.edit`.

    Attributes:
        patch: what was changed, once the `with` block has ended.
    """

    def __init__(self, base: Graph, by: str) -> None:
        """Start from a copy of `base`."""
        self._base = base
        self._by = by
        self._draft = Draft(base.structure)
        self._tensors = copy_of(base._tensors)
        self._maps: dict[int, TensorMap | None] = {}
        self._patch: Patch | None = None

    @property
    def patch(self) -> Patch:
        """The graph before and after, and what differs.

        Raises:
            GraphError: the `with` block has not ended.
        """
        if self._patch is None:
            raise GraphError("the edited graph is there once the `with graph.edit(...)` block has ended")
        return self._patch

    @property
    def graph(self) -> Graph:
        """The changed graph.

        Raises:
            GraphError: the `with` block has not ended.
        """
        return self.patch.after

    def node(self, node: int) -> Node:
        """Return a node as it stands now."""
        return self._draft.by_id[node]

    def type_of(self, value: Value) -> Type:
        """Return the type of a value as it stands now."""
        return self.node(value.node).results[value.index]

    def uses(self, value: Value) -> list[Use]:
        """Return the places that use a value as things stand now, in order."""
        return self._draft.uses(value)

    def is_path(self, path: str) -> bool:
        """Say whether calls belong to a module or tensors are stored in it, or did before they went."""
        return self._draft.is_path(path)

    def paths(self) -> Set[str]:
        """Return the paths of all modules that calls belong to or tensors are stored in, or did before they went."""
        return self._draft.paths()

    def stores(self, path: str) -> bool:
        """Say whether a tensor is stored in a module or in one below it, as things stand now."""
        return self._draft.stores(path)

    @property
    def device(self) -> torch.device:
        """Where the stored tensors are; the CPU if there are none."""
        return next((t.device for t in self._tensors.values()), torch.device("cpu"))

    def tensor(self, node: int) -> torch.Tensor:
        """Return the tensor of a parameter node as it stands now."""
        return self._tensors[node]

    def add_parameter(
        self,
        name: str,
        tensor: torch.Tensor,
        *,
        kind: str = "parameter",
        location: Location | None = None,
    ) -> Value:
        """Store a new tensor under a fresh name; a number is appended where `name` is taken."""
        stem, number = name, 1
        while self._draft.is_name(name):
            name, number = f"{stem}_{number}", number + 1
        trainable = kind == "parameter" and tensor.is_floating_point()
        node = Node(
            id=self._draft.next_id,
            op=PARAMETER,
            results=(TensorType(tensor.dtype, tuple(tensor.shape)),),
            parameter=Parameter((name,), kind, trainable),
            location=location,
            born=self._by,
        )
        self._tensors[node.id] = tensor.detach()
        return self._add(node)

    def call(self, op: str, *args: Argument, location: Location | None = None, **kwargs: Argument) -> Value:
        """Add a call of an operator; the types of its results are inferred.

        Args:
            op: operator name.
            args: arguments in schema order.
            location: the place in the user's program it belongs to.
            kwargs: arguments by name.

        Returns:
            Its first result; others are `Value(value.node, i)`.

        Raises:
            GraphError: the operator is unknown or rejects its operands.
        """
        arguments = ops.normalise(op, args, kwargs)
        results = ops.infer_types(op, self._typed(arguments), self._base.signature.guards)
        return self._add(Node(self._draft.next_id, op, arguments, results, location=location, born=self._by))

    def update(
        self,
        node: int,
        *,
        op: str | None = None,
        arguments: Mapping[str, Argument] | None = None,
        results: tuple[Type, ...] | None = None,
        parameter: Parameter | None = None,
        drop: Collection[str] = (),
    ) -> None:
        """Change a node in place; arguments given are merged into those it has, less those in `drop`."""
        old = self.node(node)
        merged = {n: a for n, a in old.arguments.items() if n not in drop} | dict(arguments or {})
        new_op = op or old.op
        if old.is_call:
            merged = ops.normalise(new_op, (), merged)
        new = replace(
            old,
            op=new_op,
            arguments=merged,
            results=old.results if results is None else results,
            parameter=parameter or old.parameter,
        )
        self._draft.put(new)

    def infer(self, node: int) -> None:
        """Set the result types of a call to what its operands make them."""
        found = self.node(node)
        results = ops.infer_types(found.op, self._typed(found.arguments), self._base.signature.guards)
        self.update(node, results=results)

    def set_tensor(self, node: int, tensor: torch.Tensor) -> None:
        """Replace the tensor of a parameter node by one that has nothing of it; its type follows.

        What an optimiser has gathered for it is lost; `remap` keeps it.
        """
        self._store(node, tensor, None)

    def remap(self, node: int, by: TensorMap, added: torch.Tensor | None = None) -> None:
        """Make the tensor of a parameter node of what it was; its type follows, and all that belongs to it can.

        Args:
            node: the parameter node.
            by: how it is made.
            added: what is added to it then.
        """
        before, tensor = self._maps.get(node, TensorMap()), by.weight(self._tensors[node])
        tensor = tensor if added is None else tensor + added
        self._store(node, tensor, None if before is None else before.then(by))

    def _store(self, node: int, tensor: torch.Tensor, by: TensorMap | None) -> None:
        self._tensors[node] = tensor.detach()
        if node in self._base:
            self._maps[node] = by
        self.update(node, results=(TensorType(tensor.dtype, tuple(tensor.shape)),))

    def replace_uses(self, old: Value, new: Value, only: Collection[Use] | None = None) -> None:
        """Let the users of `old` (or the given uses of it) use `new` instead."""
        chosen = self.uses(old) if only is None else only
        for user in {u.node for u in chosen}:
            places = {(u.argument, u.position) for u in chosen if u.node == user}

            def swap(name: str, argument: Argument, position: tuple[int, ...] = ()) -> Argument:
                if isinstance(argument, tuple):
                    return tuple(swap(name, a, (*position, i)) for i, a in enumerate(argument))
                return new if argument == old and (name, position) in places else argument  # noqa: B023

            self.update(user, arguments={k: swap(k, a) for k, a in self.node(user).arguments.items()})

    def remove(self, node: int) -> None:
        """Remove a node nothing uses.

        Raises:
            GraphError: something uses it.
        """
        users = self._draft.users(node)
        if users:
            raise GraphError(f"node {node} ({self.node(node).op}) is still used", where=f"by nodes {users}")
        self._draft.remove(node)
        self._tensors.pop(node, None)
        self._maps.pop(node, None)

    def _typed(self, arguments: Mapping[str, Argument]) -> dict[str, object]:
        def typed(argument: Argument) -> object:
            if isinstance(argument, tuple):
                return tuple(map(typed, argument))
            return self.type_of(argument) if isinstance(argument, Value) else argument

        return {name: typed(a) for name, a in arguments.items()}

    def _add(self, node: Node) -> Value:
        self._draft.put(node)
        return Value(node.id)

    def _finish(self) -> None:
        base, draft = self._base, self._draft
        graph = Graph.__new__(Graph)
        graph._setup(base.name, draft.finished(), self._tensors, base.signature, (*base.history, self._by))
        patch = Patch(base, graph, frozenset(draft.touched), frozenset(draft.removed), self._maps)
        verify_patch(patch, draft.rewired)
        self._patch = patch
