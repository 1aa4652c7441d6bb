"""Settings every test runs under: one thread a worker, fixed seeds, examples that never change."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("archir", deadline=None, derandomize=True, print_blob=False, max_examples=50)
settings.load_profile("archir")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
