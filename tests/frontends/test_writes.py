from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frontends.pytorch import trace


class Linear(nn.Module):
    """A layer to build small programs on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)


class OverViews(Linear):
    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        view, part = y.view(-1, 2, 4), y[:, 1:3]
        y += 1
        y[:, 0] = 3.0
        y[:, 2:4] *= 2
        return view, part, y


class ThroughViews(Linear):
    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        swapped = y.view(-1, 2, 4).transpose(1, 2)
        swapped.mul_(2)
        first = swapped[:, 0]
        first.add_(1)
        turned = y.permute(1, 0)
        turned[0] += x[:, 0]
        turned.unsqueeze(0).squeeze(0).diagonal().add_(1.0)
        return y, swapped, first, turned


class Filled(Linear):
    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        rows = torch.zeros(x.shape[0], 8)
        for i in range(3):
            rows[:, i] = y[:, i] * i
        mixed = y.new_zeros(x.shape[0], 8)
        mixed[1] = x[0]
        mixed.clamp_(0, 1)
        mixed.abs_().add_(1).pow_(-0.5)
        mixed.unsqueeze_(0)
        copied = torch.empty(x.shape[0], 8, dtype=torch.float64).copy_(y[:, :1])
        wide = y.double()
        wide += x
        narrow = self.layer(x)
        narrow += wide.detach()
        return rows, mixed, copied, wide, narrow


class Replaced(Linear):
    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        other = torch.zeros_like(y)
        other[:, ::2] = y[:, ::2]
        other.t_()
        other = other.t()
        other.masked_fill_(other > 0.1, 2.0)
        F.hardtanh_(other)
        y[x > 0] = 0
        return other, y


class Unfolded(Linear):
    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        windows = y.unfold(1, 2, 2)
        windows.mul_(3.0)
        return y, windows


def assert_same_with_gradients(model: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 8)
    graph = trace(model, (x,))
    assert not any(n.op.split(".")[1].endswith("_") for n in graph.calls)
    module = graph.module()
    given = x.clone()
    results = []
    for each in (model, module):
        found = each(given)
        tensors = found if isinstance(found, tuple) else (found,)
        sum((t * t).sum() for t in tensors).backward()
        results.append((tensors, [p.grad for p in each.parameters()]))
    torch.testing.assert_close(results[1], results[0])
    assert torch.equal(given, x)


@pytest.mark.parametrize("model", [OverViews, ThroughViews, Filled, Replaced, Unfolded])
def test_writes_in_place_are_followed_through_aliases(model: type[nn.Module]) -> None:
    assert_same_with_gradients(model())


def test_gradient_free_blocks_are_inlined_and_detached() -> None:
    class Blocks(Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                fixed = self.layer(x) * 2
                with torch.no_grad():
                    fixed = fixed + 1
            with torch.autocast("cpu", enabled=False):
                free = self.layer(x) * 3
            return fixed * free  # type: ignore[no-any-return]

    assert_same_with_gradients(Blocks())
