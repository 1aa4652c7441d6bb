"""Models that return mappings: losses take what they return by name, and as a mapping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

import archir
from archir.growing.grow import Run
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.scoring.losses import find_loss
from tests.growing.made_datasets import Columns

_drawn = np.random.default_rng(0)
X, Y = _drawn.normal(size=(24, 4)), _drawn.integers(0, 3, 24)


class _Named(nn.Module):
    """Returns its logits by name, in a mapping of a kind."""

    def __init__(self, kind: Callable[..., Any]) -> None:
        super().__init__()
        self.kind, self.first, self.last = kind, nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, features: torch.Tensor) -> Any:
        hidden = self.first(features).relu()
        return self.kind(logits=self.last(hidden), hidden_states=(hidden,))


def _of_logits(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    assert outputs.logits is outputs["logits"] and not hasattr(outputs, "nothing")
    losses: torch.Tensor = nn.functional.cross_entropy(outputs.logits, labels, reduction="none")
    hidden: torch.Tensor = outputs.hidden_states[0]
    return losses + 0.01 * hidden.square().mean(1)


def _grow_named(kind: Callable[..., Any]) -> Run:
    torch.manual_seed(0)
    options = GrowOptions(
        steps=6, growth_steps=1, batch_size=8, learn_steps=3, optimiser=OptimiserOptions("sgd", rate=0.1)
    )
    loader: DataLoader[Any] = DataLoader(Columns(features=X, labels=Y), 4)
    return archir.grow(_Named(kind), train=loader, validation=loader, budget=60, loss=_of_logits, options=options)


def test_losses_take_outputs_and_targets_by_name() -> None:
    """A model that returns a mapping, and mappings with labels, are trained, scored and grown."""
    run = _grow_named(dict)
    assert {"scored", "finished"} <= {e["event"] for e in run.history}
    assert run.history[-1]["loss"] < next(e["loss"] for e in run.history if e["event"] == "evaluated")
    assert type(run.model(torch.ones(2, 4))) is dict


def test_losses_may_go_through_outputs_as_through_a_mapping() -> None:
    def loss(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        doubled = tree_map(lambda t: 2 * t, outputs)
        assert type(doubled) is type(outputs) and list(doubled) == list(outputs)
        found: torch.Tensor = doubled.a.square().mean(1) + doubled["b"][0]
        return found

    found = find_loss(loss)({"a": torch.ones(2, 3), "b": (torch.ones(2),)}, torch.zeros(2))
    assert float(found) == 6


@pytest.mark.slow
def test_losses_written_for_transformers_are_taken() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    run, same = _grow_named(outputs.SequenceClassifierOutput), _grow_named(dict)
    assert all(map(torch.equal, run.graph.tensors.values(), same.graph.tensors.values()))
