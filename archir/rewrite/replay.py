"""A subgraph evaluated anew with other weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from archir.axes.rules.norm import uses_batch_statistics
from archir.ir.execute import Call
from archir.ir.node import Node, Value
from archir.ir.operators.normalisation import BATCH_NORM, scale_of
from archir.ir.operators.operator import Kind
from archir.ir.registry import operator_of
from archir.ir.tensor_map import along
from archir.rewrite.subgraph import Subgraph, Values

_Kind = Literal["weight", "sum", "norm", "call"]


@dataclass(frozen=True)
class _Stage:
    """One call to be made anew.

    Attributes:
        kind: how: on the change of its weight, on the changes of its operands (a sum, a batch normalisation), or for
            each sign on what its operands have become.
        node: the call.
        moved: its operands that change.
        call: the call, ready to be executed; for a weight's change without its bias.
        norm: the batch normalisation that follows it, done by the same call.
        dropped: the values not needed any more after it.
    """

    kind: _Kind
    node: Node
    moved: frozenset[Value]
    call: Call
    norm: Node | None = None
    dropped: tuple[Value, ...] = ()

    @property
    def results(self) -> tuple[Value, ...]:
        """The values it makes."""
        return (self.norm or self.node).made


class Replay:
    """A subgraph evaluated with some of its stored tensors changed by ±θ, its inputs held at their present values.

    While calls are linear (in their weight, then sums and batch normalisation in evaluation mode), they are evaluated
    once on the change alone, whatever the number of signs; a convolution and the normalisation after it in one call.

    Attributes:
        needs: the values of the unchanged program that are read, those at the ends among them.
    """

    def __init__(self, subgraph: Subgraph, changed: Collection[int]) -> None:
        """Find out what is to be evaluated.

        Args:
            subgraph: the subgraph.
            changed: the stored tensors that change.
        """
        self._ends = frozenset(v for _, v in subgraph.ends)
        stages, needs = _plan(subgraph, frozenset(map(Value, changed)), self._ends)
        last = {v: i for i, stage in enumerate(stages) for v in (*stage.results, *stage.moved)}
        gone: list[list[Value]] = [[] for _ in stages]
        for value in last.keys() - self._ends:
            gone[last[value]].append(value)
        stages = [replace(stage, dropped=tuple(sorted(g))) for stage, g in zip(stages, gone, strict=True)]
        self._stages, self.needs = tuple(stages), needs

    def __call__(
        self, values: Values, theta: Mapping[int, torch.Tensor], signs: Sequence[int] = (1,)
    ) -> list[dict[Value, torch.Tensor]]:
        """Evaluate the subgraph.

        Args:
            values: values of the unchanged program, at least those in `needs`.
            theta: the change of each tensor that changes.
            signs: the signs with which they are added.

        Returns:
            For each sign the new values at the ends; an end that does not change is left out.
        """
        new: list[dict[Value, torch.Tensor]] = [
            {Value(w): values[Value(w)] + sign * change for w, change in theta.items()} for sign in signs
        ]
        steps = {Value(w): change for w, change in theta.items()}

        def read(value: Value, sign: int, found: dict[Value, torch.Tensor]) -> torch.Tensor:
            if value not in found:
                base, step = values[value], steps[value]
                found[value] = base + step if sign > 0 else base - step
            return found[value]

        for stage in self._stages:
            if stage.kind == "call":
                for sign, found in zip(signs, new, strict=True):
                    moved = {v: read(v, sign, found) for v in stage.moved}
                    results = stage.call(partial(_operand, moved, values))
                    found.update(zip(stage.results, results, strict=True))
            else:
                (result,) = stage.results
                steps[result] = _step(stage, values, steps)
            for value in stage.dropped:
                for gone in (steps, *new):
                    gone.pop(value, None)
        made = [v for v in self._ends if v in steps or any(v in found for found in new)]
        return [{v: read(v, sign, found) for v in made} for sign, found in zip(signs, new, strict=True)]


def _operand(moved: Values, values: Values, value: Value) -> torch.Tensor:
    return moved[value] if value in moved else values[value]


def _step(stage: _Stage, values: Values, steps: Mapping[Value, torch.Tensor]) -> torch.Tensor:
    """Return the change of the result of a linear call."""
    moved = [steps[v] for v in stage.node.values if v in stage.moved]
    found = moved[0]
    if stage.kind == "sum":
        return found if len(moved) == 1 else found + moved[1]
    if stage.kind == "norm":
        return found * along(1, _scale(stage.node, values), found.dim())
    if stage.norm is not None:
        found = found * along(0, _scale(stage.norm, values), found.dim())
    result: torch.Tensor = stage.call(lambda v: found if v in stage.moved else values[v])[0]
    return result


def _scale(norm: Node, values: Values) -> torch.Tensor:
    """Return the factor of every channel, `γ / √(variance + ε)`."""
    variance, weight, epsilon = (norm.argument(n) for n in ("running_var", "weight", "eps"))
    assert isinstance(variance, Value) and isinstance(epsilon, float)
    return scale_of(values[variance], epsilon, values[weight] if isinstance(weight, Value) else None)


def _plan(
    subgraph: Subgraph, stored: frozenset[Value], ends: frozenset[Value]
) -> tuple[list[_Stage], frozenset[Value]]:
    """Return the calls to be made anew, and the values of the unchanged program they read."""
    readers = Counter(v for n in subgraph.nodes for v in subgraph.carried[n.id])
    changed, needs = set(stored), {*stored, *ends}
    stepped: dict[Value, int] = {}
    stages: list[_Stage] = []
    for node in subgraph.nodes:
        moved = subgraph.carried[node.id] & changed
        if not moved:
            continue
        kind, number = _kind(subgraph, node, moved, stored, stepped.keys()), len(stages)
        read, call = {*node.values} - moved, subgraph.calls[node.id]
        if kind == "weight":
            call = subgraph.changes[node.id]
            read.discard(node.arguments.get("bias"))
        elif kind == "norm":
            (x,) = moved
            before = stages[stepped[x]]
            convolves = before.kind == "weight" and operator_of(before.node.op).kind is Kind.CONVOLUTION
            if convolves and readers[x] == 1 and x not in ends:
                number = stepped[x]
                stages[number] = replace(before, norm=node)
        elif kind == "sum":
            read = set()
        else:
            read |= moved & stepped.keys()
        if number == len(stages):
            stages.append(_Stage(kind, node, moved, call))
        changed.update(node.made)
        needs |= read
        if kind != "call":
            stepped |= dict.fromkeys(node.made, number)
    return stages, frozenset(needs)


def _kind(
    subgraph: Subgraph, node: Node, moved: frozenset[Value], stored: frozenset[Value], stepped: Collection[Value]
) -> _Kind:
    if node.id in subgraph.changes and moved == {node.arguments["weight"]} and moved <= stored:
        return "weight"
    if not all(value in stepped for value in moved):
        return "call"
    if node.op == BATCH_NORM and moved == {node.arguments["input"]}:
        known = isinstance(node.argument("running_var"), Value) and isinstance(node.argument("eps"), float)
        return "norm" if known and not uses_batch_statistics(node) else "call"
    if node.op == "aten.add.Tensor" and "alpha" not in node.arguments:
        return "sum" if len(moved) == 2 or {subgraph.types[v] for v in moved} == {*node.results} else "call"
    return "call"
