"""How long a forward pass takes on this machine, where the network is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from archir.growing.batches import Batches, Drawn
from archir.growing.device import device_of, wait_for
from archir.growing.examples import Split
from archir.growing.given_batches import GivenBatches
from archir.growing.training import call

WARM_UP, ROUNDS = 3, 15
"""The number of passes that are left out, and of those whose median is taken."""


def measure_latency(
    module: nn.Module,
    examples: Split | GivenBatches,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the median time of a forward pass of one example in evaluation mode, without gradients, in seconds.

    It is measured where the module is; time on an accelerator is that until it is done.

    Args:
        module: what is measured; left in evaluation mode.
        examples: where the example is taken from; of batches as they were given the first is taken as it is.
        clock: gives the time in seconds.

    Raises:
        GrowError: the module rejects the example.
    """
    device = device_of(module)
    one: Drawn = Batches(examples.take(slice(1)), 1) if isinstance(examples, Split) else examples
    example, _ = next(iter(replace(one, device=device)))
    module.eval()
    times: list[float] = []
    with torch.no_grad():
        for _ in range(WARM_UP + ROUNDS):
            start = clock()
            call(module, example)
            wait_for(device)
            times.append(clock() - start)
    return statistics.median(times[WARM_UP:])
