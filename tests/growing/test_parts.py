"""Which modules are gathered together where processes hold shards of a network, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from archir.errors import GrowError
from archir.growing.feasibility import training_memory
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.sharding import check_sharding, parts, shards
from archir.ir.lowering import self_contained
from archir.scoring.processes import ALONE
from frontends.pytorch import trace
from tests.growing.process_groups import Pretended

TWO = Pretended(cast(torch.distributed.ProcessGroup, object()), count=2)
SHARDED = GrowOptions(sharded=True)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.down(self.up(self.norm(x)).relu())
        return found


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.head(x)
        return found


def _paths(net: nn.Module, processes: int) -> list[str]:
    graph = trace(net, (torch.randn(2, 3),))
    module = graph.module()
    names = {inner: path for path, inner in module.named_modules()}
    most = sum(p.numel() for p in module.parameters()) // processes
    return [names[part] for part in parts(module, self_contained(graph), most=most)]


def test_blocks_are_parts_and_are_divided_where_they_hold_more_than_a_process_does() -> None:
    blocks = [f"blocks.{n}" for n in range(4)]
    assert _paths(Blocks(), 2) == [*blocks, ""]
    # Of 650 numbers a block has 156: 80 and 68 in its layers, and 8 in its norm.
    assert _paths(Blocks(), 4) == [*blocks, ""]
    assert _paths(Blocks(), 8) == [path for block in blocks for path in (f"{block}.up", block)] + [""]
    divided = [path for block in blocks for path in (f"{block}.up", f"{block}.down", block)]
    assert _paths(Blocks(), 10) == [*divided, ""]


def test_the_largest_layers_are_parts_where_there_are_no_blocks() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    assert _paths(net, 2) == ["2", ""]
    assert _paths(net, 4) == ["2", "0", ""]


def test_what_has_no_shards_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.scale = nn.Parameter(torch.tensor(1.0))
            self.shift = nn.Parameter(torch.zeros(2, dtype=torch.float64))
            self.none = nn.Parameter(torch.zeros(3, 0))

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = (self.linear(x) * self.scale).double() + self.shift + (x @ self.none).sum()
            return found

    graph, cpu = trace(Odd(), (torch.randn(2, 3),)), torch.device("cpu")
    with pytest.raises(GrowError, match="cannot be shared out among the processes") as caught:
        check_sharding(graph, SHARDED, TWO, cpu)
    assert "@scale is a number" in caught.value.where and "@shift is torch.float64" in caught.value.where
    assert "@none is empty" in caught.value.where
    check_sharding(graph, GrowOptions(), TWO, cpu)
    check_sharding(graph, SHARDED, ALONE, cpu)
    frozen = Odd()
    frozen.scale.requires_grad_(False)
    frozen.shift.requires_grad_(False)
    frozen.none.requires_grad_(False)
    check_sharding(trace(frozen, (torch.randn(2, 3),)), SHARDED, TWO, cpu)


def test_shards_are_of_several_processes_and_of_rows() -> None:
    assert shards(SHARDED, TWO) == 2 and shards(SHARDED, ALONE) == shards(GrowOptions(), TWO) == 1
    with pytest.raises(GrowError, match="leave out one of sharded and channels_last"):
        replace(SHARDED, channels_last=True)


def test_memory_of_shards_is_estimated() -> None:
    graph = trace(nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5)), (torch.randn(3, 10),))
    weights, activations = 4 * graph.parameter_count, 4 * (20 + 20 + 5)
    needed = training_memory(graph, 7, OptimiserOptions("adamw"), "float32", 4)
    assert needed == weights + (1 + 1 + 2) * weights // 4 + 7 * activations
