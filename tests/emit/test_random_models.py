"""Random networks are written module by module, and compute in double precision what they did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from archir.emit.check import tensors_in
from archir.emit.layouts import LAYOUTS, draft
from archir.emit.python import to_python
from frontends.pytorch import trace
from tests.emit.loading import load_draft
from tests.emit.random_models import WIDTH, Net


def traced(seed: int) -> tuple[nn.Module, torch.Tensor]:
    model = Net(seed).double().eval()
    return model, torch.randn(5, 3, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("seeds", [range(at, at + 6) for at in range(0, 60, 6)], ids=str)
def test_every_layout_computes_what_the_model_does(seeds: range, tmp_path: Path) -> None:
    for seed in seeds:
        model, x = traced(seed)
        graph = trace(model, x)
        wanted = tensors_in(model(x))
        for layout in LAYOUTS:
            net = load_draft(draft(graph, layout), tmp_path)
            found = tensors_in(net(x))
            assert len(found) == len(wanted)
            for one, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=f"{seed} {layout}")
            stored = {n for node in graph.parameters if (p := node.parameter) and p.persistent for n in p.names}
            counters = {k for k in net.state_dict() if k.endswith("num_batches_tracked")}
            assert set(net.state_dict()) - counters == stored - counters
            trained = {n: p.requires_grad for n, p in model.named_parameters(remove_duplicate=False)}
            kept = dict(net.named_parameters(remove_duplicate=False))
            assert {n: p.requires_grad for n, p in kept.items()} == {n: trained[n] for n in kept}


def test_old_state_dicts_fit(tmp_path: Path) -> None:
    for seed in range(4):
        model, x = traced(seed)
        graph = trace(model, x)
        net = load_draft(draft(graph, "modules"), tmp_path)
        for parameter in net.parameters():
            parameter.data.zero_()
        net.load_state_dict({k: v for k, v in model.state_dict().items() if k in net.state_dict()})
        for one, other in zip(tensors_in(net(x)), tensors_in(model(x)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", [1, 2])
def test_source_is_checked_before_it_is_kept(seed: int, tmp_path: Path) -> None:
    model, x = traced(seed)
    assert to_python(trace(model, x), tmp_path, tolerance=1e-12).difference < 1e-12
