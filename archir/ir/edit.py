"""A graph being changed: the only way to change one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import replace
from typing import Generic

import torch
from typing_extensions import TypeVar

from archir.errors import GraphError
from archir.ir import ops
from archir.ir.data import GraphData
from archir.ir.node import PARAMETER, Argument, Location, Node, Parameter, Use, Value
from archir.ir.overlay import copy_of
from archir.ir.patch import GraphPatch
from archir.ir.structure import Draft
from archir.ir.tensor_map import TensorMap
from archir.ir.types import TensorType, Type
from archir.ir.verify import verify_patch

G_co = TypeVar("G_co", bound=GraphData, covariant=True, default=GraphData)


class Edit(Generic[G_co]):
    """A graph being changed; made by `Graph.edit`.

    Attributes:
        patch: what was changed, once the `with` block has ended.
    """

    def __init__(self, base: G_co, by: str) -> None:
        """Start from a copy of `base`."""
        self._base = base
        self._by = by
        self._draft = Draft(base.structure)
        self._tensors = copy_of(base.tensors)
        self._maps: dict[int, TensorMap | None] = {}
        self._patch: GraphPatch[G_co] | None = None

    @property
    def patch(self) -> GraphPatch[G_co]:
        """The graph before and after, and what differs.

        Raises:
            GraphError: the `with` block has not ended.
        """
        if self._patch is None:
            raise GraphError("the edited graph is there once the `with graph.edit(...)` block has ended")
        return self._patch

    @property
    def graph(self) -> G_co:
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

    def is_name(self, name: str) -> bool:
        """Say whether a tensor is stored under a name, as things stand now."""
        return self._draft.is_name(name)

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
        """Change a node in place; arguments given are merged into those it has, less those in `drop`.

        Raises:
            GraphError: it would be a node of another kind, or is no stored tensor that had names.
        """
        old = self.node(node)
        if (not old.is_call and op not in (None, old.op)) or (parameter and old.op != PARAMETER):
            raise GraphError(f"node {node} is no {'stored tensor' if parameter else 'call'}, but {old.op}")
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
        history = (*base.history, self._by)
        graph = replace(base, structure=draft.finished(), tensors=self._tensors, history=history)
        patch = GraphPatch(base, graph, frozenset(draft.touched), frozenset(draft.removed), self._maps)
        verify_patch(patch, draft.rewired)
        self._patch = patch
