"""A run of growth that takes a second or two, kept in a directory."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import nn

from archir.api import grow
from archir.captured import trace_on
from archir.growing.examples import Examples
from archir.growing.grow import Run
from archir.growing.log import Listener
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.ir.graph import Graph
from tests.models.equality import bits_equal

OPTIONS = GrowOptions(
    steps=60,
    growth_steps=2,
    batch_size=16,
    optimiser=OptimiserOptions("sgd", rate=0.1),
    first_growth=0.4,
    learn_steps=10,
    score_examples=40,
    recalibrate_batches=2,
    refine=8,
    evaluate_every=20,
    checkpoint_every=5,
)
"""Options under which both steps of growth are carried out."""

CONFIG = "# a small run\nseed = 0\n"


BUDGET = 90
"""Parameters of the grown network at most."""


@cache
def seed_of_run() -> Graph:
    """Return the network the run starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Dropout(0.1), nn.Linear(2, 3))
    return trace_on(net, examples(20, 0))


def is_same(found: Graph, wanted: Graph) -> bool:
    """Say whether two grown networks are the same, bit for bit."""
    return str(found) == str(wanted) and all(
        bits_equal(found.tensors[i], wanted.tensors[j]) for i, j in zip(found.tensors, wanted.tensors, strict=True)
    )


def examples(count: int, seed: int) -> Examples:
    """Return points of three classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    centres = 2 * torch.eye(3, 6)
    return Examples(centres[labels] + torch.randn(count, 6, generator=generator), labels)


def grow_small(
    graph: Graph,
    directory: Path,
    *,
    resume: bool = False,
    options: GrowOptions = OPTIONS,
    budget: int = BUDGET,
    data: int = 1,
    loss: str = "cross_entropy",
    listen: Listener | None = None,
) -> Run:
    """Carry out the run, or go on with it.

    Args:
        graph: the seed.
        directory: where it is kept.
        resume: go on.
        options: how it is trained and grown.
        budget: parameters at most.
        data: seed of the training examples.
        loss: name of the loss.
        listen: is told every event.
    """
    return grow(
        graph,
        train=examples(96, data),
        validation=examples(96, 2),
        budget=budget,
        loss=loss,
        options=options,
        directory=directory,
        config=CONFIG,
        resume=resume,
        on_event=listen,
    )


def go_on(directory: Path, result: Path) -> None:
    """Begin the run in a directory, or go on with it, and keep what it makes in a file."""
    run = grow_small(seed_of_run(), directory, resume=directory.joinpath("history.jsonl").is_file())
    run.graph.save(result)
