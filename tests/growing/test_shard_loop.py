"""A growth step in a loop whose model processes hold shards of, as the page on loops takes it."""

from __future__ import annotations

import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import archir
from archir.errors import GrowError
from archir.scoring.processes import ALONE, Processes
from tests.growing.process_groups import on_both

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "loop.md"
BUDGET = archir.Budget(parameters=60)


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 3)).double()


def test_the_loop_of_the_page_on_loops_grows_in_shards(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    wanted = _loop(ALONE)
    assert wanted["0.weight"].shape[0] > 2
    for found in on_both(workers, tmp_path, _loop):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def _loop(processes: Processes) -> dict[str, Tensor]:
    """Train, grow, and train on, in shards if there are several processes; return the weights."""
    model = _net()
    if processes.group is not None:
        fully_shard(model)
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 6, generator=generator, dtype=torch.float64)
    y = x[:, :3].argmax(1)
    batches = list(zip(torch.split(x, 8), torch.split(y, 8), strict=True))
    for step in range(30):
        if step == 25:
            model, optimizer = _grown(processes, model, optimizer, batches)
        part = processes.part(len(x))
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(x[part]), y[part]))
        optimizer.step()
    state = model.state_dict()
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in state.items()}


def _grown(processes: Processes, model: nn.Module, optimizer: Any, batches: Any) -> tuple[nn.Module, Any]:
    options: dict[str, Any] = {"budget": BUDGET, "morphisms": ["split", "widen"]}
    if processes.group is None:
        whole: tuple[nn.Module, Any] = archir.propose(model, batches, **options).apply(model, optimizer)
        return whole
    with pytest.raises(GrowError, match=r"the model is wrapped in FSDPModule(.|\n)*docs/loop.md"):
        archir.propose(model, batches, **options)
    (recipe,) = [text for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "fully_shard" in text]
    names: dict[str, Any] = {}
    exec(compile(recipe, "loop.md", "exec", dont_inherit=True), names)
    found: tuple[nn.Module, Any] = names["grown"](model, optimizer, _net(), batches, **options)
    return found
