"""What speeds are compared of: a grown network, and one by hand with its shape and its weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
import torch

from tools.emitted_speed import SUBJECTS, doubled, ratio
from tools.timing import in_turn
from tools.unet import UNet


@pytest.mark.parametrize("name", ["resnet20", "gpt"])
def test_a_grown_network_has_the_shape_of_the_one_by_hand(name: str) -> None:
    torch.manual_seed(0)
    subject = SUBJECTS[name]
    graph = doubled(subject)
    by_hand = subject.make(1.0)
    by_hand.load_state_dict(graph.module().state_dict())
    x = subject.inputs(3)
    wanted, found = graph.module().eval()(x), by_hand.eval()(x)
    assert wanted.shape == found.shape and graph.history
    if name == "resnet20":  # attention by hand has another factor for heads of another size
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_network_of_segmentation_may_be_half_as_wide() -> None:
    with torch.device("meta"):
        whole, half = (UNet(width=width).state_dict() for width in (64, 32))
    assert sum(t.numel() for n, t in whole.items() if "running" not in n and "num_" not in n) == 14_328_354
    assert whole.keys() == half.keys() and whole["blocks.0.conv1.0.weight"].shape == (256, 768, 3, 3)
    assert half["blocks.0.conv1.0.weight"].shape == (128, 384, 3, 3)


def test_tasks_take_turns_and_the_first_round_does_not_count() -> None:
    done: list[str] = []
    clock: Iterator[int] = count()
    times = in_turn({k: lambda k=k: done.append(k) for k in "ab"}, 2, lambda: float(next(clock)))  # type: ignore[misc]
    assert done == ["a", "b"] * 3 and times == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


def test_both_tasks_are_done_as_often() -> None:
    done: list[str] = []
    assert ratio(lambda: done.append("one"), lambda: done.append("other"), 0.0) > 0
    assert done.count("other") == done.count("one") + 1, "one more to see how long it takes"
