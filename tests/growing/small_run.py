"""A small run of growth: a network, its data and options, for the tests of the engine and of its steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from archir.growing.examples import Examples
from archir.growing.grow import Run, grow_graph
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.ir.graph import Graph
from archir.rewrite.morphism import Morphism
from archir.scoring.budget import Budget
from passes.prune import Prune
from passes.split import Split

OPTIONS = GrowOptions(
    steps=60,
    expansion=1.0,
    growth_steps=2,
    first_growth=0.1,
    batch_size=32,
    optimiser=OptimiserOptions("sgd", rate=0.05),
    learn_steps=15,
    score_examples=60,
    recalibrate_batches=4,
    refine=24,
    evaluate_every=20,
    checkpoint_every=25,
)
MORPHISMS = (Split(), Prune())


class Seed(nn.Module):
    """A small convolutional net with a residual connection, batch normalisation and dropout."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU())
        self.outer = nn.Conv2d(2 * width, width, 3, padding=1)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.outer(self.inner(x)))
        logits: torch.Tensor = self.head(self.dropout(x.mean((2, 3))))
        return logits


def mlp(width: int) -> nn.Module:
    """A perceptron of two hidden layers for 20 features and 50 classes."""
    return nn.Sequential(
        nn.Linear(20, width), nn.ReLU(), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 50)
    )


def data(count: int, seed: int) -> Examples:
    """Images of three classes: a bright row, column or diagonal in noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    images = torch.randn(count, 1, 6, 6, generator=generator)
    masks = torch.stack([torch.eye(6)[2].expand(6, 6), torch.eye(6)[2].expand(6, 6).T, torch.eye(6)])
    return Examples(images + 1.5 * masks[labels][:, None], labels)


def grow(
    graph: Graph,
    budget: int = 900,
    options: GrowOptions = OPTIONS,
    morphisms: Sequence[Morphism] = MORPHISMS,
    **rest: object,
) -> Run:
    return grow_graph(
        graph,
        train=data(400, 1),
        validation=data(200, 2),
        budget=Budget(parameters=budget),
        morphisms=morphisms,
        options=options,
        **rest,  # type: ignore[arg-type]
    )
