"""An output counts as defined only where no content of an undefined row changes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from archir.emit.undefined import find_undefined
from frontends.pytorch import trace


class Hidden(nn.Module):
    """What follows from a softmax over nothing shows only if it is above, or below, what softmax ever gives."""

    def __init__(self, above: bool) -> None:
        super().__init__()
        self.above = above

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weights = x.masked_fill(mask, float("-inf")).softmax(-1).nan_to_num(0.0)
        return (weights - 1.5).relu() if self.above else (-0.5 - weights).relu()


@pytest.mark.parametrize("above", [True, False])
def test_a_row_that_agrees_by_luck_is_not_defined(above: bool) -> None:
    mask = torch.tensor([[True] * 4, [True, False, True, False]])
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    graph = trace(Hidden(above).eval(), (x, mask), static_batch=True)
    (elements,) = find_undefined(graph, [x, mask], [0.0]).elements
    assert bool(elements[0].any()) and not bool(elements[1].any())
