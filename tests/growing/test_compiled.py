"""Training steps that are compiled, or laid out with the channels last: the same network, and the same checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn

from archir.errors import GrowError
from archir.growing.batches import Batches
from archir.growing.compiled import check_backend
from archir.growing.examples import Examples
from archir.growing.trainer import Trainer, live_module
from archir.ir.graph import Graph
from archir.scoring.losses import find_loss
from frontends.pytorch import trace
from tests.growing.process_groups import Pretended
from tests.growing.small_run import OPTIONS, data, grow

SHORT = replace(OPTIONS, steps=16, growth_steps=2, learn_steps=3, checkpoint_every=5, evaluate_every=4)


@pytest.fixture
def counted() -> Iterator[list[int]]:
    """The sizes of the graphs that a backend of the name `counted` has compiled, in turn."""
    seen: list[int] = []

    def backend(module: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Any:
        seen.append(len(module.graph.nodes))
        return module.forward

    torch._dynamo.reset()
    torch._dynamo.register_backend(backend, name="counted")
    yield seen
    torch._dynamo.backends.registry._COMPILER_FNS.pop("counted")
    torch._dynamo.reset()


def test_steps_are_compiled_once_between_growth_steps(counted: list[int], seed_graph: Graph) -> None:
    """Batches differ by an example, and evaluation and scoring run what is not compiled."""
    plain = grow(seed_graph, options=SHORT)
    run = grow(seed_graph, options=replace(SHORT, compile="counted"))
    grown = [event for event in run.history if event["event"] == "grown"]
    assert len(grown) == 2 and len(counted) == 3
    assert str(run.graph) == str(plain.graph)
    for id_, tensor in plain.graph.tensors.items():
        torch.testing.assert_close(run.graph.tensors[id_], tensor, rtol=1e-5, atol=1e-6)


def test_the_parameters_stay_those_of_the_module(counted: list[int], seed_graph: Graph) -> None:
    trainer = Trainer(seed_graph, replace(OPTIONS, compile="counted"))
    before, keys = dict(trainer.module.named_parameters()), list(trainer.module.state_dict())
    first = trainer.graph()
    for size in (32, 30, 20):
        trainer.train(Batches(data(64, 1), size), find_loss("cross_entropy"))
    assert len(counted) == 1
    assert all(p is before[name] for name, p in trainer.module.named_parameters())
    assert list(trainer.module.state_dict()) == keys
    assert set(trainer.state()) == {f"momentum_buffer/{name}" for name in before}
    last = trainer.graph()
    assert not any(torch.equal(first.tensor(name), last.tensor(name)) for name in before)


def test_a_module_of_several_inputs_and_a_fixed_number_of_examples_is_compiled(counted: list[int]) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.layer(x * mask).reshape(4, 2)
            return logits

    torch.manual_seed(0)
    graph = trace(Two(), (), {"x": torch.randn(4, 3), "mask": torch.ones(4, 3)}, static_batch=True)
    split = Examples({"x": torch.randn(8, 3), "mask": torch.ones(8, 3)}, torch.arange(8) % 2)
    trainers = [Trainer(graph, replace(OPTIONS, compile=name)) for name in ("counted", "off")]
    losses = [t.train(Batches(split, 4), find_loss("cross_entropy")).loss for t in trainers]
    assert len(counted) == 1 and losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_gradients_go_through_the_backend_of_pytorch(seed_graph: Graph) -> None:
    torch._dynamo.reset()
    trainers = [Trainer(seed_graph, replace(OPTIONS, compile=name)) for name in ("aot_eager", "off")]
    for trainer in trainers:
        torch.manual_seed(0)
        trainer.train(Batches(data(64, 1), 32), find_loss("cross_entropy"))
    for name, tensor in trainers[0].module.state_dict().items():
        torch.testing.assert_close(tensor, trainers[1].module.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_a_backend_that_is_not_there_is_refused_before_anything_is_written(seed_graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(GrowError, match=r"no backend 'inducto'.*\n.*inductor"):
        grow(seed_graph, options=replace(SHORT, compile="inducto"), directory=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_several_processes_do_not_compile() -> None:
    with pytest.raises(GrowError, match=r"2 processes cannot train what is compiled\n.*compile = \"off\""):
        check_backend("aot_eager", Pretended(count=2))
    for name, count in (("aot_eager", 1), ("off", 2)):
        check_backend(name, Pretended(count=count))


def test_channels_come_last_in_training_and_not_in_checkpoints(seed_graph: Graph, tmp_path: Path) -> None:
    options = replace(SHORT, channels_last=True)
    module = live_module(seed_graph, options)
    kernels = [p for p in module.parameters() if p.dim() == 4]
    assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    assert any(not p.is_contiguous() for p in kernels)
    run = grow(seed_graph, options=options, directory=tmp_path / "run")
    plain = grow(seed_graph, options=SHORT)
    assert all(t.is_contiguous() for t in run.graph.tensors.values())
    assert str(run.graph) == str(plain.graph)
    for id_, tensor in plain.graph.tensors.items():
        torch.testing.assert_close(run.graph.tensors[id_], tensor, rtol=1e-4, atol=1e-5)


def test_the_state_of_an_optimiser_is_laid_out_as_the_weights_are(seed_graph: Graph) -> None:
    options = replace(OPTIONS, channels_last=True)
    trainer = Trainer(seed_graph, options)
    trainer.train(Batches(data(64, 1), 32), find_loss("cross_entropy"))
    state = {name: tensor.contiguous() for name, tensor in trainer.state().items()}
    again = Trainer(trainer.graph(), options, state)
    for parameter in again.module.parameters():
        assert again.optimiser.state[parameter]["momentum_buffer"].stride() == parameter.stride()
    assert all(t.is_contiguous() for t in trainer.graph().tensors.values())


def test_a_model_that_views_its_activations_does_not_mind() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1))
            self.head = nn.Linear(108, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.conv(x).view(-1, 108))
            return logits

    torch.manual_seed(0)
    graph = trace(Viewing(), (torch.randn(4, 1, 6, 6),))
    trainers = [Trainer(graph, replace(OPTIONS, channels_last=flag)) for flag in (True, False)]
    losses = [t.train(Batches(data(64, 1), 32), find_loss("cross_entropy")).loss for t in trainers]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
