"""A network in training: the graph, the live module made of it, and the optimiser, which change together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from archir.growing.optimisers import POWERS, OptimiserOptions, optimiser_tensors, restore_optimiser
from archir.ir.graph import Graph, Patch


class Trainer:
    """A live module with its optimiser, and the graph it was made from.

    Attributes:
        module: the live module.
        optimiser: its optimiser.
    """

    def __init__(
        self, graph: Graph, options: OptimiserOptions, state: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Make the module of a graph, with a fresh optimiser or one that goes on from a state.

        Raises:
            GrowError: the graph has no trainable parameters, or the state does not fit.
        """
        self._graph = graph
        self._options = options
        self.module: nn.Module = graph.module()
        self.optimiser = options.build(self.module)
        if state:
            restore_optimiser(self.optimiser, self.module, state)

    def graph(self) -> Graph:
        """Return the graph with the weights as they are now."""
        return self._graph.with_tensors(self.module.state_dict())

    def state(self) -> dict[str, torch.Tensor]:
        """Return the state of the optimiser, as named tensors."""
        return optimiser_tensors(self.optimiser, self.module)

    def become(self, rewriting: Patch) -> Trainer:
        """Return the trainer of a grown graph; momentum and second moments are carried over like the weights."""
        return Trainer(rewriting.after, self._options, carry_over(self.state(), rewriting))


def carry_over(state: Mapping[str, torch.Tensor], rewriting: Patch) -> dict[str, torch.Tensor]:
    """Return the state of an optimiser after a rewriting of the parameters it belongs to.

    Every tensor that has the shape of its parameter goes through the same index maps as the parameter: a copy of a
    unit goes on with what it would have gathered had it been there from the first step, a fresh unit or layer starts
    with none. Weight decay that SGD adds to the gradients is carried over as if it were one of them.

    Args:
        state: tensors by `slot/parameter`.
        rewriting: how the parameters were rewritten.

    Source: ours.
    """
    before, after = rewriting.before, rewriting.after
    slots: dict[str, dict[int, torch.Tensor]] = {}
    names: dict[int, str] = {}
    carried: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        slot, _, name = key.partition("/")
        node = before.by_name[name].id
        names[node] = name
        if tensor.shape == before.tensors[node].shape:
            slots.setdefault(slot, {})[node] = tensor
        elif node in after:
            carried[key] = tensor
    for slot, tensors in slots.items():
        for node, tensor in rewriting.carry(tensors, POWERS[slot]).items():
            carried[f"{slot}/{names[node]}"] = tensor
    return carried
