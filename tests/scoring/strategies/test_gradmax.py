"""GradMax against the gradients of the widened net, and against a search for larger ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from archir.ir.graph import Graph
from archir.rewrite.theta import by_node
from archir.scoring.strategies.gradmax import SILENCE, GradMax
from passes.split import Split
from passes.widen import Widen
from tests.scoring.strategies.nets import Batch, images, make_scores, perceptron, weight


def incoming_gradient(graph: Graph, batches: list[Batch], name: str, fresh: int) -> Tensor:
    """Return the gradient of the mean loss in the last rows of a weight."""
    module = graph.module().eval()
    losses = [nn.functional.cross_entropy(module(x), y, reduction="none") for x, y in batches]
    parameter = dict(module.named_parameters())[name]
    (found,) = torch.autograd.grad(torch.cat(losses).mean(), parameter)
    return found[-fresh:]


def test_the_function_is_kept_and_the_gradient_is_as_large_as_said() -> None:
    graph, batches = perceptron()
    (widened,) = scores = make_scores(GradMax(), graph, batches, Widen(count=2))
    grown = scores.together([widened]).apply()
    x = batches[0][0]
    assert torch.equal(grown.module().eval()(x), graph.module().eval()(x))
    gradient = incoming_gradient(grown, batches, "inner.weight", 2)
    assert float(gradient.square().sum()) == pytest.approx(-widened.order, rel=1e-9)
    assert widened.predicted is None and scores.model is None


def test_no_other_outgoing_weights_of_that_length_get_larger_gradients() -> None:
    graph, batches = perceptron()
    (widened,) = scores = make_scores(GradMax(), graph, batches, Widen(count=2))
    assert widened.theta is not None
    outer = graph.by_name["outer.weight"].id
    length = float(weight(graph, "outer.weight").norm(dim=0).mean())
    assert torch.allclose(widened.theta[outer].norm(dim=0), torch.tensor(length, dtype=torch.float64))

    def gain(v: Tensor) -> Tensor:
        module = scores.together([widened]).apply().module().eval()
        named = {"outer.weight": torch.cat([weight(graph, "outer.weight"), length * v], 1)}
        w = dict(module.named_parameters())["inner.weight"].detach().requires_grad_()
        losses = [
            nn.functional.cross_entropy(
                torch.func.functional_call(module, {**named, "inner.weight": w}, (x,)), y, reduction="none"
            )
            for x, y in batches
        ]
        (found,) = torch.autograd.grad(torch.cat(losses).mean(), w, create_graph=True)
        return found[-2:].square().sum()

    generator = torch.Generator().manual_seed(0)
    tried = []
    for _ in range(30):
        v = torch.linalg.qr(torch.randn(2, 2, generator=generator, dtype=torch.float64)).Q
        tried.append(float(gain(v).detach()))
    best = float(gain(widened.theta[outer] / length).detach())
    assert best == pytest.approx(-widened.order, rel=1e-9)
    assert max(tried) <= best * (1 + 1e-9)


def test_a_single_unit_is_found_by_gradient_ascent_too() -> None:
    graph, batches = images()
    scores = make_scores(GradMax(), graph, batches, Widen(count=1))
    widened = next(r for r in scores if "w0" in r.spec)
    assert widened.theta is not None
    node = graph.by_name["body.0.weight"].id
    length = float(widened.theta[node].norm())
    stem = graph.by_name["stem.0.weight"].id
    v = torch.randn(widened.theta[node].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = torch.zeros(())
    for _ in range(60):
        v = (v / v.norm()).requires_grad_()
        theta = {**by_node(widened.theta), node: length * v}
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        w = torch.zeros_like(widened.theta[stem]).requires_grad_()
        value = squared_gradient(graph, {**theta, stem: w}, w, x, y)
        (slope,) = torch.autograd.grad(value, v)
        v = slope.detach()
    assert float(value.detach()) == pytest.approx(-widened.order, rel=1e-4)


def squared_gradient(graph: Graph, theta: dict[int, Tensor], w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return `‖∂L/∂W‖²` for a fresh unit of the first width, the net written out."""
    p = {name: graph.tensors[node.id] for name, node in graph.by_name.items()}
    theta_of = {name: theta.get(node.id) for name, node in graph.by_name.items()}
    fresh = torch.tanh(
        nn.functional.batch_norm(
            nn.functional.conv2d(x, w, padding=1),
            theta_of["stem.1.running_mean"],
            theta_of["stem.1.running_var"],
            theta_of["stem.1.weight"],
            theta_of["stem.1.bias"],
        )
    )
    stem = torch.tanh(
        nn.functional.batch_norm(
            nn.functional.conv2d(x, p["stem.0.weight"], padding=1),
            p["stem.1.running_mean"],
            p["stem.1.running_var"],
            p["stem.1.weight"],
            p["stem.1.bias"],
        )
    )
    kernel = theta_of["body.0.weight"]
    assert kernel is not None
    h = nn.functional.conv2d(stem, p["body.0.weight"], p["body.0.bias"], padding=1)
    h = nn.functional.max_pool2d(torch.tanh(h + nn.functional.conv2d(fresh, kernel, padding=1)), 2)
    h = torch.tanh(nn.functional.conv2d(h, p["last.0.weight"], p["last.0.bias"])).flatten(1)
    loss = nn.functional.cross_entropy(h @ p["head.weight"].mT + p["head.bias"], y)
    (found,) = torch.autograd.grad(loss, w, create_graph=True)
    return found.square().sum()


def test_convolutions_batch_norm_and_flattening_are_followed() -> None:
    graph, batches = images()
    scores = make_scores(GradMax(), graph, batches, Widen(count=2), Split())
    assert {m.reason for label, m in scores.misses if label.startswith("split")} == {"the strategy scores widen only"}
    (miss,) = [m for label, m in scores.misses if label.startswith("widen")]
    assert miss.reason == "aten.max_pool2d.default on the way is neither linear nor a pointwise function"
    assert len(scores) == 2
    x = batches[0][0]
    for widened, name in ((next(r for r in scores if w in r.spec), n) for w, n in (("w0", "stem.0"), ("w2", "last.0"))):
        grown = scores.together([widened]).apply()
        assert torch.allclose(grown.module().eval()(x), graph.module().eval()(x), atol=1e-12)
        gradient = incoming_gradient(grown, batches, f"{name}.weight", 2)
        # Batch normalisation divides by √(1 + 1e-5), which is taken as 1.
        assert float(gradient.square().sum()) == pytest.approx(-widened.order, rel=2e-5)


def test_units_that_would_be_dead_are_woken_and_others_are_refused() -> None:
    graph, batches = perceptron(torch.relu)
    (widened,) = make_scores(GradMax(), graph, batches, Widen(count=2))
    assert widened.theta is not None
    inner = widened.theta[graph.by_name["inner.weight"].id]
    expected = SILENCE * weight(graph, "inner.weight").norm(dim=1).mean()
    assert torch.allclose(inner.norm(dim=1), expected.expand(2))
    graph, batches = perceptron(torch.sigmoid)
    scores = make_scores(GradMax(), graph, batches, Widen(count=2))
    assert not len(scores)
    assert [m.reason for _, m in scores.misses] == ["a pointwise function on the way is not zero at zero"]


def test_more_units_than_directions_leave_the_rest_silent() -> None:
    graph, batches = perceptron()
    scores = make_scores(GradMax(), graph, batches, Widen(count=5))
    theta = scores.table[0].theta
    assert theta is not None
    lengths = theta[graph.by_name["outer.weight"].id].norm(dim=0)
    assert bool((lengths[:2] > 0).all()) and bool((lengths[2:] == 0).all())
    x = batches[0][0]
    change = scores.together(scores.table).apply().module().eval()(x) - graph.module().eval()(x)
    assert bool((change.abs() < 1e-14).all())
