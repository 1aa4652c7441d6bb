"""Random inputs fit the types and what the program does with them."""

from __future__ import annotations

import torch
from torch import nn

from archir.ir.inputs import random_inputs, symbol_sizes, table_rows
from archir.ir.node import Value
from frontends.pytorch import trace
from tests.models.captured import graph_of


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.small = nn.Parameter(torch.randn(3, 4))

    def forward(self, tokens: torch.Tensor, kinds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.table(tokens.to(torch.int64)[:, 1:])
        return rows * mask[:, 1:, None] + self.small[kinds.flatten()][:, None]


def test_integers_stay_inside_the_tables_they_index() -> None:
    inputs = (
        torch.zeros(3, 5, dtype=torch.int32),
        torch.zeros(3, 1, dtype=torch.int64),
        torch.ones(3, 5, dtype=torch.bool),
    )
    graph = trace(Lookup(), inputs)
    assert [table_rows(graph, Value(n.id)) for n in graph.inputs] == [7, 3, None]
    (tokens, kinds, mask), kwargs = random_inputs(graph, batch=64, seed=1)
    assert kwargs == {} and tokens.dtype == torch.int32 and tokens.shape == (64, 5)
    assert set(tokens.flatten().tolist()) == set(range(7)) and set(kinds.flatten().tolist()) == {0, 1, 2}
    assert mask.dtype == torch.bool and bool(mask.any(1).all()) and not bool(mask.all(1).any())
    graph.module()(tokens, kinds, mask)


def test_seed_and_batch_decide() -> None:
    graph = graph_of("nested")
    assert symbol_sizes(graph, 5) == {"B": 5}
    first, again, other = (random_inputs(graph, 5, seed) for seed in (0, 0, 1))
    assert torch.equal(first[0][0]["x"], again[0][0]["x"]) and not torch.equal(first[0][0]["x"], other[0][0]["x"])
    assert first[0][0]["x"].shape[0] == 5 and graph.module()(*first[0], **first[1])["none"] is None
