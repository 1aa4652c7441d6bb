"""A graph being changed: the only way to change one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Generic

import torch
from typing_extensions import TypeVar

from archir.errors import GraphError
from archir.ir import ops
from archir.ir.data import GraphData
from archir.ir.node import PARAMETER, Argument, Location, Node, Parameter, Use, Value
from archir.ir.structure import Draft
from archir.ir.types import TensorType, Type
from archir.ir.verify import verify

G_co = TypeVar("G_co", bound=GraphData, covariant=True, default=GraphData)


class Edit(Generic[G_co]):
    """A graph being changed; made by `Graph.edit`.

    Attributes:
        graph: the changed graph, once the `with` block has ended.
        touched: ids of the nodes added or changed so far.
    """

    def __init__(self, base: G_co, by: str) -> None:
        """Start from a copy of `base`."""
        self._base = base
        self._by = by
        self._draft = Draft(base.structure)
        self._tensors = dict(base.tensors)
        self._next = max(self._draft.by_id, default=-1) + 1
        self._result: G_co | None = None
        self.touched: set[int] = set()

    @property
    def graph(self) -> G_co:
        """The changed graph.

        Raises:
            GraphError: the `with` block has not ended.
        """
        if self._result is None:
            raise GraphError("the edited graph is there once the `with graph.edit(...)` block has ended")
        return self._result

    def node(self, node: int) -> Node:
        """Return a node as it stands now."""
        return self._draft.by_id[node]

    def type_of(self, value: Value) -> Type:
        """Return the type of a value as it stands now."""
        return self.node(value.node).results[value.index]

    def uses(self, value: Value) -> list[Use]:
        """Return the places that use a value as things stand now, in order."""
        return self._draft.uses(value)

    def paths(self) -> set[str]:
        """Return the paths of all modules that calls belong to or tensors are stored in, as things stand now."""
        return self._draft.paths()

    def stores(self, path: str) -> bool:
        """Say whether a tensor is stored in a module or in one below it, as things stand now."""
        return any(name.startswith(f"{path}.") for name in self._draft.names())

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
        taken = self._draft.names()
        stem, number = name, 1
        while name in taken:
            name, number = f"{stem}_{number}", number + 1
        trainable = kind == "parameter" and tensor.is_floating_point()
        node = Node(
            id=self._next,
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
        return self._add(Node(self._next, op, arguments, results, location=location, born=self._by))

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
        self.touched.add(node)

    def infer(self, node: int) -> None:
        """Set the result types of a call to what its operands make them."""
        found = self.node(node)
        results = ops.infer_types(found.op, self._typed(found.arguments), self._base.signature.guards)
        self.update(node, results=results)

    def set_tensor(self, node: int, tensor: torch.Tensor) -> None:
        """Replace the tensor of a parameter node; its type follows."""
        self._tensors[node] = tensor.detach()
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
        self.touched.discard(node)

    def _typed(self, arguments: Mapping[str, Argument]) -> dict[str, object]:
        def typed(argument: Argument) -> object:
            if isinstance(argument, tuple):
                return tuple(map(typed, argument))
            return self.type_of(argument) if isinstance(argument, Value) else argument

        return {name: typed(a) for name, a in arguments.items()}

    def _add(self, node: Node) -> Value:
        self._draft.put(node)
        self._next += 1
        self.touched.add(node.id)
        return Value(node.id)

    def _finish(self) -> None:
        base = self._base
        history = (*base.history, self._by)
        graph = replace(base, structure=self._draft.finished(), tensors=self._tensors, history=history)
        verify(graph, touched=self.touched, base=base)
        self._result = graph
