"""A task: a seed network, data, a budget, and how networks are trained on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import nn

from archir.axes.infer import infer_widths
from archir.cost import Cost
from archir.growing.data import Dataset
from archir.growing.options import GrowOptions
from archir.growing.training import Metrics
from archir.ir.graph import Graph
from archir.rewrite.pipeline import apply_together
from archir.rewrite.set_cost import cost_of_set
from archir.scoring.losses import Loss
from frontends.pytorch import trace
from passes.prune import Prune

REACH = 12
"""How many times wider than the seed a width can become."""

Sizes = Mapping[str, int]
"""The number of units of every free width, by its name."""


@dataclass(frozen=True, eq=False)
class Task:
    """A task.

    Attributes:
        name: `residual`, `vgg`, `text`, `table` or `unet`.
        dataset: the examples; its name says what they are.
        build: makes the network so many times wider than the seed.
        loss: what is minimised.
        judged_by: the figure by which networks are compared, `accuracy` or `loss`.
        parameters: most parameters a network may have; the FLOPs are those of the uniform network of that size.
        options: how networks are trained, but for rate and seed.
        rates: learning rates to choose among, the usual one in the middle.
        held: widths that keep the size of the seed in the uniform network: a person widens heads, and adds none.
    """

    name: str
    dataset: Dataset = field(repr=False)
    build: Callable[[int], nn.Module] = field(repr=False)
    loss: Loss
    judged_by: Literal["accuracy", "loss"]
    parameters: int
    options: GrowOptions
    rates: tuple[float, float, float]
    held: tuple[str, ...] = ()

    @property
    def settings(self) -> str:
        """What has to be the same for two records to be compared; rate, seed and steps are theirs."""
        o = self.options
        return "; ".join(
            (
                self.dataset.name,
                f"from widths {', '.join(map(str, self.seed_sizes.values()))} to {self.parameters} parameters",
                f"batches of {o.batch_size}",
                f"warm-up of {o.warmup} steps, then {o.schedule}",
                f"clipped to {o.clip}",
                str(replace(o.optimiser, rate=0.0)),
                str(o.augmentation),
            )
        )

    @property
    def rate(self) -> float:
        """The usual learning rate."""
        return self.rates[1]

    def training(self, seed: int, rate: float) -> GrowOptions:
        """Return how a network is trained with some seed and learning rate."""
        return replace(self.options, seed=seed, optimiser=replace(self.options.optimiser, rate=rate))

    def lasting(self, steps: int) -> Task:
        """Return the same task with another number of steps."""
        if steps == self.options.steps:
            return self
        return replace(self, options=replace(self.options, steps=steps))

    def score(self, metrics: Metrics) -> float:
        """Return the figure by which networks are compared, larger is better."""
        if self.judged_by == "loss":
            return -metrics.loss
        assert metrics.accuracy is not None
        return metrics.accuracy

    def _trace(self, times: int) -> Graph:
        inputs = self.dataset.train.take(slice(2)).inputs
        assert isinstance(inputs, torch.Tensor)
        return trace(self.build(times), (inputs,))

    @cached_property
    def seed_sizes(self) -> Sizes:
        """The sizes of the seed."""
        return {w.name: w.size for w in infer_widths(self._trace(1))}

    @cached_property
    def wide(self) -> Graph:
        """The network `REACH` times wider than the seed, its biases zero; all others are it without some units."""
        graph = self._trace(REACH)
        biases = {name: node.id for name, node in graph.by_name.items() if name.endswith("bias")}
        return graph.with_tensors({name: torch.zeros_like(graph.tensors[id_]) for name, id_ in biases.items()})

    def cost(self, sizes: Sizes) -> Cost:
        """Return the cost of the network of some sizes, for one example."""
        return cost_of_set(self.wide, self._prunes(sizes))

    def network(self, sizes: Sizes, seed: int) -> Graph:
        """Return the network of some sizes, its matrices and kernels drawn afresh."""
        return _initialised(apply_together(self.wide, [(p, None) for p in self._prunes(sizes)]), seed)

    def _prunes(self, sizes: Sizes) -> list[Prune]:
        return [
            Prune(w.name, tuple(range(sizes[w.name], w.size)))
            for w in infer_widths(self.wide)
            if sizes[w.name] < w.size
        ]


def _initialised(graph: Graph, seed: int) -> Graph:
    """Return a graph whose trainable matrices and kernels are drawn as PyTorch draws those of a new layer."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, torch.Tensor] = {}
    for node in graph.parameters:
        tensor = graph.tensors[node.id]
        if node.is_trainable and tensor.dim() > 1:
            drawn[node.names[0]] = nn.init.kaiming_uniform_(
                torch.empty_like(tensor), a=math.sqrt(5), generator=generator
            )
    return graph.with_tensors(drawn)
