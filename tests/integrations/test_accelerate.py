"""Growth in a loop of one's own with accelerate: on what is unwrapped, with nothing to be prepared anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import archir

pytest.importorskip("accelerate")

from accelerate import Accelerator

pytestmark = pytest.mark.slow


def batches() -> DataLoader[Any]:
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long()), 50)


def run(folder: Path, resume: bool = False) -> nn.Module:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
    if resume:
        archir.write_back(archir.load(folder / "grown.archir"), model)
    optimizer = optim.Adam(model.parameters(), 0.05)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, batches(), scheduler)
    if resume:
        accelerator.load_state(str(folder / "state"))
    for epoch in range(2 if resume else 0, 4):
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
        if epoch == 1:
            inner = accelerator.unwrap_model(model)
            options = archir.GrowOptions(learn_steps=8, score_examples=60, batch_size=50, refine=8, rule="net2net")
            plan = archir.propose(inner, loader, budget=70, options=options)
            plan.apply(inner, optimizer.optimizer, in_place=True)
            assert plan.specs
            plan.graph.save(folder / "grown.archir")
            accelerator.save_state(str(folder / "state"))
    assert scheduler.get_last_lr()[0] == pytest.approx(0.0, abs=1e-9)
    found: nn.Module = accelerator.unwrap_model(model)
    return found


def test_a_loop_with_accelerate_grows_and_is_resumed(tmp_path: Path) -> None:
    whole = run(tmp_path)
    assert whole[0].out_features > 4  # type: ignore[index]
    resumed = run(tmp_path, resume=True)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)
