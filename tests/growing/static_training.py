"""Trains a network that does not grow in one plain loop: what the engine without growth steps has to come to."""

from __future__ import annotations

import itertools

from torch import nn

from archir.growing.batches import Batches, stream
from archir.growing.examples import Split
from archir.growing.options import GrowOptions
from archir.growing.range_test import find_rate
from archir.growing.trainer import Trainer
from archir.ir.graph import Graph
from archir.scoring.losses import Loss


def train_static(graph: Graph, examples: Split, loss: Loss, options: GrowOptions) -> nn.Module:
    """Return the module of a graph after the steps of the options, as it is evaluated."""
    trainer = Trainer(graph, options.with_rate(find_rate(graph, examples, loss, options).rate))
    batches = Batches(examples, options.batch_size, options.seed, options.augmentation)
    trainer.train(itertools.islice(stream(batches), options.steps), loss)
    return trainer.averaged(examples).module.eval()
