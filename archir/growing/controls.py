"""The controls of a run: networks that do not grow, trained on the same data in the same way, beside the run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from archir.cost import training_flops
from archir.growing.beside import beside, latest, train_beside
from archir.growing.data import Dataset
from archir.growing.device import find_device, moved
from archir.growing.engine import Engine
from archir.growing.expansion import widen_uniformly
from archir.growing.lock import lock_run
from archir.growing.log import Listener, Log
from archir.growing.options import GrowOptions
from archir.growing.ranks import entered_by_first
from archir.growing.run import CONTROLS, RunDirectory, open_run
from archir.ir.graph import Graph
from archir.scoring.budget import Budget
from archir.scoring.losses import Loss
from archir.scoring.processes import ALONE, Processes


@dataclass(frozen=True)
class Control:
    """A network that did not grow.

    Attributes:
        name: which one.
        graph: the program with its trained weights.
        module: the live module made of it, in evaluation mode.
        training_flops: FLOPs its training took; None if it was given trained.
        failure: why its training failed; empty if it did not. The weights are then the last that are known to be good.
    """

    name: str
    graph: Graph
    module: nn.Module
    training_flops: int | None = None
    failure: str = ""


def train_controls(
    seed: Graph,
    budget: Budget,
    spent: int,
    dataset: Dataset,
    loss: Loss,
    options: GrowOptions,
    directory: Path,
    *,
    unchanged: bool = True,
    on_event: Listener | None = None,
    processes: Processes = ALONE,
) -> list[Control]:
    """Train the seed, and the seed uniformly widened within the budget, its weights drawn anew.

    The widened one is trained twice: for as many steps as the run, and until it has spent as many FLOPs as all of the
    run, if these are more steps. Each is trained under the rules of the run: what was interrupted goes on from its last
    whole checkpoint, bit for bit, and what is finished is not trained again. One whose training fails says so.

    Args:
        seed: the seed with its first weights.
        budget: what the widened one is within.
        spent: FLOPs of the run, growth steps included.
        dataset: the examples; the test data are not read.
        loss: what is minimised.
        options: how they are trained, as the grown network was.
        directory: the directory of the run, which has finished.
        unchanged: train the seed as it is, too.
        on_event: is told every event as it happens, with the folder of the control as `beside`.
        processes: those that train them together.

    Raises:
        GrowError: the network cannot be widened within the budget.
        FileError: the directory cannot be written, holds no run, or is in use.
        ProcessError: another process has failed or ended.
    """
    seed = moved(seed, find_device(options.device))
    wide = widen_uniformly(seed, budget, birth="fresh", seed=options.seed).graph
    longer = math.ceil(spent / training_flops(wide, 1) / _examples_of_a_step(dataset, options))
    named = ("seed, not grown", "uniformly widened", "the same, trained for as many FLOPs")
    asked = list(zip(CONTROLS, named, (seed, wide, wide), (options.steps, options.steps, longer), strict=True))
    asked = asked[0 if unchanged else 1 : None if longer > options.steps else 2]
    controls: list[Control] = []
    with entered_by_first(processes, lambda: _held(directory)) as run:
        log = Log(None, on_event, processes)
        whole = Engine(seed, None, dataset.train, dataset.validation, budget, (), loss, options, run, log, processes)
        for folder, name, graph, steps in asked:
            engine = beside(replace(whole, seed=graph, options=replace(options, steps=steps)), folder)
            ended = train_beside(engine, lambda engine: (engine, latest(engine)), graph)
            trained, flops = ended.checkpoint.graph, ended.checkpoint.state["training_flops"]
            controls.append(Control(name, trained, trained.module().eval(), flops, ended.failure))
    return controls


@contextmanager
def _held(directory: Path) -> Iterator[RunDirectory]:
    with lock_run(directory):
        yield open_run(directory)


def _examples_of_a_step(dataset: Dataset, options: GrowOptions) -> float:
    """Return how many examples a batch has on average: all of a split are shared out among its batches."""
    count = dataset.train.count
    return options.batch_size if count is None else count / math.ceil(count / options.batch_size)
