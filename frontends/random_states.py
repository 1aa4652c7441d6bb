"""The states of random number generators, kept while a model is run for its own sake."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def undisturbed(seed: int | None = None) -> Iterator[None]:
    """Give the states of all random number generators back in the end.

    Args:
        seed: what they start from in between; where they are if not given.
    """
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.accelerator.device_count())):
        try:
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
