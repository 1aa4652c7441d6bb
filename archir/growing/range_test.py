"""Finds a learning rate by a range test: a fork of the network is trained at rising rates until its loss rises."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from archir.errors import DivergenceError
from archir.growing.batches import Batches, stream
from archir.growing.compiled import OFF
from archir.growing.examples import Split
from archir.growing.optimisers import AUTO
from archir.growing.options import GrowOptions
from archir.growing.ranks import in_step
from archir.growing.trainer import Trainer
from archir.ir.graph import Graph
from archir.scoring.losses import Loss
from archir.scoring.processes import ALONE, Processes

FEWEST, MOST = 40, 100
"""Steps of a range test: a quarter of those of the training, and no fewer and no more than these."""

RANGES = {"sgd": (1e-4, 10.0), "adamw": (1e-5, 1.0)}
"""The lowest and the highest rate that are tried, by optimiser."""

USUAL = {"sgd": 0.1, "adamw": 3e-3}
"""The rates at most where the loss falls at none of those tried: the network is trained already, or learns late."""

BELOW = 10.0
"""How far below the rate of the least loss the rate that is taken lies."""

CLEAR = 0.02
"""The part of the loss that a fall or a rise of it has to be, or it is noise."""


@dataclass(frozen=True)
class FoundRate:
    """A learning rate that was found or given.

    Attributes:
        rate: the rate.
        steps: optimiser steps it took to find it; 0 if it was given.
    """

    rate: float
    steps: int


def find_rate(
    graph: Graph, examples: Split, loss: Loss, options: GrowOptions, *, processes: Processes = ALONE
) -> FoundRate:
    """Return the learning rate of the options; where it is `auto`, one that is found on a fork of the network.

    The rate rises exponentially from step to step over the range of the optimiser. The loss is smoothed over a tenth
    of the steps. What is taken is a tenth of the rate at which it is least; where it never falls, a tenth of that at
    which it begins to rise, and no more than what is usual. The test sees the batches of the training, and draws by its
    seed.

    Args:
        graph: the network with its first weights, which are left as they are.
        examples: training examples.
        loss: what is minimised.
        options: how the network is trained; the schedule and the average play no role, and nothing is compiled.
        processes: those that train together.

    Raises:
        GrowError: the model rejects a batch, or the loss has no gradient.

    Source: Smith, Cyclical Learning Rates for Training Neural Networks (2017), section 3.3; the rule is ours.
    """
    if options.optimiser.rate != AUTO:
        return FoundRate(options.optimiser.known_rate, 0)
    lowest, highest = RANGES[options.optimiser.name]
    steps = min(MOST, max(FEWEST, options.steps // 4))
    trainer = Trainer(graph, replace(options.with_rate(lowest), ema=0.0, compile=OFF), processes=processes)
    trainer.rate = lambda step: lowest * (highest / lowest) ** (step / (steps - 1))
    torch.manual_seed(processes.own_seed(options.seed))
    batches = Batches(examples, options.batch_size, options.seed, options.augmentation, trainer.device, processes)
    kept, mean, smooth, done = 1 - 10 / steps, 0.0, list[float](), 0
    for batch in in_step(processes, stream(batches, count=steps)):
        try:
            found = trainer.train([batch], loss, first_step=done).loss
        except DivergenceError:
            break
        done += 1
        if found is not None:
            mean = kept * mean + (1 - kept) * found
        smooth.append(mean / (1 - kept**done))
        if smooth[-1] > 2 * smooth[0]:
            break
    if not smooth:
        return FoundRate(USUAL[options.optimiser.name], done)
    least = min(smooth)
    if least < smooth[0] - CLEAR * abs(smooth[0]):
        return FoundRate(trainer.rate(smooth.index(least)) / BELOW, done)
    edge = max(step for step, value in enumerate(smooth) if value <= least + CLEAR * abs(least))
    return FoundRate(min(trainer.rate(edge) / BELOW, USUAL[options.optimiser.name]), done)
