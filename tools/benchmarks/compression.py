"""How much loss is left after a part of the FLOPs of a trained network is pruned, before any training after it.

Three networks are trained on scikit-learn's digits: the residual and the plain one of the study of growth, and a
perceptron. From each, 30 % and 50 % of the FLOPs are pruned, by everyone on the same training examples: by archir in
one round and in several, with and without compensation, and by Torch-Pruning 1.6.1 with its magnitude, Taylor and
Hessian importance, at once over all layers, at the ratio that comes closest to the same FLOPs from below. `records`
holds every loss on the test data; the figures are means of the rise of the loss over seeds, in nats.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from archir.cost import cost
from archir.growing.batches import Batches
from archir.growing.data import Dataset, load_data
from archir.growing.examples import Examples
from archir.growing.grow import grow_graph
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.training import evaluate, recalibrate
from archir.ir.graph import Graph
from archir.scoring.budget import Budget
from archir.scoring.losses import find_loss
from archir.scoring.shrink import shrink
from examples.cifar10 import Net
from frontends.pytorch import trace
from passes.prune import Prune
from tools.growth.images import Plain

LOSS = find_loss("cross_entropy")
RATIOS = (0.7, 0.5)
STEPS, BATCH, SEEN, EACH = 250, 64, 768, 256


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

THEIRS = {
    "magnitude": "GroupMagnitudeImportance",
    "taylor": "GroupTaylorImportance",
    "hessian": "GroupHessianImportance",
}


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
    graph = trace(net, (data.train.inputs[:4],))  # type: ignore[index]
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
    scored = _scored(net, seen)
    before, found = evaluate(run.model, test, LOSS).loss, []
    arms: dict[str, Callable[[float], Graph]] = {
        arm: partial(_ours, run.graph, seen, *how) for arm, how in OURS.items()
    }
    arms |= {arm: partial(_theirs, scored, seen, importance) for arm, importance in THEIRS.items()}
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


@dataclass(frozen=True)
class _Scored:
    """A network with what Torch-Pruning scores it by: gradients of the loss, and mean squares of those of examples.

    Attributes:
        net: the network.
        gradients: by parameter name.
        squares: by parameter name.
    """

    net: nn.Module
    gradients: Mapping[str, torch.Tensor]
    squares: Mapping[str, torch.Tensor]


def _scored(net: nn.Module, seen: Examples) -> _Scored:
    x, y = seen.inputs, seen.targets
    assert isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)
    net.eval()
    names, weights = zip(*net.named_parameters(), strict=True)
    gradients = torch.autograd.grad(F.cross_entropy(net(x), y), weights)
    squares = [torch.zeros_like(p) for p in weights]
    for i in range(EACH):
        loss = F.cross_entropy(net(x[i : i + 1]), y[i : i + 1])
        for total, g in zip(squares, torch.autograd.grad(loss, weights), strict=True):
            total += g.square() / EACH
    return _Scored(net, dict(zip(names, gradients, strict=True)), dict(zip(names, squares, strict=True)))


def _theirs(scored: _Scored, seen: Examples, importance: str, ratio: float) -> Graph:
    """Return what Torch-Pruning leaves at the smallest pruning ratio that comes down to a part of the FLOPs."""
    count = import_module("torch_pruning").utils.count_ops_and_params
    x = seen.inputs[:4]  # type: ignore[index]
    limit = ratio * count(scored.net, x)[0]
    low, high, best = 0.0, 0.9, None
    for _ in range(9):
        middle = (low + high) / 2
        small = _pruned(scored, x, importance, middle)
        if count(small, x)[0] <= limit:
            high, best = middle, small
        else:
            low = middle
    assert best is not None
    return trace(best, (x,))


def _pruned(scored: _Scored, x: torch.Tensor, importance: str, ratio: float) -> nn.Module:
    library = import_module("torch_pruning")
    small, scorer = copy.deepcopy(scored.net), getattr(library.importance, importance)()
    for name, parameter in small.named_parameters():
        parameter.grad = scored.gradients[name].clone()
        if importance == "GroupHessianImportance":  # what its own `accumulate_grad` keeps is that of the last example
            scorer._accu_grad[parameter], scorer._counter[parameter] = scored.squares[name].clone(), 1
    head = [m for m in small.modules() if isinstance(m, nn.Linear)][-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = library.pruner.BasePruner(
            small, x, scorer, global_pruning=True, pruning_ratio=ratio, max_pruning_ratio=0.95, ignored_layers=[head]
        )
        pruner.step()
    return small


def _digits(seed: int) -> Dataset:
    """Return the digits in three equal channels, a third of them to test on."""
    found = load_data("digits", seed=seed, test=0.33)
    return replace(
        found,
        train=_coloured(found.train),
        validation=_coloured(found.validation),
        read_test=lambda: _coloured(found.test),
    )


def _coloured(split: Examples) -> Examples:
    assert isinstance(split.inputs, torch.Tensor)
    return replace(split, inputs=split.inputs.expand(-1, 3, -1, -1).contiguous())
