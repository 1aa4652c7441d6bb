"""Rules for pruning against their formulas written out."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from archir.scoring.scores import Scores
from archir.scoring.strategies.pruning import Magnitude, Taylor
from passes.prune import Prune
from passes.split import Split
from tests.scoring.strategies.nets import images, make_scores, perceptron, weight


def orders(scores: Scores, width: str, count: int) -> torch.Tensor:
    return torch.tensor(
        [scores[f"prune{{width={width}, units=[{u}]}}"].order for u in range(count)], dtype=torch.float64
    )


def test_taylor_is_gradient_times_activation() -> None:
    graph, batches = perceptron()
    scores = make_scores(Taylor(), graph, batches, Split(), Prune())
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    w, b, v, c = (weight(graph, n) for n in ("inner.weight", "inner.bias", "outer.weight", "outer.bias"))
    hidden = torch.tanh(x @ w.mT + b).requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(hidden @ v.mT + c, y, reduction="sum"), hidden)
    expected = (gradient * hidden).abs().mean(0).detach()
    assert torch.allclose(orders(scores, "w0", 4), expected / expected.norm(), rtol=1e-9)
    assert len(scores) == 4
    assert [m.reason for _, m in scores.misses] == ["the strategy scores prune only"]


def test_taylor_sums_over_the_positions_of_an_image_before_taking_the_magnitude() -> None:
    graph, batches = images()
    scores = make_scores(Taylor(), graph, batches, Prune())
    module = graph.module().eval()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    p = {name: graph.tensors[node.id] for name, node in graph.by_name.items()}
    h = torch.nn.functional.conv2d(x, p["stem.0.weight"], padding=1)
    mean, variance, scale, shift = (p[f"stem.1.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
    h = torch.tanh(torch.nn.functional.batch_norm(h, mean, variance, scale, shift)).requires_grad_()
    z = torch.nn.functional.conv2d(h, p["body.0.weight"], p["body.0.bias"], padding=1)
    z = torch.nn.functional.max_pool2d(torch.tanh(z), 2)
    z = torch.tanh(torch.nn.functional.conv2d(z, p["last.0.weight"], p["last.0.bias"])).flatten(1)
    logits = z @ p["head.weight"].mT + p["head.bias"]
    assert torch.allclose(logits, module(x), atol=1e-12)
    (gradient,) = torch.autograd.grad(cross_entropy(logits, y, reduction="sum"), h)
    expected = (gradient * h).sum((2, 3)).abs().mean(0).detach()
    assert torch.allclose(orders(scores, "w0", 3), expected / expected.norm(), rtol=1e-9)


def test_magnitude_is_the_mean_square_of_the_incoming_weights() -> None:
    graph, batches = images()
    scores = make_scores(Magnitude(), graph, batches, Prune(), Split())
    for width, name in (("w0", "stem.0.weight"), ("w1", "body.0.weight"), ("w2", "last.0.weight")):
        expected = weight(graph, name).flatten(1).square().mean(1)
        assert torch.allclose(orders(scores, width, len(expected)), expected / expected.norm(), rtol=1e-9)
    assert len(scores) == 9 and len(scores.misses) == 3
    assert [r.order for r in scores] == sorted(r.order for r in scores)
    assert all(r.theta is None and r.predicted is None for r in scores)
