"""Gradients switched off and autocast around a call change nothing of what it decides; inference mode is refused."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn

import archir
from archir.errors import ScoreError

OPTIONS = archir.GrowOptions(learn_steps=8, score_examples=60, batch_size=20, refine=12)
X = torch.randn(240, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] * X[:, 1] > 0).long()
BATCHES = list(zip(torch.split(X, 24), torch.split(Y, 24), strict=True))


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def proposed() -> tuple[tuple[str, ...], float | None, float]:
    plan = archir.propose(mlp(), BATCHES, budget=90, morphisms="split", options=OPTIONS)
    return plan.specs, plan.predicted, plan.realised


def scored() -> list[tuple[str, float | None]]:
    return [(s.spec, s.predicted) for s in archir.score(mlp(), BATCHES[:2], morphisms="split", steps=3)]


def test_what_surrounds_a_call_changes_nothing_and_stays() -> None:
    plan, scores = proposed(), scored()
    assert plan[0] and scores
    around: list[AbstractContextManager[object]] = [torch.no_grad(), torch.autocast("cpu", torch.bfloat16)]
    for surroundings in around:
        with surroundings:
            was = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
            assert was != (True, False)
            assert proposed() == plan
            assert scored() == scores
            assert (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")) == was


def test_widths_are_written_back_under_autocast() -> None:
    model = mlp()
    graph = archir.apply(model, "split{width=w0, units=[1]}", example=X)
    with torch.autocast("cpu", torch.bfloat16):
        assert archir.write_back(graph, model) is model
    assert model.get_parameter("0.weight").shape == (6, 6)


def test_inference_mode_is_refused_by_name() -> None:
    for action in (proposed, scored):
        with (
            torch.inference_mode(),
            pytest.raises(ScoreError, match=r"inference_mode.*\n.*\n  hint:  .*torch\.no_grad"),
        ):
            action()
