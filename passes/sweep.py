"""A walk over the calls of a graph that rewrites them, for passes that look at one place at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch

from archir.ir.edit import Edit
from archir.ir.graph import Graph, Patch
from archir.ir.node import PARAMETER, Argument, Node, Parameter, Use, Value
from archir.ir.patch import no_patch
from archir.ir.types import Type
from archir.rewrite.passes import Pass
from archir.rewrite.spec import format_spec

COUNTER = "num_batches_tracked"
"""Name of the buffer that batch normalisation counts batches in; no call names it."""


class Sweep:
    """A graph being rewritten; made by `sweep`.

    Attributes:
        edit: the changed graph as it stands.
        changed: whether anything has been changed.
        copies: new tensors made in place of shared ones, by what they were made from.
        taken: names that new tensors and modules may not have.
    """

    def __init__(self, graph: Graph, edit: Edit) -> None:
        """Start with nothing changed."""
        self.edit = edit
        self.taken = set(graph.by_name) | {n.location.module for n in graph.calls if n.location}
        self.changed = False
        self.copies: dict[tuple[object, ...], tuple[Value, Value | None]] = {}
        self._replaced: list[tuple[int, int, Parameter]] = []

    def find(self, node: int) -> Node | None:
        """Return a node as it stands, None if it is gone."""
        try:
            return self.edit.node(node)
        except KeyError:
            return None

    def type_of(self, value: Value) -> Type:
        """Return the type of a value."""
        return self.edit.type_of(value)

    def uses(self, value: Value) -> list[Use]:
        """Return the places that use a value."""
        return self.edit.uses(value)

    def parameter(self, argument: Argument) -> Parameter | None:
        """Return what is known of a stored tensor, None if the argument is none."""
        return self.edit.node(argument.node).parameter if isinstance(argument, Value) else None

    def stored(self, argument: Argument) -> torch.Tensor | None:
        """Return a stored tensor, None if the argument is none."""
        if isinstance(argument, Value) and self.edit.node(argument.node).op == PARAMETER:
            return self.edit.tensor(argument.node)
        return None

    def update(
        self, node: int, arguments: Mapping[str, Argument], *, op: str | None = None, drop: Collection[str] = ()
    ) -> None:
        """Change the operator or some arguments of a call; operands that nothing needs any more go."""
        before = {value.node for value in self.edit.node(node).values}
        self.edit.update(node, op=op, arguments=arguments, drop=drop)
        self.changed = True
        for id_ in before:
            self.drop(id_)

    def replace(self, old: Value, new: Value) -> None:
        """Let the users of `old` use `new`; what made `old` goes if nothing else needs it."""
        self.edit.replace_uses(old, new)
        self.changed = True
        self.drop(old.node)

    def drop(self, node: int) -> None:
        """Remove a call or stored tensor if nothing uses it, and then what only it needed."""
        waiting = [node]
        while waiting:
            found = self.find(waiting.pop())
            if found is None or not (found.is_call or found.op == PARAMETER):
                continue
            if any(map(self.uses, found.made)):
                continue
            operands = list(dict.fromkeys(value.node for value in found.values))
            self.edit.remove(found.id)
            self.changed = True
            waiting += operands

    def store(self, name: str, tensor: torch.Tensor, like: Parameter) -> Value:
        """Store a new tensor that is trained and kept as another is."""
        value = self.edit.add_parameter(name, tensor, kind=like.kind)
        made = self.edit.node(value.node).parameter or like
        self.edit.update(value.node, parameter=replace(like, names=made.names))
        self.taken.update(made.names)
        self.changed = True
        return value

    def revise(self, old: Value, tensor: torch.Tensor) -> Value:
        """Return a stored tensor with another content for one user of `old`; a new one if it has others."""
        known = self.edit.node(old.node).parameter
        assert known is not None
        self.changed = True
        if len(self.uses(old)) <= 1:
            self.edit.set_tensor(old.node, tensor)
            self.copies = {key: made for key, made in self.copies.items() if old not in (*key, *made)}
            return old
        new = self.store(known.names[0], tensor, known)
        self._replaced.append((new.node, old.node, known))
        return new

    def settle(self) -> None:
        """Give new tensors the names of those they replaced, where these are gone."""
        taken: set[int] = set()
        for new, old, known in self._replaced:
            if self.find(new) is not None and self.find(old) is None and old not in taken:
                self.edit.update(new, parameter=known)
                taken.add(old)


def sweep(graph: Graph, pass_: Pass, rewrite: Callable[[Sweep, Node], None]) -> Patch:
    """Let a function rewrite the calls of a graph one after the other, in order.

    Args:
        graph: the graph.
        pass_: the pass that does it, for the history.
        rewrite: is given each call that is still there, as it stands.

    Returns:
        What was changed; a patch that leaves the graph as it is if nothing was.
    """
    with graph.edit(by=format_spec(pass_)) as edit:
        walk = Sweep(graph, edit)
        for node in graph.calls:
            found = walk.find(node.id)
            if found is not None:
                rewrite(walk, found)
        if walk.changed:
            walk.settle()
            _drop_counters(graph, walk)
    return edit.patch if walk.changed else no_patch(graph)


def _drop_counters(graph: Graph, walk: Sweep) -> None:
    """Remove the counters of running statistics that are gone."""
    for id_, counter in counters(graph).items():
        if walk.find(id_) is None:
            walk.drop(counter)


def counters(graph: Graph) -> dict[int, int]:
    """Return, by the node of each running mean, the node of the buffer that counts its batches."""
    found: dict[int, int] = {}
    for node in graph.parameters:
        for name in node.names:
            path, _, field = name.rpartition(".")
            counter = graph.by_name.get(f"{path}.{COUNTER}".lstrip("."))
            if field == "running_mean" and counter is not None:
                found[node.id] = counter.id
    return found


def statistics_of(node: Node) -> set[int]:
    """Return the nodes of the running statistics that a call is given."""
    return {v.node for use, v in node.operands() if use.argument in ("running_mean", "running_var")}


def written_in_training(graph: Graph) -> frozenset[int]:
    """Return the nodes of the stored tensors that training writes: running statistics and their counters."""
    statistics = {id_ for node in graph.calls for id_ in statistics_of(node)}
    counted = counters(graph)
    return frozenset(statistics | {counted[id_] for id_ in statistics if id_ in counted})
