"""Finds a learning rate by a range test: a fork of the network is trained at rising rates until its loss rises."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch

from archir.errors import DivergenceError
from archir.growing.batches import Batches, stream
from archir.growing.examples import Examples
from archir.growing.optimisers import AUTO
from archir.growing.options import GrowOptions
from archir.growing.trainer import Trainer
from archir.ir.graph import Graph
from archir.scoring.losses import Loss

STEPS = 100
"""Steps of a range test, at most."""

RANGES = {"sgd": (1e-4, 10.0), "adamw": (1e-5, 1.0)}
"""The lowest and the highest rate that are tried, by optimiser."""

USUAL = {"sgd": 0.1, "adamw": 3e-3}
"""The rates where a test says nothing: the loss fell at none of those tried."""

BELOW = 10.0
"""How far below the rate of the least loss the rate that is taken lies."""

FALL = 0.02
"""The part by which the loss has to fall for the test to say something."""


@dataclass(frozen=True)
class FoundRate:
    """A learning rate that was found or given.

    Attributes:
        rate: the rate.
        steps: optimiser steps it took to find it; 0 if it was given.
    """

    rate: float
    steps: int


def find_rate(graph: Graph, examples: Examples, loss: Loss, options: GrowOptions) -> FoundRate:
    """Return the learning rate of the options; where it is `auto`, one that is found on a fork of the network.

    The rate rises exponentially from step to step over the range of the optimiser. The loss is smoothed over a tenth
    of the steps. What is taken is a tenth of the rate at which it is least, or what is usual if it never falls.
    The test sees the batches, the augmentation and the gradient clipping of the training, and draws by its seed.

    Args:
        graph: the network with its first weights, which are left as they are.
        examples: training examples.
        loss: what is minimised.
        options: how the network is trained; the schedule and the average play no role.

    Raises:
        GrowError: the model rejects a batch, or the loss has no gradient.

    Source: Smith, Cyclical Learning Rates for Training Neural Networks (2017), section 3.3; the rule is ours.
    """
    if options.optimiser.rate != AUTO:
        return FoundRate(options.optimiser.known_rate, 0)
    lowest, highest = RANGES[options.optimiser.name]
    steps = max(2, min(STEPS, options.steps))
    trainer = Trainer(graph, replace(options.with_rate(lowest), ema=0.0))
    trainer.rate = lambda step: lowest * (highest / lowest) ** (step / (steps - 1))
    torch.manual_seed(options.seed)
    batches = Batches(examples, options.batch_size, options.seed, options.augmentation)
    kept, mean, smooth, done = 1 - 1 / max(2.0, steps / 10), 0.0, list[float](), 0
    for batch in itertools.islice(stream(batches), steps):
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
    best = min(range(len(smooth)), key=smooth.__getitem__, default=0)
    says = bool(smooth) and smooth[best] < smooth[0] - FALL * abs(smooth[0])
    return FoundRate(trainer.rate(best) / BELOW if says else USUAL[options.optimiser.name], done)
