"""The controls of a run: networks that do not grow, trained on the same data in the same way."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from archir.cli.console import RunProgress
from archir.cost import training_flops
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
        training_flops: FLOPs its training took; None if it was given trained.
    """

    name: str
    graph: Graph
    module: nn.Module
    training_flops: int | None = None


def train_controls(
    seed: Graph,
    budget: Budget,
    spent: int,
    dataset: Dataset,
    loss: Loss,
    options: GrowOptions,
    *,
    quiet: bool,
) -> list[Control]:
    """Train the seed, and the seed uniformly widened within the budget, its weights drawn anew.

    The widened one is trained twice: for as many steps as the run, and until it has spent as many FLOPs as all of the
    run, if these are more steps.

    Args:
        seed: the seed with its first weights.
        budget: what the widened one is within.
        spent: FLOPs of the run, growth steps included.
        dataset: the examples; the test data are not read.
        loss: what is minimised.
        options: how they are trained, as the grown network was.
        quiet: show no progress.

    Raises:
        GrowError: the loss is not finite.
    """
    wide = widen_uniformly(seed, budget, birth="fresh", seed=options.seed).graph
    longer = math.ceil(spent / training_flops(wide, 1) / _examples_of_a_step(dataset, options))
    trained = [("seed, not grown", seed, options.steps), ("uniformly widened", wide, options.steps)]
    if longer > options.steps:
        trained.append(("the same, trained for as many FLOPs", wide, longer))
    controls: list[Control] = []
    for name, graph, steps in trained:
        with RunProgress(quiet=quiet, label="control") as progress:
            progress.line(f"control: {name}, {graph.parameter_count:,} parameters, {steps} steps")
            lasting, show = replace(options, steps=steps), partial(_show, progress, steps)
            module = train_static(graph, dataset.train, loss, lasting, on_step=show)
            flops = training_flops(graph, round(steps * _examples_of_a_step(dataset, options)))
            controls.append(Control(name, graph, module, flops))
    return controls


def _examples_of_a_step(dataset: Dataset, options: GrowOptions) -> float:
    """Return how many examples a batch has on average: all of a split are shared out among its batches."""
    return len(dataset.train) / math.ceil(len(dataset.train) / options.batch_size)


def _show(progress: RunProgress, total: int, step: int) -> None:
    progress.update(step + 1, total)
