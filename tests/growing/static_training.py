"""Trains a network that does not grow, as a control: the same steps, batches and options as a growing one."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import nn

from archir.growing.batches import Batches, stream
from archir.growing.examples import Examples
from archir.growing.options import GrowOptions
from archir.growing.range_test import find_rate
from archir.growing.trainer import Trainer
from archir.ir.graph import Graph
from archir.scoring.losses import Loss


def train_static(
    graph: Graph, examples: Examples, loss: Loss, options: GrowOptions, *, on_step: Callable[[int], None] | None = None
) -> nn.Module:
    """Return the module of a graph after it was trained for the steps of the options, without growth.

    Args:
        graph: the network with its first weights.
        examples: training examples.
        loss: what is minimised.
        options: how it is trained; what is about growth is not used.
        on_step: called with the number of each step.

    Raises:
        GrowError: the loss is not finite, or the model rejects a batch.
        ScoreError: outputs and targets do not fit the loss.
    """
    trainer = Trainer(graph, options.with_rate(find_rate(graph, examples, loss, options).rate))
    batches = Batches(examples, options.batch_size, options.seed, options.augmentation)
    torch.manual_seed(options.seed)
    trainer.train(
        itertools.islice(stream(batches), options.steps),
        loss,
        on_step=None if on_step is None else lambda step, _: on_step(step),
    )
    return trainer.averaged(examples).module.eval()
