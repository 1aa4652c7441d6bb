"""How long a forward pass takes on this machine, where the network is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from archir.growing.batches import Batches
from archir.growing.device import device_of, wait_for
from archir.growing.examples import Split
from archir.growing.training import call

WARM_UP, ROUNDS = 3, 15
"""The number of passes that are left out, and of those whose median is taken."""


def measure_latency(
    module: nn.Module,
    split: Split,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the median time of a forward pass of one example in evaluation mode, without gradients, in seconds.

    It is measured where the module is; time on an accelerator is that until it is done.

    Args:
        module: what is measured; left in evaluation mode.
        split: where the example is taken from.
        clock: gives the time in seconds.

    Raises:
        GrowError: the module rejects the example.
    """
    device = device_of(module)
    example, _ = next(iter(Batches(split.take(slice(1)), 1, device=device)))
    module.eval()
    times: list[float] = []
    with torch.no_grad():
        for _ in range(WARM_UP + ROUNDS):
            start = clock()
            call(module, example)
            wait_for(device)
            times.append(clock() - start)
    return statistics.median(times[WARM_UP:])
