"""Batches as loaders give them: pairs, and mappings in which the targets are called that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import archir
from archir.errors import ScoreError
from archir.scoring.pairs import keywords, pair_of


def test_targets_are_told_by_their_name() -> None:
    assert pair_of((1, 2)) == pair_of([1, 2]) == (1, 2)
    for name in ("labels", "label", "targets", "target"):
        assert pair_of({"x": 1, name: 2}) == (1, 2)
        assert pair_of({"x": 1, name: 2}, names=("x",)) == ({"x": 1}, 2)
        assert pair_of({"x": 1, name: 2, "y": 3}) == ({"x": 1, "y": 3}, 2)
    for wrong in ({}, {"x": 1}, {"x": 1, "label": 2, "labels": 2}, {"labels": 2}, (1, 2, 3), "ab", None):
        with pytest.raises(ScoreError, match="a batch"):
            pair_of(wrong)


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(x) * scale
        return found


def test_batches_are_scored_alike_as_pairs_and_as_mappings() -> None:
    torch.manual_seed(0)
    x, scale, labels = torch.randn(16, 4), torch.ones(16, 1), torch.arange(16) % 3
    graph = archir.trace(_Scaled(), (x, scale))
    assert keywords(graph) == ("scale",)
    pairs: list[Any] = [({"x": x, "scale": scale}, labels)]
    mappings = [{"x": x, "scale": scale, "labels": labels}]
    found = [archir.score(graph, batches, morphisms="prune", steps=2) for batches in (pairs, mappings)]
    assert [s.predicted for s in found[0]] == [s.predicted for s in found[1]]
    small = [archir.prune_with_compensation(graph, b, "prune{width=w0, units=[1]}") for b in (pairs, mappings)]
    assert all(map(torch.equal, small[0].tensors.values(), small[1].tensors.values()))
    with pytest.raises(ScoreError, match="a batch that is a mapping has no targets"):
        archir.score(graph, [{"x": x, "scale": scale}], morphisms="prune")
