"""Training steps of modules that processes hold shards of are those of one process that holds all of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from archir.growing.batches import Batches
from archir.growing.examples import Examples
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.trainer import Trainer
from archir.growing.training import evaluate
from archir.ir.graph import Graph
from archir.scoring.losses import find_loss
from archir.scoring.processes import ALONE, Processes
from frontends.pytorch import trace
from tests.growing.process_groups import on_both

pytestmark = pytest.mark.slow

OPTIONS = GrowOptions(
    steps=8,
    growth_steps=0,
    batch_size=6,
    ema=0.5,
    clip=0.5,
    optimiser=OptimiserOptions("adamw", rate=0.02),
    sharded=True,
)
WORDS = torch.arange(48).reshape(12, 4) % 7


class Tied(nn.Module):
    """A language model whose head is its embedding, around a recurrent layer, and two blocks of one feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.recurrent = nn.LSTM(6, 6, batch_first=True)
        self.blocks = nn.ModuleList(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 5), nn.Tanh()) for _ in range(2))
        self.back = nn.Linear(5, 6, bias=False)
        self.norm = nn.LayerNorm(6)
        self.norm.bias.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.recurrent(self.embed(tokens))
        for block in self.blocks:
            x = x + self.back(block(x * 1.5))
        found: Tensor = (self.norm(x) @ self.embed.weight.mT).mT
        return found


class Attending(nn.Module):
    """A vision-like model of a layer of an encoder, whose class token is a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.none = nn.Parameter(torch.zeros(3, 0), requires_grad=False)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.encoder(x.reshape(-1, 3, 8) + self.token)[:, 0]) * self.scale + self.none.sum()
        return found


class Heads(nn.Module):
    """A model of three outputs, the first of which is a view."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh())
        self.first, self.second, self.third = nn.Linear(8, 2), nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        return {"first": self.first(x)[:, :1], "second": self.second(x), "third": self.third(x)}


def choosy(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    """A loss that writes into the first output, looks at the second for some examples, and at the third for none."""
    first = outputs["first"].mul_(2.0)
    chosen = targets > 10
    found = (first - targets % 10).square()
    return (found + chosen * outputs["second"].square() if bool(chosen.any()) else found)[:, 0]


def _rows(width: int) -> Tensor:
    return torch.randn(12, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


MARKED = _rows(1) + 20 * (torch.arange(12) == 2)[:, None]
NETS: dict[str, tuple[Callable[[], nn.Module], Examples, Any]] = {
    "tied": (Tied, Examples(WORDS, (WORDS + 1) % 7), "cross_entropy"),
    "attending": (Attending, Examples(_rows(24), _rows(1)), "mse"),
    "one unit": (lambda: nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 1)), Examples(_rows(3), _rows(1)), "mse"),
    "heads": (Heads, Examples(_rows(3), MARKED), choosy),
}


@pytest.mark.parametrize("name", NETS)
def test_steps(workers: ProcessPoolExecutor, tmp_path: Path, name: str) -> None:
    make, examples, _ = NETS[name]
    torch.manual_seed(0)
    assert isinstance(examples.inputs, Tensor)
    graph = trace(make().double(), (examples.inputs[:4],))
    whole, count = _stepped(ALONE, graph, name)
    found = on_both(workers, tmp_path, _stepped, graph, name)
    for tensors, _ in found:
        torch.testing.assert_close(tensors, whole, rtol=1e-10, atol=1e-10)
    held = [part for _, part in found]
    for kind, numbers in count.items():
        assert sum(part[kind] for part in held) >= numbers
        # Rows of other shards are padding.
        assert numbers < 200 or all(part[kind] < 0.6 * numbers for part in held), f"{kind} are shared out"


def _stepped(processes: Processes, graph: Graph, name: str) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Train a network for some steps, and evaluate it in between.

    Returns:
        The losses, the weights, and the states of the trainer and of that of the averages; and how many numbers of the
        weights, their gradients, the state of the optimiser and the averages this process holds.
    """
    _, examples, given = NETS[name]
    loss = find_loss(given)
    trainer = Trainer(graph, OPTIONS, processes=processes)
    assert {t.device.type for t in trainer.program.tensors.values()} <= {"cpu"} or processes.size > 1
    done = [trainer.train(_batches(examples, processes), loss, first_step=2 * n).loss for n in range(2)]
    done.append(evaluate(trainer.module, examples, loss, batch_size=6, processes=processes).loss)
    done.append(trainer.train(_batches(examples, processes), loss, first_step=4).loss)
    parameters = [p for p in trainer.module.parameters() if p.requires_grad]
    held: dict[str, list[Tensor]] = {
        "weights": [*parameters],
        "gradients": [p.grad for p in parameters if p.grad is not None],
        "states": [t for slots in trainer.optimiser.state.values() for t in slots.values() if t.dim()],
        "averages": list(trainer._average.values()),
    }
    now = trainer.graph()
    weights = {node.names[0]: now.tensors[node.id] for node in now.parameters}
    averaged = trainer.averaged(examples)
    there = averaged.graph()
    averages = {f"averaged/{node.names[0]}": there.tensors[node.id] for node in there.parameters}
    return (
        {"losses": torch.tensor(done), **weights, **averages, **trainer.state(), **averaged.state()},
        {kind: _held(tensors) for kind, tensors in held.items()},
    )


def _batches(examples: Examples, processes: Processes) -> Batches:
    return Batches(examples, 6, processes=processes)


def _held(tensors: list[Tensor]) -> int:
    """Return how many numbers of tensors are in the memory of this process."""
    here = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // t.element_size() for t in here}
    return sum(sizes.values())


def test_steps_beyond_float16_are_left_out_by_all(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = trace(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)), (_rows(4).float(),))
    overflowed, scale, weights = _scaled(ALONE, graph)
    assert 0 < overflowed < 12
    for found in on_both(workers, tmp_path, _scaled, graph):
        assert found[:2] == (overflowed, scale)
        torch.testing.assert_close(found[2], weights, rtol=1e-3, atol=1e-5)


def _scaled(processes: Processes, graph: Graph) -> tuple[int, float, Tensor]:
    """Train in float16 from a scale that is too large; return the steps left out, and the scale and weights then."""
    examples = Examples(_rows(4).float(), _rows(1).float())
    trainer = Trainer(graph, replace(OPTIONS, precision="float16", steps=12), processes=processes)
    trainer._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    passes = chain.from_iterable(_batches(examples, processes) for _ in range(6))
    done = trainer.train(passes, find_loss("mse"))
    state = trainer.state()
    return (
        done.overflowed,
        float(state["scale/factor"]),
        trainer.graph().tensors[trainer.program.by_name["0.weight"].id],
    )
