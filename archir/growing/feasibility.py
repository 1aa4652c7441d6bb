"""Feasibility, before anything is trained: the least a network can be contracted to, and the memory training takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from archir.axes.infer import infer_widths
from archir.cost import Cost, cost, cost_change
from archir.errors import GrowError, PassError
from archir.growing.optimisers import OptimiserOptions
from archir.growing.precision import half_type_on
from archir.ir.device_memory import free_on
from archir.ir.graph import Graph
from archir.ir.room import in_words
from archir.rewrite.morphism import Morphism, WidthMorphism
from archir.rewrite.reference import Later
from archir.rewrite.set_cost import cost_of_sizes
from archir.scoring.budget import Budget


def least_cost(graph: Graph, morphisms: Sequence[Morphism]) -> Cost:
    """Return the least cost that rewrites of some kinds lead to, one set after another, for one example.

    Everything is removed that can be, one thing after another, and then one unit is left of every width of which units
    can be removed.

    Args:
        graph: the network.
        morphisms: the kinds of rewrite; of those that keep the function only changes of widths are asked.
    """
    smallest = graph
    for kind in morphisms:
        if not isinstance(kind, WidthMorphism) and kind.preserves != "the function":
            for site in kind.sites(graph):
                smallest = _shrunk(graph, smallest, site.members[0])
    widths = infer_widths(smallest)
    sizes: dict[str, int] = {}
    for kind in morphisms:
        if isinstance(kind, WidthMorphism):
            for site in kind.sites(smallest):
                (member, *_) = site.members
                assert isinstance(member, WidthMorphism)
                changes = member.changes(widths)
                sizes |= {name: 1 for name, change in changes.items() if len(change.source) < widths[name].size}
    return cost_of_sizes(smallest, sizes)


def _shrunk(graph: Graph, smaller: Graph, member: Morphism) -> Graph:
    """Return a graph with a candidate of a larger one carried out, if that makes it smaller still."""
    try:
        patch = (member if smaller is graph else member.followed(Later(graph, smaller))).patch(smaller)
    except PassError:  # what it removes is gone, or is needed now
        return smaller
    change = cost_change(patch)
    return patch.after if max(change.parameters, change.flops, change.peak_bytes) <= 0 and change.frees else smaller


def check_reachable(budget: Budget, graph: Graph, morphisms: Sequence[Morphism]) -> None:
    """Check that a network can be contracted into a budget.

    Raises:
        GrowError: it cannot, by rewrites of these kinds; the error names the least cost they lead to.
    """
    if budget.allows(cost(graph)):
        return
    least = least_cost(graph, morphisms)
    if not budget.allows(least):
        kinds = ", ".join(kind.name for kind in morphisms) or "none"
        raise GrowError(
            "the network cannot be made as small as the budget",
            where=f"at least {least.parameters} parameters, {least.flops} FLOPs, {least.peak_bytes} peak bytes",
            why=f"budget: {budget}; kinds of rewrite: {kinds}",
            hint="raise the budget, allow kinds that remove more, or start from a smaller network",
        )


def training_memory(
    graph: Graph, batch_size: int, optimiser: OptimiserOptions, precision: str = "float32", shards: int = 1
) -> int:
    """Return the bytes that training a network takes, about.

    Its stored tensors twice (the graph's, and those of the module that is trained), gradients, what the optimiser
    keeps, and all results of a forward pass, of which the backward pass needs a half to nine tenths. In half precision
    the results of a network in float32 are half as large. Of what is held in shards a process has one, and in growth
    steps the graph's tensors whole.

    Args:
        graph: the network.
        batch_size: examples of a training batch.
        optimiser: how it is trained.
        precision: what its outputs are computed in.
        shards: in how many shards the module, its gradients and what the optimiser keeps are held.
    """
    stored = sum(t.numel() * t.element_size() for t in graph.tensors.values())
    trained = sum((t := graph.tensors[n.id]).numel() * t.element_size() for n in graph.parameters if n.is_trainable)
    kept = 2 if optimiser.name == "adamw" else int(optimiser.momentum > 0)
    results, half = cost(graph, batch_size).bytes, half_type_on(graph.device, precision)
    if half is not None and any(graph.tensors[n.id].dtype is torch.float32 for n in graph.parameters):
        results //= 2
    return stored + (stored + (1 + kept) * trained) // shards + results


def check_memory(
    graph: Graph, batch_size: int, optimiser: OptimiserOptions, precision: str = "float32", shards: int = 1
) -> None:
    """Check that there is memory to train a network where it is; see `training_memory`.

    Raises:
        GrowError: there is not, as far as the system tells; the error names the estimate.
    """
    needed, free = training_memory(graph, batch_size, optimiser, precision, shards), free_on(graph.device)
    if needed > free:
        raise GrowError(
            "there is too little memory to train the network",
            where=f"{graph.parameter_count} parameters, batches of {batch_size}",
            why=f"it would take about {in_words(needed)}, there are {in_words(free)}",
            hint="train on smaller batches, or expand the network less",
        )
