from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from archir.ir.graph import Graph
from frontends.pytorch import trace
from tests.growing.process_groups import pool
from tests.growing.small_run import Seed


@pytest.fixture(scope="module")
def seed_graph() -> Graph:
    torch.manual_seed(0)
    return trace(Seed(), (torch.randn(4, 1, 6, 6),))


@pytest.fixture(scope="session")
def workers() -> Iterator[ProcessPoolExecutor]:
    """Two processes that wait for work, see `process_groups.on_both`."""
    with pool() as found:
        yield found
