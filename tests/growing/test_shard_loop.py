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
BUDGETS = {10: archir.Budget(parameters=35), 20: archir.Budget(parameters=60)}
"""Budgets of the growth steps, by the step of training that they are taken before."""


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 3)).double()


def test_the_loop_of_the_page_on_loops_grows_in_shards(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    wanted, groups, widths = _loop(ALONE)
    assert 2 < widths[0] < widths[1]
    assert [(group["initial_lr"], group["weight_decay"], len(group["params"])) for group in groups] == [
        (0.05, 0.1, 2),
        (0.01, 0.0, 2),
    ]
    for found, *others in on_both(workers, tmp_path, _loop):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        assert others == [groups, widths]


def _loop(processes: Processes) -> tuple[dict[str, Tensor], list[dict[str, Any]], list[int]]:
    """Train and grow twice, in shards if there are several processes; return weights, groups by numbers, and widths."""
    model, plain = _net(), _net()
    if processes.group is not None:
        fully_shard(model)
    weights = [p for p in model.parameters() if p.dim() > 1]
    biases = [p for p in model.parameters() if p.dim() == 1]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0, "lr": 0.01}], lr=0.05
    )
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    widths: list[int] = []
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 6, generator=generator, dtype=torch.float64)
    y = x[:, :3].argmax(1)
    batches = list(zip(torch.split(x, 8), torch.split(y, 8), strict=True))
    for step in range(30):
        if step in BUDGETS:
            model, optimizer, plain = _grown(processes, model, optimizer, plain, batches, BUDGETS[step])
            scheduler.optimizer = optimizer
            widths.append(model.get_parameter("0.weight").shape[0])
        part = processes.part(len(x))
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(x[part]), y[part]))
        if step < 25:  # what has no gradient has no state in the optimiser
            model.get_parameter("2.bias").grad = None
        optimizer.step()
        scheduler.step()
    state = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in model.state_dict().items()}
    groups = [{**group, "betas": tuple(group["betas"])} for group in optimizer.state_dict()["param_groups"]]
    return state, groups, widths


def _grown(
    processes: Processes, model: nn.Module, optimizer: Any, plain: nn.Module, batches: Any, budget: archir.Budget
) -> tuple[nn.Module, Any, nn.Module]:
    options: dict[str, Any] = {"budget": budget, "morphisms": ["split", "widen"]}
    if processes.group is None:
        return *archir.propose(model, batches, **options).apply(model, optimizer), plain
    with pytest.raises(GrowError, match=r"the model is wrapped in FSDPModule(.|\n)*docs/loop.md"):
        archir.propose(model, batches, **options)
    (recipe,) = [text for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "fully_shard" in text]
    names: dict[str, Any] = {}
    exec(compile(recipe, "loop.md", "exec", dont_inherit=True), names)
    found: tuple[nn.Module, Any, nn.Module] = names["grown"](model, optimizer, plain, batches, **options)
    return found
