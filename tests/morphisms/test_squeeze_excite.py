"""Squeeze-excite: its gates, where it can be, and what it is predicted to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from archir.errors import PassError
from archir.testing import randomise
from passes.squeeze_excite import SqueezeExcite
from tests.models.captured import graph_of
from tests.morphisms.checks import emit, predictions, sizes
from tests.morphisms.wiring import Images, change, change_in_training, reason, traced, value_after


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_the_gates_are_made_of_the_mean_over_space(spatial: int) -> None:
    graph, inputs = traced(Images(spatial), 2, *[6, 4, 2][:spatial])
    after = SqueezeExcite("%1", ratio=2).apply(graph)
    assert change(graph, after, inputs) == 0
    assert sizes(after) == sorted([*sizes(graph), 4])
    moved = randomise(after)
    x = value_after(moved, inputs, 1)
    weights = [moved.tensor(f"squeeze_excite.{n}.weight").flatten(1) for n in ("fc1", "fc2")]
    biases = [moved.tensor(f"squeeze_excite.{n}.bias") for n in ("fc1", "fc2")]
    hidden = torch.relu(x.flatten(2).mean(2) @ weights[0].T + biases[0])
    gate = 2 * torch.sigmoid(hidden @ weights[1].T + biases[1])
    expected = x * gate.reshape(*gate.shape, *[1] * spatial)
    found = value_after(moved, inputs, [n.op for n in moved.calls].index("aten.sigmoid.default") + 2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 8), (8,)])
def test_tokens_and_rows_have_gates_of_their_own(shape: tuple[int, ...]) -> None:
    graph, (x,) = traced(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3)), *shape)
    after = SqueezeExcite("%1").apply(graph)
    assert change(graph, after, [x]) == 0
    moved = randomise(after)
    one = torch.cat([x[:, :1], torch.zeros_like(x[:, 1:])], 1) if len(shape) > 1 else x[:1].expand(3, -1)
    alone, together = (value_after(moved, [i], len(list(moved.calls)) - 1) for i in (one, x))
    at = (slice(None), 0) if len(shape) > 1 else (slice(0, 1),)
    torch.testing.assert_close(alone[at], together[at], rtol=1e-12, atol=1e-12)


def test_there_are_few_hidden_features_but_not_too_few() -> None:
    graph, _ = traced(nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 3)), 8)
    widths = [SqueezeExcite("%1", r).apply(graph).tensor("1.squeeze_excite.fc1.weight").shape[0] for r in (1, 16, 96)]
    assert widths == [96, 6, 4]


class Pooled(nn.Module):
    """Branches that end in a sum, one after pooling, and a sum with a stored tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 1)
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.pooled = nn.Conv2d(4, 4, 1)
        self.shift = nn.Parameter(torch.randn(4, 1, 1))
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x + self.branch(x)
        x = x * self.pooled(x.mean((2, 3), keepdim=True))
        y = self.last(x) + self.shift
        return torch.sum(y, (1, 2, 3))


def test_sites_are_the_ends_of_layers_and_branches() -> None:
    graph, _ = traced(Pooled(), 2, 5, 5)
    ops = [n.op.split(".")[1] for n in graph.calls]
    found = [ops[int(s.label[1:])] for s in SqueezeExcite().sites(graph)]
    assert found == ["relu", "add", "add", "batch_norm"]


def test_reasons_it_does_not_apply() -> None:
    graph, _ = traced(Pooled(), 2, 5, 5)
    assert "the ratio" in reason(SqueezeExcite("%1", ratio=0), graph)
    assert "cannot be told" in reason(SqueezeExcite("x"), graph)
    with pytest.raises(PassError, match="the ratio"):
        SqueezeExcite("%1", ratio=0).apply(graph)


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_the_function_is_kept_in_training(name: str) -> None:
    assert change_in_training(SqueezeExcite(), name) < 1e-12


def test_it_is_emitted_as_a_module(tmp_path: Path) -> None:
    source = emit(SqueezeExcite("%9").apply(graph_of("resnet")), tmp_path)
    assert "self.squeeze_excite = SqueezeExcite()" in source
    assert "self.fc1 = nn.Conv2d(16, 4, 1)" in source
    source = emit(SqueezeExcite("%4").apply(graph_of("gpt")), tmp_path)
    assert "self.fc2 = nn.Linear(4, 32)" in source


def test_predictions_agree_with_the_truth() -> None:
    found = predictions(SqueezeExcite())
    predicted, true = zip(*found, strict=True)
    assert len(found) == 4
    assert predicted == pytest.approx(true, rel=0.25, abs=2e-5)
