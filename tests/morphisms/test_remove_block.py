"""Removal of blocks: what goes with them, what stays, and what the prediction is worth."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from archir.api import score
from archir.errors import PassError
from archir.growing.batches import Batches
from archir.growing.examples import Examples
from archir.growing.training import evaluate as evaluate_on
from archir.rewrite.miss import Miss
from archir.scoring.losses import find_loss
from archir.testing import outputs, relative_difference
from frontends.pytorch import trace
from passes.remove_block import RemoveBlock
from tests.morphisms.block_models import Images, Odd, capture, images, tokens


def test_what_only_the_block_needed_goes_with_it() -> None:
    graph, inputs = images()
    assert [s.label for s in RemoveBlock().sites(graph)] == ["gated.0", "gated.1", "parallel"]
    after = RemoveBlock("gated.1").apply(graph)
    assert not [name for name in after.by_name if name.startswith("gated.1.")]
    assert len(after.parameters) == len(graph.parameters) - len([n for n in graph.by_name if n.startswith("gated.1.")])
    graph, inputs = tokens()
    after = RemoveBlock("blocks.1").apply(graph)
    idle = graph.with_tensors({n: torch.zeros_like(graph.tensor(n)) for n in graph.by_name if "blocks.1." in n})
    assert relative_difference(outputs(after, inputs), outputs(idle, inputs)) < 1e-12


def test_tensors_that_others_use_stay_without_its_name() -> None:
    class Block(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.tanh(self.linear(x))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shared = nn.Linear(6, 6)
            self.one, self.two = Block(nn.Linear(6, 6)), Block(nn.Linear(6, 6))
            self.two.linear.weight = self.one.linear.weight
            self.head = nn.Linear(6, 2)
            self.shared = shared

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(self.two(self.one(self.shared(x))))
            return found

    torch.manual_seed(0)
    graph, _ = capture(Net(), torch.randn(3, 6))
    after = RemoveBlock("one").apply(graph)
    parameter = after.by_name["two.linear.weight"].parameter
    assert parameter is not None
    assert parameter.names == ("two.linear.weight",)
    assert "one.linear.bias" not in after.by_name


def test_what_cannot_be_removed_is_said() -> None:
    torch.manual_seed(0)
    graph, _ = capture(Odd("both"), torch.randn(3, 4))
    assert not list(RemoveBlock().sites(graph))
    for path, reason in {"block": "several values", "head": "no call", "last": "no value of the type"}.items():
        found = RemoveBlock(path).match(graph)
        assert isinstance(found, Miss)
        assert reason in found.reason
        with pytest.raises(PassError, match=reason):
            RemoveBlock(path).apply(graph)
    graph, _ = capture(Odd("post_norm"), torch.randn(3, 4))
    assert [s.label for s in RemoveBlock().sites(graph)] == ["block"]


def test_predictions_rank_blocks_as_the_truth_does() -> None:
    torch.manual_seed(0)
    model = Images()
    with torch.no_grad():
        for block in (model.gated[0], model.gated[1]):
            block.norm.weight.mul_(0.1)  # type: ignore[union-attr, operator]
    graph = trace(model, (torch.randn(3, 1, 8, 8),))
    on = Examples(torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,)))
    found = score(graph, Batches(on, 32), morphisms=(RemoveBlock(),), steps=1, refine=10)
    loss = find_loss("cross_entropy")
    before = evaluate_on(graph.module(), on, loss).loss
    true = [evaluate_on(found.apply([s]).module(), on, loss).loss - before for s in found]
    assert len(true) == 3
    assert true == pytest.approx([s.predicted for s in found], rel=0.3, abs=1e-4)
