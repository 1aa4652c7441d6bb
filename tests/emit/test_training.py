"""Emitted source does in training what the graph does: chance, modes, running statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.emit.check import compare_training
from archir.emit.layouts import draft
from archir.emit.python import check, to_python
from archir.errors import EmitError
from frontends.pytorch import trace
from tests.emit.loading import load_draft


class Chances(nn.Module):
    """Every operator whose randomness follows the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.RNN(4, 4, num_layers=2, dropout=0.5, batch_first=True)
        self.parts = nn.Sequential(nn.RReLU(), nn.RReLU(0.1, 0.2), nn.Dropout(0.3), nn.Dropout1d(0.4))
        self.alpha = nn.Sequential(nn.AlphaDropout(0.2), nn.FeatureAlphaDropout(0.2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.alpha(self.parts(self.first(x)))
        found: Tensor = self.last(y)[0]
        return found + F.dropout(y, 0.2, self.training)


class Always(nn.Module):
    """Dropout that does not follow the mode."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


class Twice(nn.Module):
    """A batch norm that is called twice, for inputs of two ranks."""

    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.norm, self.between = nn.BatchNorm1d(4, momentum=momentum), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.between(self.norm(x)[:, :, None].mean(2))[:, :, None])
        return found


class Uncounted(nn.Module):
    """Running statistics that nothing counts, and a momentum of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return F.batch_norm(x, mean, variance, self.weight, self.bias, self.training, 0.0)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chances": (Chances, (3, 5, 4)),
    "always": (Always, (3, 4)),
    "rrelu": (nn.RReLU, (3, 4)),
    "norm": (lambda: nn.BatchNorm2d(3), (3, 3, 4, 4)),
    "cumulative norm": (lambda: nn.BatchNorm2d(3, momentum=None), (3, 3, 4, 4)),
    "norm, twice": (lambda: Twice(0.1), (3, 4)),
    "cumulative norm, twice": (lambda: Twice(None), (3, 4)),
    "uncounted": (lambda: nn.Sequential(nn.Linear(4, 4), Uncounted()), (3, 4)),
    "instance norm": (lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (3, 3, 5)),
}


@pytest.mark.parametrize("layout", ["modules", "flat", "plain"])
@pytest.mark.parametrize("case", CASES)
def test_training_draws_and_records_the_same(case: str, layout: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, shape = CASES[case]
    x = torch.randn(shape)
    graph = trace(model().eval(), x)
    net, module = load_draft(draft(graph, layout), tmp_path).train(), graph.module().train()
    for step in range(2):
        torch.manual_seed(step)
        wanted = module(x * (2 - step))
        torch.manual_seed(step)
        torch.testing.assert_close(net(x * (2 - step)), wanted, rtol=0.0, atol=0.0)
    assert case == "uncounted" or not torch.equal(wanted, graph.module().eval()(x))
    for name, buffer in module.named_buffers():
        torch.testing.assert_close(net.get_buffer(name), buffer, rtol=0.0, atol=0.0)
    assert to_python(graph, tmp_path).path.read_text() == draft(graph, "modules").text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("momentum=0.1", "momentum=0.2"),
        (".add_(1)", ".add_(2)"),
        ("training=self.training", "training=False"),
    ],
)
def test_what_differs_in_training_only_is_found(old: str, new: str, tmp_path: Path) -> None:
    graph = trace(nn.BatchNorm2d(3).eval(), torch.randn(3, 3, 4, 4))
    path = to_python(graph, tmp_path).path
    text = path.read_text()
    path.write_text(text.replace(old, new))
    assert path.read_text() != text
    with pytest.raises(EmitError, match="something else in training"):
        check(graph, path)


def test_the_comparison_leaves_the_network_as_it_was() -> None:
    graph = trace(nn.BatchNorm1d(3).eval(), torch.randn(3, 3))
    net = graph.module().eval()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    chance = torch.random.get_rng_state()
    compare_training(graph, net, 0.0, "it")
    assert not net.training and torch.equal(torch.random.get_rng_state(), chance)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


def test_a_batch_that_has_no_variance_is_not_compared(tmp_path: Path) -> None:
    graph = trace(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval(), torch.randn(1, 4), static_batch=True)
    assert to_python(graph, tmp_path).difference < 1e-6
