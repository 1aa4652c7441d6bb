"""FLOPs as PyTorch's own counter has them, and those of attention on the CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from archir.growing.flop_count import FlopCount


def test_it_counts_as_pytorch_does_forwards_and_backwards() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    count, images = FlopCount(), torch.randn(4, 3, 8, 8)
    with FlopCounterMode(display=False) as expected:
        module(images).sum().backward()
    with count.counting():
        module(images).sum().backward()
    assert count.total == expected.get_total_flops() > 0
    module(images)
    assert count.total == expected.get_total_flops(), "only what is within a block counts"
    with count.counting(), torch.no_grad():
        module(images)
    assert count.total == expected.get_total_flops() + 2 * 4 * (36 * 8 * 27 + 288 * 10)


def test_attention_counts_on_the_cpu() -> None:
    count = FlopCount()
    q, k, v = (torch.randn(2, 4, 64, 16) for _ in range(3))
    with count.counting():
        F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert count.total == 2 * (2 * 2 * 4 * 64 * 64 * 16)


def test_groups_of_convolutions_count_once_forwards_and_twice_backwards() -> None:
    """PyTorch's own counter takes the gradient of each group for that of the whole."""
    module, count = nn.Conv2d(8, 16, 3, groups=4), FlopCount()
    images = torch.randn(2, 8, 6, 6, requires_grad=True)
    forward = 2 * 2 * (4 * 4) * 16 * (8 // 4) * 9
    with count.counting():
        y = module(images)
    assert count.total == forward
    with count.counting():
        y.sum().backward()
    assert count.total == 3 * forward
    with count.counting():
        module(images.detach()).sum().backward()
    assert count.total == 5 * forward, "the images ask for no gradient"
