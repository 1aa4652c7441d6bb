"""Scores of processes that share the batches out are those of one process that has them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from archir.api import score
from archir.kinds import Kinds
from archir.scoring.objective import Curvature
from archir.scoring.options import ScoreOptions
from archir.scoring.scores import Scores
from archir.scoring.sets import SCALED_ON, SMALLEST_SCALE
from frontends.pytorch import trace
from passes.prune import Prune
from passes.residual_branch import ResidualBranch
from passes.split import Split
from passes.widen import Widen

WORLD, LEARN_ROUNDS = 2, 3
Examples = Sequence[tuple[Tensor, Tensor]]


def batches(rounds: int = 1) -> Examples:
    """Return batches of several sizes; every second belongs to one of two ranks."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 5, generator=generator, dtype=torch.float64), torch.randint(0, 3, (n,), generator=generator))
        for n in (12, 9, 7, 16) * rounds
    ]


def merged(shared: Examples) -> Examples:
    """Return the batches of both ranks, those they have at one time as one."""
    pairs = zip(shared[0::WORLD], shared[1::WORLD], strict=True)
    return [(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in pairs]


def score_on(shared: Examples, *, steps: int, kinds: Kinds | None = None, **options: Any) -> Scores:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    graph = trace(net, (torch.zeros(2, 5, dtype=torch.float64),))
    kinds = (Split(), Prune(), ResidualBranch()) if kinds is None else kinds
    return score(graph, shared, morphisms=kinds, curvature=Curvature.EXACT, steps=steps, seed=3, **options)


def summary(scores: Scores) -> dict[str, Any]:
    path = scores.choose(4)
    return {
        "table": [(s.spec, s.predicted, s.stderr, s.first_order, s.curvature) for s in scores],
        "path": [s.spec for s in path],
        "joint": scores.joint(path),
        "linearised": scores.linearised(path),
        "learning": scores.learning.tolist(),
    }


def learned(scores: Scores, shared: Examples) -> dict[str, Any]:
    """Learn θ of a set together, on more batches than its scale is found on, and return what came of it."""
    assert len(shared) > SCALED_ON
    learning = [s for s in scores if s.theta][:5]
    pruned = next(s for s in scores if s.candidate.morphism.name == "prune")
    alone = scores.together([*learning, pruned])
    joint = alone.refine(shared[:SCALED_ON])
    found = alone.learned(shared, ScoreOptions(steps=len(shared) + 1, curvature=Curvature.EXACT))
    refinement = found.refine(shared)
    return {
        "set": found.specs,
        "scale": -float((joint.first_order[:-1].sum() + joint.gram[:-1, -1].sum()) / joint.gram[:-1, :-1].sum()),
        "theta": [x for m in found.members for t in (m.theta or {}).values() for x in t.flatten().tolist()],
        "linearised": found.linearised(shared),
        "refined": [refinement.joint(range(len(found))), *refinement.first_order.tolist(), *refinement.stderr.tolist()],
    }


def work(rank: int, folder: str, steps: int) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=120))
    try:
        own = batches()[rank::WORLD]
        scores = score_on(own, steps=steps, group=dist.group.WORLD)
        found = summary(scores)
        found["predict"] = scores.predict(scores.choose(4), own)
        found["learned"] = learned(scores, batches(LEARN_ROUNDS)[rank::WORLD])
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


RULES = ("additive", "brute-force", "first-order", "gradmax", "joint", "sampled", "splitting-index", "taylor")
OF_RULES = (Split(), Prune(), Widen())


def orders(shared: Examples, rule: str, group: dist.ProcessGroup | None = None) -> list[tuple[str, float, float]]:
    """Return what a rule says of every candidate, and how large θ is."""
    found = score_on(shared, steps=2, kinds=OF_RULES, strategy=rule, group=group)
    return [(s.spec, s.order, sum(float(t.abs().sum()) for t in (s.theta or {}).values())) for s in found]


def order(rank: int, folder: str) -> dict[str, list[tuple[str, float, float]]]:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=120))
    try:
        return {rule: orders(batches()[rank::WORLD], rule, dist.group.WORLD) for rule in RULES}
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(WORLD, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 5])
def test_two_processes_give_what_one_does(processes: ProcessPoolExecutor, tmp_path: Path, steps: int) -> None:
    list(processes.map(work, range(WORLD), [str(tmp_path)] * WORLD, [steps] * WORLD))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD))
    assert first == second
    together = merged(batches()) if steps else batches()  # a step of two processes is one on both their batches
    alone = score_on(together, steps=steps)
    expected = summary(alone)
    assert first["path"] == expected["path"] and len(first["path"]) > 1
    assert first["joint"] == pytest.approx(expected["joint"], rel=1e-9)
    assert first["linearised"] == pytest.approx(expected["linearised"], rel=1e-9)
    assert first["learning"] == pytest.approx(expected["learning"], rel=1e-9)
    assert first["predict"] == pytest.approx(alone.predict(alone.choose(4), together), rel=1e-9)
    for (spec, *numbers), (other, *wanted) in zip(first["table"], expected["table"], strict=True):
        assert spec == other
        assert numbers == pytest.approx(wanted, rel=1e-8, abs=1e-12)
    found, wanted = first["learned"], learned(alone, merged(batches(LEARN_ROUNDS)))
    assert found["set"] == wanted["set"]
    if steps:  # beyond these it would be the same whatever the batches, as it is where nothing was learned before
        assert SMALLEST_SCALE < wanted["scale"] < 1
    for name in ("scale", "theta", "linearised", "refined"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-8, abs=1e-12)


@pytest.mark.slow
def test_every_rule_says_what_it_does_in_one_process(processes: ProcessPoolExecutor, tmp_path: Path) -> None:
    first, second = processes.map(order, range(WORLD), [str(tmp_path)] * WORLD)
    assert first == second
    for rule in RULES:
        wanted = orders(merged(batches()), rule)
        assert wanted and [spec for spec, *_ in first[rule]] == [spec for spec, *_ in wanted], rule
        for one, other in zip(first[rule], wanted, strict=True):
            assert one[1:] == pytest.approx(other[1:], rel=1e-7, abs=1e-12), rule
