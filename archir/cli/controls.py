"""The controls of a run: networks that do not grow, trained for the same number of steps on the same batches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import nn

from archir.cli.console import RunProgress
from archir.growing.data import Dataset
from archir.growing.expansion import widen_uniformly
from archir.growing.options import GrowOptions
from archir.growing.static_training import train_static
from archir.ir.graph import Graph
from archir.scoring.budget import Budget
from archir.scoring.losses import Loss


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
    """Train the seed, and the seed uniformly widened to some size, its weights drawn anew.

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
    budget = Budget(parameters=max(seed.parameter_count, parameters))
    wide = widen_uniformly(seed, budget, birth="fresh", seed=options.seed).graph
    controls: list[Control] = []
    for name, graph in (("seed, not grown", seed), ("uniformly widened", wide)):
        with RunProgress(quiet=quiet, label="control") as progress:
            progress.line(f"control: {name}, {graph.parameter_count:,} parameters, {options.steps} steps")
            show = partial(_show, progress, options.steps)
            controls.append(Control(name, graph, train_static(graph, dataset.train, loss, options, on_step=show)))
    return controls


def _show(progress: RunProgress, total: int, step: int) -> None:
    progress.update(step + 1, total)
