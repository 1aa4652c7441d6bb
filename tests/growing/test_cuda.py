"""What only a GPU can show: a run on it, that scores there are those of the CPU, and that a run goes on without it.

Where there is none, a pretend accelerator holds all of this to one device, see `test_pretend_accelerator`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import archir
from archir.errors import GrowError
from archir.growing.batches import Augmentation, Batches
from archir.growing.device import moved, sent
from archir.growing.latency import measure_latency
from archir.growing.optimisers import OptimiserOptions
from archir.growing.streamed import Streamed
from archir.growing.trainer import Trainer
from archir.ir.device_memory import attempt, free_on
from archir.ir.graph import Graph
from archir.scoring.chunks import chunk_size
from archir.scoring.losses import find_loss
from archir.scoring.program import Program
from frontends.pytorch import trace
from tests.growing.small_run import OPTIONS, data, grow

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that CUDA knows")

SHORT = replace(OPTIONS, steps=16, growth_steps=1, learn_steps=3, refine=24, evaluate_every=5, checkpoint_every=5)
CUDA = torch.device("cuda", 0)


class PowerCut(Exception):
    """Ends a run."""


def cut(event: dict[str, object]) -> None:
    if event["event"] == "train" and event["step"] == 10:
        raise PowerCut


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_run_grows_and_learns_on_the_gpu(precision: str, seed_graph: Graph) -> None:
    if precision == "bfloat16" and not torch.cuda.is_bf16_supported():
        pytest.skip("the GPU does not know bfloat16")
    torch.cuda.reset_peak_memory_stats()
    run = grow(seed_graph, 400, replace(SHORT, steps=60, device="cuda", precision=precision))
    assert torch.cuda.max_memory_allocated() > 2**16 and run.graph.device.type == "cpu"
    assert any(event["event"] == "grown" for event in run.history)
    losses = [event["loss"] for event in run.history if event["event"] == "train"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("refine", [24, 3])
def test_scores_on_the_gpu_are_those_on_the_cpu(refine: int, seed_graph: Graph) -> None:
    batches = list(Batches(data(64, 1), 32))
    there, here = (
        archir.score(moved(seed_graph, device), batches, steps=5, refine=refine, seed=3)
        for device in (CUDA, torch.device("cpu"))
    )
    expected = {score.spec: score for score in here}
    assert len(there) == len(expected) > 10
    for score in there:
        assert score.predicted == pytest.approx(expected[score.spec].predicted, abs=1e-4)


def test_what_was_begun_on_the_gpu_goes_on_on_the_cpu(seed_graph: Graph, tmp_path: Path) -> None:
    options = replace(SHORT, optimiser=OptimiserOptions("adamw", rate=0.01), ema=0.1, device="cuda", first_growth=0.5)
    with pytest.raises(PowerCut):
        grow(seed_graph, 400, options, directory=tmp_path, on_event=cut)
    run = grow(seed_graph, 400, replace(options, device="cpu"), directory=tmp_path, resume=True)
    assert run.history[-1]["event"] == "finished" and any(event["event"] == "resumed" for event in run.history)


def test_batches_are_pinned_by_workers_or_here_and_are_those_of_the_cpu() -> None:
    split = data(64, 1)
    pairs = Streamed(list(zip(split.inputs, split.targets, strict=True)), "pairs", workers=2)
    for augmentation in (None, Augmentation(flip=True, crop=1, mixup=0.2)):
        for given in (split, pairs):
            there = list(Batches(given, 8, 5, augmentation, CUDA))
            torch.testing.assert_close(there, list(Batches(given, 8, 5, augmentation)), check_device=False)
    assert sent(torch.ones(3), CUDA).device == CUDA


def test_steps_are_compiled_and_channels_come_last() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(144, 3)
    graph = trace(nn.Sequential(*layers), (torch.randn(4, 1, 6, 6),))
    options, losses = replace(OPTIONS, device="cuda", precision="float32"), []
    for changed in (options, replace(options, compile="inductor"), replace(options, channels_last=True)):
        trainer = Trainer(graph, changed)
        losses.append(trainer.train(Batches(data(64, 1), 32, device=trainer.device), find_loss("cross_entropy")).last)
    assert losses[1:] == [pytest.approx(losses[0], rel=1e-2)] * 2


def test_memory_of_the_gpu_is_told_and_given_back(seed_graph: Graph) -> None:
    before = free_on(CUDA)
    assert attempt(lambda: torch.empty(2**50, device=CUDA)) is None
    assert free_on(CUDA) == pytest.approx(before, rel=0.05)
    program = Program(moved(seed_graph, CUDA))
    assert chunk_size(program, 8) == pytest.approx(0.25 * before / (8 * program.bytes_per_example), rel=0.05)


def test_latency_is_measured_there(seed_graph: Graph) -> None:
    assert 0 < measure_latency(seed_graph.module().to(CUDA), data(3, 1)) < 1


def test_a_gpu_that_is_not_there_is_refused(seed_graph: Graph) -> None:
    with pytest.raises(GrowError, match=f"there is no device cuda:{torch.cuda.device_count()} here"):
        grow(seed_graph, options=replace(SHORT, device=f"cuda:{torch.cuda.device_count()}"))
