"""The parameter groups of an optimiser after a rewriting: what was there stays, and what is new joins what it is by."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn, optim

from archir.ir.graph import Graph, Patch
from archir.ir.node import Node, Value

NAMES = "param_names"
"""Under which a group holds the names of its parameters, if they were given."""


@dataclass(frozen=True)
class _Member:
    """A parameter of a group, as it was.

    Attributes:
        group: number of the group.
        name: its name.
        dims: how many dimensions it has.
    """

    group: int
    name: str
    dims: int


def grown_groups(
    optimiser: optim.Optimizer, model: nn.Module, rewriting: Patch, grown: nn.Module
) -> list[dict[str, Any]]:
    """Return the groups of an optimiser with the parameters as they are after a rewriting.

    The groups keep all their options and their order. A parameter that was there stays in its group, or in none. A new
    one joins the group of the one it comes from: of those in groups that have as many dimensions, if there are any, the
    one whose path has the most parts in common with its own; of these the one that is the fewest calls before it, if
    one is; and of these the one of the same last name.

    Args:
        optimiser: the optimiser.
        model: the module it is of.
        rewriting: how its parameters are rewritten.
        grown: the module after that.
    """
    before, after = rewriting.before, rewriting.after
    names = {parameter: name for name, parameter in model.named_parameters()}
    named = dict(grown.named_parameters(remove_duplicate=False))
    groups = [{**group, "params": list[torch.Tensor]()} for group in optimiser.param_groups]
    members: dict[int, _Member] = {}
    for number, (group, its) in enumerate(zip(optimiser.param_groups, groups, strict=True)):
        if NAMES in group:
            its[NAMES] = list[str]()
        for i, parameter in enumerate(group["params"]):
            node = before.by_name[names[parameter]].id
            members[node] = _Member(number, names[parameter], parameter.dim())
            if node in after:
                its["params"].append(named[after.node(node).names[0]])
                if NAMES in group:
                    its[NAMES].append(group[NAMES][i])
    for new in rewriting.added:
        if new.parameter is None or not new.is_trainable or not members:
            continue
        name = new.parameter.names[0]
        joined = groups[members[_source(after, new, members)].group]
        joined["params"].append(named[name])
        if NAMES in joined:
            joined[NAMES].append(name)
    return groups


def _source(after: Graph, new: Node, members: Mapping[int, _Member]) -> int:
    """Return the member that a new parameter comes from."""
    name, dims = new.names[0], len(new.tensor_type().shape)
    alike = [node for node, member in members.items() if member.dims == dims] or list(members)
    most = max(_common(name, members[node].name) for node in alike)
    nearest = [node for node in alike if _common(name, members[node].name) == most]
    before = _first_before(after, new, frozenset(nearest)) if len(nearest) > 1 else frozenset()
    last = name.rpartition(".")[2]
    found = [node for node in nearest if node in before] or nearest
    return next((node for node in found if members[node].name.rpartition(".")[2] == last), found[0])


def _common(one: str, other: str) -> int:
    """Return how many parts two names have in common from their beginning."""
    parts, others = one.split("."), other.split(".")
    return next(
        (i for i, (a, b) in enumerate(zip(parts, others, strict=False)) if a != b), min(len(parts), len(others))
    )


def _first_before(graph: Graph, parameter: Node, wanted: Collection[int]) -> frozenset[int]:
    """Return those of some parameters that the nearest calls before those of a parameter use, if there are any."""
    front = {use.node for use in graph.uses(Value(parameter.id))}
    seen = set(front)
    while front:
        sources = {value.node for node in front for _, value in graph.node(node).operands()}
        if found := frozenset(sources) & frozenset(wanted):
            return found
        front = sources - seen
        seen |= front
    return frozenset()
