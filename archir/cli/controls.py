"""The controls of a run: networks that do not grow, trained for the same number of steps on the same batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from archir.axes.infer import infer_widths
from archir.cli.console import RunProgress
from archir.errors import GrowError
from archir.growing.data import Dataset
from archir.growing.options import GrowOptions
from archir.growing.static_training import train_static
from archir.ir.graph import Graph
from archir.rewrite.miss import Miss
from archir.rewrite.pipeline import apply_together
from archir.scoring.losses import Loss
from passes.widen import Widen


@dataclass(frozen=True)
class Control:
    """A network that did not grow.

    Attributes:
        name: which one.
        graph: the program it was before training.
        module: the trained module.
    """

    name: str
    graph: Graph
    module: nn.Module


def train_controls(
    seed: Graph, parameters: int, dataset: Dataset, loss: Loss, options: GrowOptions, *, quiet: bool
) -> list[Control]:
    """Train the seed, and the seed uniformly widened to some size and initialised afresh.

    Args:
        seed: the seed with its first weights.
        parameters: most trainable parameters of the widened one; the seed's if that is larger.
        dataset: the examples; the test data are not read.
        loss: what is minimised.
        options: how they are trained, as the grown network was.
        quiet: show no progress.

    Raises:
        GrowError: the loss is not finite.
    """
    wide = initialise(widen_uniformly(seed, max(seed.parameter_count, parameters)), options.seed)
    controls: list[Control] = []
    for name, graph in (("seed, not grown", seed), ("uniformly widened", wide)):
        with RunProgress(quiet=quiet, label="control") as progress:
            progress.line(f"control: {name}, {graph.parameter_count:,} parameters, {options.steps} steps")
            show = partial(_show, progress, options.steps)
            controls.append(Control(name, graph, train_static(graph, dataset.train, loss, options, on_step=show)))
    return controls


def _show(progress: RunProgress, total: int, step: int) -> None:
    progress.update(step + 1, total)


def widen_uniformly(graph: Graph, parameters: int) -> Graph:
    """Return a graph in which every width that can be widened has grown by the same factor.

    The factor is the largest for which the graph has at most so many parameters; width by width, those that are
    left over are then used up as far as they go.

    Args:
        graph: the graph.
        parameters: most trainable parameters.

    Raises:
        GrowError: the graph is larger already.
    """
    if graph.parameter_count > parameters:
        raise GrowError(f"the graph has {graph.parameter_count} parameters already, more than {parameters}")
    sizes = {w.name: w.size for w in infer_widths(graph) if not isinstance(Widen(w.name).match(graph), Miss)}
    low, high = 1.0, 2.0
    while sizes and _widened(graph, sizes, high).parameter_count <= parameters:
        low, high = high, 2 * high
    while high - low > 1 / max(sizes.values(), default=1) / 8:
        middle = (low + high) / 2
        fits = _widened(graph, sizes, middle).parameter_count <= parameters
        low, high = (middle, high) if fits else (low, middle)
    result = _widened(graph, sizes, low)
    for name in sizes:
        wider = Widen(name, 1).apply(result)
        result = wider if wider.parameter_count <= parameters else result
    return result


def _widened(graph: Graph, sizes: dict[str, int], factor: float) -> Graph:
    fresh = {name: math.floor(size * factor) - size for name, size in sizes.items()}
    return apply_together(graph, [(Widen(name, count), None) for name, count in fresh.items() if count > 0])


def initialise(graph: Graph, seed: int) -> Graph:
    """Return a graph whose trainable matrices and kernels are drawn as PyTorch draws those of a new layer.

    Widening keeps the function, so that the fresh units of a widened network start with nothing going out;
    a network of that size that is made from the beginning does not.
    """
    generator = torch.Generator().manual_seed(seed)
    fresh: dict[str, torch.Tensor] = {}
    for node in graph.parameters:
        tensor = graph.tensors[node.id]
        if node.parameter is not None and node.parameter.trainable and tensor.dim() > 1:
            empty = torch.empty_like(tensor)
            fresh[node.parameter.names[0]] = nn.init.kaiming_uniform_(empty, a=math.sqrt(5), generator=generator)
    return graph.with_tensors(fresh)
