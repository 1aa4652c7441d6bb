"""What scoring costs, as ratios of work done in the same run: learning, screening, tangents, brute force, memory.

Except for brute force and memory, the network is a ResNet-20 on 128 images of 32x32; the candidates are all splits and
prunes of all its widths. Times are wall-clock medians of rounds in which everything takes its turn, so that a busy
machine disturbs all alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from archir.axes.infer import analyse
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.rewrite.perturbation import Edge
from archir.scoring.chunks import singly
from archir.scoring.downstream import Downstream
from archir.scoring.families import find_families
from archir.scoring.forward import Linearisation, Tangents
from archir.scoring.learn import Learner
from archir.scoring.objective import make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.program import Program
from archir.scoring.reduction import Reduction
from archir.scoring.refine import refine
from archir.scoring.screen import screen
from frontends.pytorch import trace
from passes.prune import Prune
from passes.split import Split
from tests.models.vision import BasicBlock, ResNet20, conv_block
from tools.benchmarks import brute_force, memory
from tools.timing import medians, seconds

ROUNDS, BATCH = 7, 128
REFINED, CHUNK, SMALL = 32, 8, 4


def run() -> Mapping[str, float]:
    """Return the figures."""
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
    graph = trace(ResNet20(), (images[:2],))
    families, _ = find_families(graph, [Split(), Prune()])
    perturbations = [f.perturbation for f in families]
    objective = make_objective(graph, "cross_entropy")
    learner = Learner(objective, perturbations, ScoreOptions(steps=1000))
    thetas = learner.thetas
    module = graph.module().train()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)

    def train() -> None:
        optimiser.zero_grad()
        torch.autograd.backward(F.cross_entropy(module(images), labels))
        optimiser.step()

    steps = medians(
        {
            "train": train,
            "learn": lambda: learner.step((images, labels)),
            "screen": lambda: screen(objective, perturbations, thetas, [(images, labels)]),
        },
        ROUNDS,
    )
    deep = trace(_deep(), (images[:2],))
    analysis = statistics.median(seconds(partial(analyse, deep)) for _ in range(ROUNDS))
    return {
        "learn_step_over_train_step": steps["learn"] / steps["train"],
        "screen_step_over_train_step": steps["screen"] / steps["train"],
        **_tangents(graph, images),
        **_chunks(images, labels),
        "train_step_seconds": steps["train"],
        "candidates": sum(p.members for p in perturbations),
        "analysis_nodes": len(deep),
        "analysis_seconds": analysis,
        "analysis_seconds_500_nodes": analysis * 500 / len(deep),
        **brute_force.run(),
        **memory.run(),
    }


def _deep() -> nn.Module:
    """Return a residual network whose graph has about 500 nodes."""
    blocks = [BasicBlock(8, 8) for _ in range(26)]
    return nn.Sequential(conv_block(3, 8), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def _tangents(graph: Graph, images: torch.Tensor) -> dict[str, float]:
    """Return the time of a tangent pass over that of a forward pass of what lies downstream, over all split families.

    The forward pass is measured both on tensors laid out as the user's model has them and as the scorer has them, with
    channels last.
    """
    families, _ = find_families(graph, [Split()])
    passes: dict[str, Callable[[], object]] = {}
    for number, family in enumerate(families):
        p = family.perturbation
        downstream = Downstream(graph, p.edges)
        program = Program(graph, keep=downstream.needs | p.needs)
        values = program(program.bind(images)).values
        plain = {v: t.contiguous() if isinstance(t, torch.Tensor) else t for v, t in values.items()}
        linear = Linearisation(downstream, values)
        with torch.no_grad():
            deltas = p.delta(values, p.initial_theta(values, 0))
        start: dict[Edge, Tangents] = {}
        for edge, delta in deltas.items():
            reduction = Reduction(p.edges[edge], p.members, delta.shape, len(images))
            start[edge] = Tangents((delta * reduction.mask([0], delta))[None])
        passes |= {
            f"tangent {number}": partial(linear, start),
            f"plain {number}": partial(_forward, downstream, plain),
            f"laid out {number}": partial(_forward, downstream, values),
        }
    times = medians(passes, ROUNDS)
    total = {
        kind: sum(t for name, t in times.items() if name.startswith(kind)) for kind in ("tangent", "plain", "laid")
    }
    return {
        "tangent_over_tail_forward": total["tangent"] / total["plain"],
        "tangent_over_tail_forward_channels_last": total["tangent"] / total["laid"],
    }


def _chunks(images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return the time of refining candidates in chunks over that of one after another, on a GPU if there is one.

    Once on all images, once on a few.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = images.to(device), labels.to(device)
    graph = trace(ResNet20().to(device), (images[:2],))
    perturbations = [f.perturbation for f in find_families(graph, [Split(), Prune()])[0]]
    objective = make_objective(graph, "cross_entropy")
    needs = frozenset(v for p in perturbations for v in p.needs)
    values = objective.program.tapped(keep=needs)(objective.program.bind(images)).values
    thetas = [p.initial_theta(values, 0) for p in perturbations]
    members = [(f, m) for f, p in enumerate(perturbations) for m in range(p.members)]
    chosen = singly(members[:: len(members) // REFINED][:REFINED])
    batches = {n: [(images[:n], labels[:n])] for n in (SMALL, len(images))}
    times = medians(
        {
            f"{n} {chunk}": partial(refine, objective, perturbations, thetas, chosen, batch, chunk=chunk)
            for n, batch in batches.items()
            for chunk in (1, CHUNK)
        },
        ROUNDS // 2,
    )
    small, large = (times[f"{n} {CHUNK}"] / times[f"{n} 1"] for n in batches)
    return {"vmapped_over_looped_tangent": large, f"vmapped_over_looped_tangent_{SMALL}_images": small}


def _forward(downstream: Downstream, values: Mapping[Value, torch.Tensor]) -> None:
    with torch.no_grad():
        for operator in downstream.operators:
            operator([values[v] for v in operator.operands])
