"""How much loss is left after a part of the FLOPs of a trained network is pruned, before any training after it.

Three networks are trained on scikit-learn's digits: the residual and the plain one of the study of growth, and a
perceptron. From each, 30 % and 50 % of the FLOPs are pruned, by everyone on the same training examples: by archir in
one round and in several, with and without compensation, and by Torch-Pruning 1.6.1 with its magnitude, Taylor and
Hessian importance, at once over all layers, at the ratio that comes closest to the same FLOPs from below. `records`
holds every loss on the test data; the figures are means of the rise of the loss over seeds, in nats.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from archir.cost import cost
from archir.growing.batches import Batches
from archir.growing.data import Dataset, load_data
from archir.growing.examples import Examples
from archir.growing.grow import grow_graph
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.recalibration import recalibrate
from archir.growing.training import evaluate
from archir.ir.graph import Graph
from archir.scoring.budget import Budget
from archir.scoring.losses import find_loss
from archir.scoring.shrink import shrink
from examples.cifar10 import Net
from frontends.pytorch import trace
from passes.prune import Prune
from tools.growth.images import Plain
from tools.rival_pruning import IMPORTANCES, Scored, prune_until, score

LOSS = find_loss("cross_entropy")
RATIOS = (0.7, 0.5)
STEPS, BATCH, SEEN = 250, 64, 768


def _perceptron() -> nn.Module:
    sizes = (3 * 64, 64, 48, 32)
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], 10))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "residual": lambda: Net((12, 16, 24, 32)),
    "vgg": lambda: Plain(2),
    "mlp": _perceptron,
}

OURS: Mapping[str, tuple[str, int, bool]] = {
    "sampled_1": ("sampled", 1, False),
    "sampled_4": ("sampled", 4, False),
    "sampled_1_compensated": ("sampled", 1, True),
    "sampled_4_compensated": ("sampled", 4, True),
    "linearised_1": ("linearised", 1, False),
}
"""Strategy, rounds, and whether it is compensated."""


def run(trials: int = 3, only: str = "") -> Mapping[str, Any]:
    """Return the figures.

    Args:
        trials: number of seeds.
        only: networks, with commas between; all of them if empty.
    """
    torch.set_num_threads(1)
    records: list[dict[str, Any]] = []
    for name in only.split(",") if only else NETWORKS:
        for seed in range(trials):
            records += compare(name, seed)
    figures = {
        f"compression_{name}_{100 * (1 - ratio):.0f}_{arm}": sum(rises) / len(rises)
        for name, ratio, arm in dict.fromkeys((r["network"], r["ratio"], r["arm"]) for r in records)
        if (rises := [r["rise"] for r in records if (r["network"], r["ratio"], r["arm"]) == (name, ratio, arm)])
    }
    return {**figures, "records": records}


def compare(name: str, seed: int) -> list[dict[str, Any]]:
    """Return what everyone makes of one network."""
    data = _digits(seed)
    torch.manual_seed(seed)
    net = NETWORKS[name]()
    graph = trace(net, (data.train.take(slice(4)).inputs,))
    options = GrowOptions(
        steps=STEPS,
        batch_size=BATCH,
        growth_steps=0,
        evaluate_every=0,
        seed=seed,
        optimiser=OptimiserOptions("sgd", 0.05),
    )
    size = Budget(parameters=graph.parameter_count)
    run = grow_graph(
        graph, train=data.train, validation=data.validation, budget=size, morphisms=(Prune(),), options=options
    )
    net.load_state_dict(run.graph.module().state_dict())
    seen, test = data.train.take(slice(0, SEEN)), data.test
    scored = score(net, seen, LOSS)
    before, found = evaluate(run.model, test, LOSS).loss, []
    arms: dict[str, Callable[[float], Graph]] = {
        arm: partial(_ours, run.graph, seen, *how) for arm, how in OURS.items()
    }
    arms |= {arm: partial(_theirs, scored, seen, arm) for arm in IMPORTANCES}
    for ratio in RATIOS:
        for arm, shrunk in arms.items():
            start = time.process_time()
            small = shrunk(ratio)
            seconds = time.process_time() - start
            fresh = small.module()
            if name != "mlp":
                recalibrate(fresh, Batches(seen, BATCH))
            loss = evaluate(small.module(), test, LOSS).loss
            found.append(
                {
                    "network": name,
                    "seed": seed,
                    "ratio": ratio,
                    "arm": arm,
                    "flops": cost(small).flops / cost(graph).flops,
                    "parameters": cost(small).parameters / cost(graph).parameters,
                    "before": before,
                    "rise": loss - before,
                    "rise_recalibrated": evaluate(fresh, test, LOSS).loss - before,
                    "seconds": seconds,
                }
            )
            print(found[-1], file=sys.stderr, flush=True)
    return found


def _ours(graph: Graph, seen: Examples, strategy: str, rounds: int, compensates: bool, ratio: float) -> Graph:
    batches = list(Batches(seen, BATCH))
    return shrink(
        graph,
        Budget(flops=ratio),
        prune=Prune(),
        loss=LOSS,
        batches=batches,
        compensate=batches if compensates else None,
        strategy=strategy,
        rounds=rounds,
    ).graph


def _theirs(scored: Scored, seen: Examples, importance: str, ratio: float) -> Graph:
    """Return what Torch-Pruning leaves at the smallest pruning ratio that comes down to a part of the FLOPs."""
    count = import_module("torch_pruning").utils.count_ops_and_params
    x = seen.inputs[:4]  # type: ignore[index]
    limit = ratio * count(scored.net, x)[0]
    return trace(prune_until(scored, x, importance, lambda small: bool(count(small, x)[0] <= limit)), (x,))


def _digits(seed: int) -> Dataset:
    """Return the digits in three equal channels, a third of them to test on."""
    return load_data("digits", seed=seed, test=0.33).changed(_coloured)


def _coloured(split: Examples) -> Examples:
    assert isinstance(split.inputs, torch.Tensor)
    return replace(split, inputs=split.inputs.expand(-1, 3, -1, -1).contiguous())
