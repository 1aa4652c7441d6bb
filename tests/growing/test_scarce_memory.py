"""Training, evaluation and growth where memory runs out: what can be halved is, and all else is told of."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from archir.errors import GrowError
from archir.growing.batches import Batches
from archir.growing.device import moved
from archir.growing.divergence import largest_loss
from archir.growing.examples import Examples
from archir.growing.feasibility import check_memory
from archir.growing.optimisers import OptimiserOptions
from archir.growing.trainer import Trainer
from archir.growing.training import evaluate, train
from archir.ir.device_memory import is_out_of_memory
from archir.ir.graph import Graph
from archir.scoring.losses import coupled, find_loss
from tests.growing.small_run import OPTIONS, data, grow
from tests.scoring.scarce import KINDS, Scarce

LOSS = find_loss("cross_entropy")
LAYERS = ("aten::addmm",)
CONVOLUTIONS = ("aten::convolution",)
SGD = OptimiserOptions("sgd", rate=0.1)


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 40), nn.ReLU(), nn.Linear(40, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_is_too_large_to_be_evaluated_is_halved(kind: str) -> None:
    split = data(50, 1)
    labels = split.targets
    assert isinstance(labels, Tensor)
    labels[::7] = -100
    plain = evaluate(_net(), split, LOSS)
    with Scarce(40 * 13, kind, LAYERS) as memory:
        found = evaluate(_net(), split, LOSS)
    assert memory.refused >= 3
    assert found.loss == pytest.approx(plain.loss, rel=1e-6) and found.accuracy == plain.accuracy


def test_inputs_and_targets_of_several_parts_are_halved_together() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (x.repeat(1, 20) + y).sum(1)

    def gap(outputs: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        return (outputs - targets[0] * targets[1]).square().mean()

    numbers = torch.arange(12.0)
    split = Examples({"x": numbers[:, None], "y": numbers[:, None] / 7}, (numbers, numbers + 1))
    plain = evaluate(Two(), split, find_loss(gap))
    with Scarce(20 * 3) as memory:
        assert evaluate(Two(), split, find_loss(gap)).loss == pytest.approx(plain.loss, rel=1e-6)
    assert memory.refused == 3


def test_the_largest_loss_is_that_of_halves() -> None:
    net = _net()
    with torch.no_grad():
        net[3].weight.mul_(100)  # type: ignore[index]
    plain = largest_loss(net, data(50, 1), LOSS, 50)
    with Scarce(40 * 13, only=LAYERS) as memory:
        assert largest_loss(net, data(50, 1), LOSS, 50) == pytest.approx(plain, rel=1e-6)
        assert memory.refused >= 3 and plain > 20
        with pytest.raises(GrowError, match="too little memory"):
            largest_loss(net, data(50, 1), find_loss(coupled(lambda o, t: o.square().mean())), 50)


def test_a_batch_that_is_one_whole_is_not_halved() -> None:
    wanted = (
        r"too little memory to run the model on a batch\n.*inputs \[50, 1, 6, 6\].*\n.*out of memory.*\n.*batch_size"
    )
    whole = coupled(lambda outputs, targets: outputs.square().mean())
    for loss, given in ((whole, False), (LOSS, True)):
        with pytest.raises(GrowError, match=wanted) as caught, Scarce(40 * 13, only=LAYERS):
            evaluate(_net(), data(50, 1), find_loss(loss), coupled=given)
        assert "more" not in caught.value.why, "one line of what PyTorch says is enough"


def test_an_example_that_does_not_fit_is_told_of() -> None:
    with (
        pytest.raises(GrowError, match=r"too little memory to run the model on a batch\n.*inputs \[1, 1, 6, 6\]"),
        Scarce(39, only=LAYERS),
    ):
        evaluate(_net(), data(4, 1), LOSS)


class _Hungry(torch.autograd.Function):
    """Takes much memory backwards alone."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient + torch.zeros(10**4).sum()


def test_a_training_batch_that_does_not_fit_is_told_of() -> None:
    def train_once(module: nn.Module, most: int) -> None:
        with Scarce(most, only=(*LAYERS, "aten::zeros")):
            train(module, Batches(data(32, 1), 32), LOSS, SGD.build(module))

    with pytest.raises(
        GrowError, match=r"memory to run the model on a batch\n.*inputs \[32, 1, 6, 6\].*\n.*\n.*batch_size"
    ):
        train_once(_net(), 40 * 31)

    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net()

        def forward(self, x: Tensor) -> Tensor:
            moved: Tensor = _Hungry.apply(self.net(x))  # type: ignore[no-untyped-call]
            return moved

    with pytest.raises(GrowError, match=r"memory to differentiate the loss of a batch\n.*out of memory.*\n.*precision"):
        train_once(Backwards(), 40 * 40)


def test_an_optimiser_that_does_not_fit_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise KINDS["CPU"]()

    module = _net()
    optimiser = SGD.build(module)
    monkeypatch.setattr(optimiser, "step", refuse)
    with pytest.raises(GrowError, match=r"memory to take a step of the optimiser\n.*can't allocate memory"):
        train(module, Batches(data(32, 1), 32), LOSS, optimiser)


@pytest.mark.parametrize(
    "said", ["CUDA error: out of memory\n", "CUBLAS_STATUS_ALLOC_FAILED when calling", "CUDNN_STATUS_ALLOC_FAILED"]
)
def test_memory_of_the_libraries_of_a_gpu_runs_out(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said)) and not is_out_of_memory(RuntimeError("CUDA error: invalid"))


def test_what_does_not_fit_on_a_device_is_told_of(seed_graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise KINDS["GPU"]()

    with monkeypatch.context() as patched:
        patched.setattr("archir.growing.batches.sent", refuse)
        with pytest.raises(GrowError, match=r"too little memory to move a batch to cpu\n.*out of memory"):
            next(iter(Batches(data(8, 1), 4)))
    with monkeypatch.context() as patched:
        patched.setattr("archir.growing.trainer.live_module", refuse)
        with pytest.raises(GrowError, match=r"too little memory to hold what is trained\n.*out of memory"):
            Trainer(seed_graph, OPTIONS)
    with monkeypatch.context() as patched:
        patched.setattr(Tensor, "to", refuse)
        with pytest.raises(GrowError, match=r"too little memory to move the network to meta\n.*out of memory"):
            moved(seed_graph, torch.device("meta"))


def test_a_run_grows_as_it_would_with_more_memory(seed_graph: Graph) -> None:
    """What is refused is what growth steps and evaluation do: a training batch is smaller than what they take."""
    options = replace(OPTIONS, steps=8, growth_steps=1, learn_steps=2, refine=64, batch_size=8, score_examples=32)
    plain = grow(seed_graph, options=options)
    with Scarce(8 * 6 * 36 * 3 // 2, only=CONVOLUTIONS) as memory:
        run = grow(seed_graph, options=options)
    assert memory.refused >= 8
    assert str(run.graph) == str(plain.graph) != str(seed_graph)
    for id_, tensor in plain.graph.tensors.items():
        torch.testing.assert_close(run.graph.tensors[id_], tensor, rtol=1e-4, atol=1e-5)


def test_a_run_that_runs_out_of_memory_ends_with_an_error_of_its_own(seed_graph: Graph, tmp_path: Path) -> None:
    """What was kept is whole, and the run goes on from it where there is memory."""
    options = replace(OPTIONS, steps=8, growth_steps=0, checkpoint_every=2)
    with ExitStack() as stack:

        def fill(event: dict[str, object]) -> None:
            if event["event"] == "train" and event["step"] == 4:
                stack.enter_context(Scarce(32 * 6 * 30, only=CONVOLUTIONS))

        with pytest.raises(GrowError, match="too little memory to run the model on a batch"):
            grow(seed_graph, options=options, directory=tmp_path, on_event=fill)
    assert (tmp_path / "step-0002.archir").exists()
    run = grow(seed_graph, options=options, directory=tmp_path, resume=True)
    assert run.history[-1]["event"] == "finished"


def test_memory_is_looked_for_where_the_network_is(seed_graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.device] = []

    def free(device: torch.device) -> int:
        seen.append(device)
        return 10

    monkeypatch.setattr("archir.growing.feasibility.free_on", free)
    with pytest.raises(GrowError, match="too little memory to train the network"):
        check_memory(seed_graph, 8, SGD)
    assert seen == [torch.device("cpu")]
