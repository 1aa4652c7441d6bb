"""What rewriting costs: 256 splits of a ResNet-50 over one of its training steps, and 100 rewrites of 10,000 nodes.

Times are wall-clock medians of rounds in which everything takes its turn, so that a busy machine disturbs all alike.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F

from archir.api import apply
from archir.axes.infer import infer_widths
from archir.ir.graph import Graph
from archir.ir.inputs import random_inputs
from archir.ir.node import Value
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.reference import refer
from archir.rewrite.spec import format_specs
from frontends.pytorch import trace
from passes.deepen import Deepen
from passes.prune import Prune
from passes.residual_branch import ResidualBranch
from passes.split import Split
from passes.widen import Widen
from tools.residual import residual_network
from tools.resnet import resnet50
from tools.timing import medians, seconds

ROUNDS, BATCH, SIZE, UNITS = 5, 32, 64, 256
LAYERS, REWRITES = 2500, 100


def run() -> Mapping[str, float]:
    """Return the figures."""
    return _splits() | _sequence()


def _splits() -> dict[str, float]:
    """Return the times of a training step of a ResNet-50, and of splitting 256 of its units, text and all.

    They are spread evenly over all its widths, one pass for each; or all of them are in its widest, in one pass.
    """
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(0, 1000, (BATCH,))
    graph = trace(resnet50(), (images[:2],))
    module = graph.module().train()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)

    def train() -> None:
        optimiser.zero_grad()
        torch.autograd.backward(F.cross_entropy(module(images), labels))
        optimiser.step()

    widths = list(infer_widths(graph))
    shares = [UNITS // len(widths) + (i < UNITS % len(widths)) for i in range(len(widths))]
    spread = format_specs([Split(w.name, tuple(range(n))) for w, n in zip(widths, shares, strict=True)])
    one = format_specs([Split(max(widths, key=lambda w: w.size).name, tuple(range(UNITS)))])
    copies = iter([graph.with_history(str(i)) for i in range(2 * ROUNDS + 2)])  # what is known of a graph is kept
    times = medians(
        {
            "train": train,
            "spread": lambda: apply(next(copies), spread),
            "one": lambda: apply(next(copies), one),
        },
        ROUNDS,
    )
    return {
        "apply_over_train_step": times["spread"] / times["train"],
        "apply_to_one_width_over_train_step": times["one"] / times["train"],
        "split_units": UNITS,
        "split_widths": len(widths),
        "apply_seconds": times["spread"],
        "train_step_seconds": times["train"],
    }


def _sequence() -> dict[str, float]:
    """Return the time of random rewrites of a large residual network, drawn and applied one after another."""
    graph = residual_network(LAYERS)
    args, kwargs = random_inputs(graph, BATCH)
    module = graph.module()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.01)

    def train() -> None:
        optimiser.zero_grad()
        torch.autograd.backward(module(*args, **kwargs).square().mean())
        optimiser.step()

    totals: list[float] = []
    steps: list[float] = []
    for seed in range(ROUNDS):
        steps.append(seconds(train))
        totals.append(seconds(partial(_rewrite, graph.with_history(str(seed)), random.Random(seed))))
    total, step = statistics.median(totals), statistics.median(steps)
    return {
        "sequence_nodes": len(graph),
        "sequence_rewrites": REWRITES,
        "sequence_seconds": total,
        "sequence_over_train_step": total / step,
        "rewrite_over_train_step": total / step / REWRITES,
    }


def _rewrite(graph: Graph, dice: random.Random) -> None:
    """Apply random rewrites one after another."""
    for _ in range(REWRITES):
        graph = apply(graph, draw(graph, dice))


def draw(graph: Graph, dice: random.Random) -> Morphism:
    """Return a random rewrite that applies: of the units of a width, or a splice after a value."""
    while True:
        found: tuple[Morphism, ...]
        if dice.random() < 0.6:
            width = dice.choice(infer_widths(graph).free)
            units = (dice.randrange(width.size),)
            found = (Split(width.name, units), Prune(width.name, units), Widen(width.name))
        else:
            value = refer(graph, Value(dice.choice(graph.structure.calls).id))
            found = (ResidualBranch(value), Deepen(value))
        drawn = dice.choice(found)
        if not isinstance(drawn.match(graph), Miss):
            return drawn
