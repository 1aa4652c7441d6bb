from __future__ import annotations

import pytest
import torch

from archir.ir.graph import Graph
from frontends.pytorch import trace
from tests.growing.small_run import Seed


@pytest.fixture(scope="module")
def seed_graph() -> Graph:
    torch.manual_seed(0)
    return trace(Seed(), (torch.randn(4, 1, 6, 6),))
