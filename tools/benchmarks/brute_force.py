"""How much faster scoring is than brute force, which applies every candidate and evaluates the loss.

The network is a perceptron of two hidden layers on 1,024 examples; the candidates are the splits and prunes of all its
units, 100, 1,000 and 10,000 of them, θ given to both. Brute force is timed on a sample of the candidates and scaled to
all of them. What is known of a graph is kept, so each scoring is given a new copy and pays for its analysis, too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from archir.ir.graph import Graph
from archir.rewrite.pipeline import apply_together
from archir.rewrite.theta import Theta
from archir.scoring.families import Family, find_families
from archir.scoring.objective import make_objective
from archir.scoring.program import Program
from archir.scoring.screen import screen
from frontends.pytorch import trace
from passes.prune import Prune
from passes.split import Split

COUNTS = (100, 1_000, 10_000)
EXAMPLES, FEATURES, CLASSES = 1024, 64, 10
SAMPLE, ROUNDS = 24, 5

Batch = tuple[torch.Tensor, torch.Tensor]


def run() -> Mapping[str, float]:
    """Return the figures."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(EXAMPLES, FEATURES, generator=generator)
    batch = inputs, torch.randint(0, CLASSES, (EXAMPLES,), generator=generator)
    figures: dict[str, float] = {}
    for count in COUNTS:
        torch.manual_seed(0)
        figures |= _figures(trace(_perceptron(count // 4), (inputs[:2],)), batch, count)
    return figures


def _perceptron(width: int) -> nn.Module:
    """Return a network with two hidden layers, four candidates for each unit of a width."""
    layers = [nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)]
    return nn.Sequential(*layers)


def _figures(graph: Graph, batch: Batch, count: int) -> dict[str, float]:
    """Return the time of both, and how many times faster scoring is."""
    families, _ = find_families(graph, [Split(), Prune()])
    program = Program(graph, keep=frozenset(v for f in families for v in f.perturbation.needs))
    values = program(program.bind(batch[0])).values
    thetas: list[Theta] = [f.perturbation.initial_theta(values, 0) for f in families]
    members = [(f, m) for f, family in enumerate(families) for m in range(family.perturbation.members)]
    if len(members) != count:
        raise RuntimeError(f"{len(members)} candidates, not {count}")
    copies = [graph.with_history(str(i)) for i in range(ROUNDS + 1)]
    scoring = [_seconds_of_scoring(copy, batch, thetas) for copy in copies][1:]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    parts = [_seconds_of_brute_force(families, thetas, members[i], batch) for i in order[: SAMPLE + 1]][1:]
    scored, applied, evaluated = (statistics.median(t) for t in (scoring, *zip(*parts, strict=True)))
    return {
        f"speed_over_brute_force_{count}": count * (applied + evaluated) / scored,
        f"speed_over_evaluations_alone_{count}": count * evaluated / scored,
        f"scoring_seconds_{count}": scored,
        f"brute_force_seconds_{count}_scaled": count * (applied + evaluated),
    }


def _seconds_of_scoring(graph: Graph, batch: Batch, thetas: list[Theta]) -> float:
    """Return the time it takes to find all candidates of a graph and to screen them."""
    start = time.perf_counter()
    families, _ = find_families(graph, [Split(), Prune()])
    screen(make_objective(graph, "cross_entropy"), [f.perturbation for f in families], thetas, [batch])
    return time.perf_counter() - start


def _seconds_of_brute_force(
    families: list[Family], thetas: list[Theta], place: tuple[int, int], batch: Batch
) -> tuple[float, float]:
    """Return the time it takes to apply one candidate, and that to evaluate the loss of what it gives."""
    family, member = place
    found = families[family]
    members = [(found.site.members[member], thetas[family] or None)]
    start = time.perf_counter()
    module = apply_together(found.graph, members).module().eval()
    applied = time.perf_counter()
    with torch.no_grad():
        F.cross_entropy(module(batch[0]), batch[1])
    return applied - start, time.perf_counter() - applied
