"""Models of several inputs and outputs with several targets: estimators against the dense Jacobian, and growth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archir
from archir.scoring.chunks import singly
from archir.scoring.families import find_families
from archir.scoring.objective import Curvature, make_objective
from archir.scoring.refine import refine
from archir.scoring.screen import screen
from archir.testing import evaluate, randomise
from frontends.pytorch import trace
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.scoring.dense import member_of, pushed


class TwoTasks(nn.Module):
    """Labels and a value from an image-like input and a context, as a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.context = nn.Linear(4, 6), nn.Linear(2, 6)
        self.classes, self.value = nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, x: Tensor, context: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.trunk(x) + self.context(context))
        return {"value": self.value(hidden).squeeze(-1), "classes": self.classes(hidden)}


def by_example(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Return the sum of the losses of both tasks for every example."""
    labels = F.cross_entropy(outputs["classes"], targets["label"], reduction="none")
    return labels + (outputs["value"] - targets["value"]) ** 2


def as_mean(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Return the same as a mean over the examples."""
    return by_example(outputs, targets).mean()


def example_data(count: int, dtype: torch.dtype, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator, dtype=dtype)
    context = torch.randn(count, 2, generator=generator, dtype=dtype)
    label = (x[:, 0] > 0).long() + (x[:, 1] * context[:, 0] > 0).long()
    return {"x": x, "context": context}, {"label": label, "value": torch.sin(2 * x[:, 2])}


@pytest.mark.parametrize("loss", [by_example, as_mean])
def test_estimators_are_the_dense_jacobian_of_all_outputs(loss: Any) -> None:
    inputs, targets = example_data(5, torch.float64)
    torch.manual_seed(0)
    graph = randomise(trace(TwoTasks(), (), {n: t.float() for n, t in inputs.items()}).to(torch.float64))
    values = evaluate(graph, list(inputs.values()))
    families, _ = find_families(graph, (Split(), Prune(), Widen(count=2)))
    perturbations = [f.perturbation for f in families]
    thetas = [dict(p.initial_theta(values, 1)) for p in perturbations]
    chosen = [(f, m) for f, p in enumerate(perturbations) for m in range(p.members)]
    deltas = [p.delta(values, t) for p, t in zip(perturbations, thetas, strict=True)]
    u = torch.stack([pushed(graph, values, member_of(perturbations[f], deltas[f], m)) for f, m in chosen])

    def example(flat: Tensor, n: int) -> Tensor:
        outputs = {"value": flat[:1], "classes": flat[None, 1:]}
        return by_example(outputs, {name: t[n : n + 1] for name, t in targets.items()})[0]

    result = torch.cat([values[v].reshape(5, -1) for _, v in graph.output.operands()], 1)
    a, gram = torch.zeros(len(u), dtype=torch.float64), torch.zeros(len(u), len(u), dtype=torch.float64)
    for n in range(5):
        a += u[:, n] @ torch.func.grad(example)(result[n], n) / 5
        gram += u[:, n] @ torch.func.jacrev(torch.func.grad(example))(result[n], n) @ u[:, n].mT / 5
    objective = make_objective(graph, loss)
    found = refine(objective, perturbations, thetas, singly(chosen), [(inputs, targets)])
    assert len(chosen) > 10
    assert torch.allclose(found.first_order, a, rtol=1e-9, atol=1e-9 * float(a.abs().max()))
    assert torch.allclose(found.gram, gram, rtol=1e-9, atol=1e-9 * float(gram.abs().max()))
    screened = screen(objective, perturbations, thetas, [(inputs, targets)], curvature=Curvature.EXACT)
    first = torch.cat([e.first_order for e in screened])
    second = torch.cat([e.curvature for e in screened])
    assert torch.allclose(first, a, rtol=1e-9, atol=1e-9 * float(a.abs().max()))
    assert torch.allclose(second, gram.diagonal(), rtol=1e-9, atol=1e-9 * float(gram.abs().max()))


def test_growth_takes_several_targets() -> None:
    torch.manual_seed(0)
    train, validation = example_data(200, torch.float32), example_data(120, torch.float32, seed=1)
    options = archir.GrowOptions(
        steps=60,
        growth_steps=1,
        first_growth=0.5,
        batch_size=20,
        optimiser=archir.OptimiserOptions("sgd", rate=0.05),
        learn_steps=60,
        score_examples=60,
        evaluate_every=0,
    )
    kinds = "split; widen"
    run = archir.grow(
        TwoTasks(), train=train, validation=validation, budget=150, loss=by_example, options=options, morphisms=kinds
    )
    (finished,) = [e for e in run.history if e["event"] == "finished"]
    assert finished["accuracy"] is None and finished["loss"] < 2
    assert [e for e in run.history if e["event"] == "grown"]
    outputs = run.model(**validation[0])
    assert float(as_mean(outputs, validation[1]).detach()) == pytest.approx(finished["loss"], rel=1e-5)
