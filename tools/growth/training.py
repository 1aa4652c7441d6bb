"""Trains a network to the end, and looks at the validation split on the way."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from archir.cost import training_flops
from archir.growing.batches import Batches, stream
from archir.growing.trainer import Trainer
from archir.growing.training import evaluate
from archir.ir.graph import Graph
from tools.growth.tasks import Task

LOOKS = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
"""The parts of the steps after which a network is looked at."""


@dataclass(frozen=True)
class Point:
    """A network on its way.

    Attributes:
        step: optimiser steps done.
        training_flops: FLOPs spent so far.
        loss: on the validation split.
        accuracy: likewise.
    """

    step: int
    training_flops: int
    loss: float
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an arm ends with.

    Attributes:
        graph: the program with its trained weights.
        module: the trained module.
        training_flops: all FLOPs that it took to get there, those of looking at the validation split for the curve
            alone excepted.
        curve: the network on its way.
        notes: what else is worth keeping, as JSON can hold it.
    """

    graph: Graph
    module: nn.Module
    training_flops: int
    curve: tuple[Point, ...]
    notes: Mapping[str, Any] = field(default_factory=dict)


def train_static(task: Task, graph: Graph, seed: int, rate: float) -> Outcome:
    """Train a network that does not grow for all the steps of a task, as the controls of a run are trained.

    Raises:
        GrowError: the loss is not finite.
    """
    options = task.training(seed, rate)
    trainer, step, flops = Trainer(graph, options), 0, 0
    batches = stream(Batches(task.dataset.train, options.batch_size, options.seed, options.augmentation))
    curve: list[Point] = []
    torch.manual_seed(options.seed)
    for stop in sorted({max(1, round(part * options.steps)) for part in LOOKS}):
        some = itertools.islice(batches, stop - step)
        done = trainer.train(some, task.loss, first_step=step)
        step, flops = stop, flops + training_flops(graph, done.examples)
        found = evaluate(trainer.averaged(task.dataset.train).module, task.dataset.validation, task.loss)
        curve.append(Point(step, flops, found.loss, found.accuracy))
    trainer = trainer.averaged(task.dataset.train)
    return Outcome(trainer.graph(), trainer.module.eval(), flops, tuple(curve))
