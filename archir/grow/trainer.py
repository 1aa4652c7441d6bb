"""A network in training: the graph, the live module made of it, and the optimiser, which change together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from archir.grow.optimisers import OptimiserOptions, optimiser_tensors, restore_optimiser
from archir.ir.graph import Graph
from archir.rewrite.reindex import Reindexing


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

    def become(self, graph: Graph, plan: Reindexing) -> Trainer:
        """Return the trainer of a grown graph; momentum and second moments are gathered like the weights."""
        return Trainer(graph, self._options, carry_over(self.state(), plan))


def carry_over(state: Mapping[str, torch.Tensor], plan: Reindexing) -> dict[str, torch.Tensor]:
    """Return the state of an optimiser after a reindexing of the parameters it belongs to.

    Every tensor that has the shape of its parameter is gathered by the same index maps as the parameter: a copy
    of a unit goes on with the momentum of the unit, a fresh unit starts with none.

    Args:
        state: tensors by `slot/parameter`.
        plan: how the parameters were reindexed.

    Source: ours.
    """
    graph = plan.widths.graph
    carried: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        node = graph.by_name[key.partition("/")[2]].id
        carried[key] = plan.gather(node, tensor) if tensor.shape == graph.tensors[node].shape else tensor
    return carried
