"""The global generators of random numbers, drawn from under a seed and left as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_state_kept(device: torch.device, seed: int) -> Iterator[None]:
    """Draw from the global generators under a seed within the block, and leave them as they were.

    Args:
        device: whose generator counts beside that of the CPU.
        seed: the seed.
    """
    drawn, numbers = random.getstate(), np.random.get_state()
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        torch.manual_seed(seed) if devices else torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(drawn)
            np.random.set_state(numbers)
