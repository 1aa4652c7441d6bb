"""What a model does in training and its graph does not is told, with the line; what is not lost is not."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils import parametrizations, spectral_norm
from torch.utils.checkpoint import checkpoint

import archir
from archir.errors import CaptureWarning
from frontends.pytorch import trace

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Halved(torch.autograd.Function):
    """A sigmoid with half the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 0.5


halved: Callable[[Tensor], Tensor] = Halved.apply


class Model(nn.Module):
    """A layer, and something after it."""

    mean: Tensor

    def __init__(
        self, after: Callable[[Model, Tensor], Tensor] = lambda m, x: x, layer: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.layer = layer or nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)
        self.register_buffer("mean", torch.zeros(4))
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self, self.layer(x))


def own_backward(m: Model, x: Tensor) -> Tensor:
    return halved(x)  # here


def dropped_in_training(m: Model, x: Tensor) -> Tensor:
    return F.dropout(x, 0.1) if m.training else x  # here


def dropped_by_probability(m: Model, x: Tensor) -> Tensor:
    return F.dropout(x, 0.1 if m.training else 0.0, m.training)  # here


def dropped_layer(m: Model, x: Tensor) -> Tensor:
    return x if m.training and torch.rand(()) < 0.1 else x.tanh()  # here


def dropped_layer_by_python(m: Model, x: Tensor) -> Tensor:
    return x if m.training and random.random() < 2 else x.tanh()  # here


def stochastic_depth(m: Model, x: Tensor) -> Tensor:
    return x + torch.empty(x.shape[0], 1).bernoulli_(0.9) * x.tanh() if m.training else x + x.tanh()  # here


def noise(m: Model, x: Tensor) -> Tensor:
    return x + torch.randn_like(x) if m.training else x  # here


def running_mean(m: Model, x: Tensor) -> Tensor:
    if m.training:
        m.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))  # here
    return x - m.mean


def dropped_weights(m: Model, x: Tensor) -> Tensor:
    y: Tensor = m.attention(x[:, None], x[:, None], x[:, None])[0]  # here
    return y


def other_tensor(m: Model, x: Tensor) -> Tensor:
    bias = m.attention.out_proj.bias if m.training else m.layer.get_parameter("bias")
    return x - bias  # here


LOST: list[tuple[Callable[[Model, Tensor], Tensor], str]] = [
    (own_backward, "Halved.backward; its forward is differentiated instead"),
    (dropped_in_training, "dropout (in training only)"),
    (dropped_by_probability, "dropout with 0.1 in training and 0.0 in evaluation"),
    (dropped_layer, "a branch on random numbers or data (in training only, and all that follows)"),
    (dropped_layer_by_python, "tanh (in evaluation only)"),
    (stochastic_depth, "bernoulli_ (in training only)"),
    (other_tensor, "sub with attention.out_proj.bias in training and layer.bias in evaluation"),
    (noise, "randn_like (in training only)"),
    (running_mean, "mul_ (in training only)"),
    (dropped_weights, "dropout of attention weights that are returned (need_weights)"),
]


def warned(model: nn.Module) -> CaptureWarning:
    state = {k: t.clone() for k, t in model.state_dict().items()}
    with pytest.warns(CaptureWarning) as caught:
        trace(model, (X,))
    assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())
    (found,) = caught
    assert found.filename == __file__ and isinstance(found.message, CaptureWarning)
    return found.message


@pytest.mark.parametrize(("after", "text"), LOST, ids=[after.__name__ for after, _ in LOST])
def test_what_is_lost_is_told_with_its_line(after: Callable[[Model, Tensor], Tensor], text: str) -> None:
    (loss,) = warned(Model(after)).losses
    assert text in loss
    with open(__file__, encoding="utf-8") as file:
        lines = file.readlines()
    first = after.__code__.co_firstlineno
    line = next(n for n in range(first, len(lines)) if lines[n - 1].rstrip().endswith("# here"))
    assert f"{__file__}:{line}" in loss


@pytest.mark.parametrize("normalise", [spectral_norm, parametrizations.spectral_norm])
def test_spectral_norms_are_told_with_their_module(normalise: Callable[[nn.Module], nn.Module]) -> None:
    (loss,) = warned(Model(layer=normalise(nn.Linear(4, 4)))).losses
    assert loss.startswith("layer") and "normalize (in training only)" in loss and __file__ in loss


def test_hooks_on_gradients_are_told() -> None:
    model = Model()
    model.layer.register_full_backward_hook(lambda module, given, made: None)
    weight: Any = model.layer.get_parameter("weight")
    weight.register_hook(lambda grad: grad * 2)
    hook, of_tensor = warned(model).losses
    assert hook.startswith(f"layer ({__file__}:") and hook.endswith("a backward hook")
    assert of_tensor.startswith("layer.weight (") and of_tensor.endswith("a hook on its gradient")


def test_all_places_are_in_one_warning() -> None:
    model = nn.Sequential(Model(noise), nn.Linear(4, 4), Model(own_backward))
    found = warned(model)
    assert len(found.losses) == 2 and all(loss in str(found) for loss in found.losses)
    assert str(found).startswith("Sequential does in training") and "\n  hint: " in str(found)
    assert issubclass(archir.CaptureWarning, UserWarning) and isinstance(found, archir.CaptureWarning)


def checkpointed(m: Model, x: Tensor) -> Tensor:
    y: Tensor = checkpoint(torch.tanh, x, use_reentrant=False) if m.training else torch.tanh(x)
    return y


def straight_through(m: Model, x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def scaled_gradient(m: Model, x: Tensor) -> Tensor:
    return 0.1 * x + (0.9 * x).detach()


def other_line(m: Model, x: Tensor) -> Tensor:
    if m.training:
        return x - m.mean.tanh()
    return x - m.mean.tanh()


@pytest.mark.parametrize("after", [other_line, checkpointed, straight_through, scaled_gradient])
def test_what_is_the_same_in_both_modes_is_not_told(after: Callable[[Model, Tensor], Tensor]) -> None:
    trace(Model(after), (X,))


def test_layers_that_follow_the_mode_are_not_told() -> None:
    stock = [
        nn.Dropout(),
        nn.BatchNorm1d(4),
        nn.BatchNorm1d(4, momentum=None),
        nn.AlphaDropout(),
        nn.RReLU(),
        nn.FeatureAlphaDropout(),
    ]
    trace(nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), *stock), (X,))
    trace(nn.Sequential(nn.BatchNorm1d(4)), (X[:1],))  # one example is too few for it in training
    trace(nn.LSTM(4, 5, num_layers=2, dropout=0.1, batch_first=True), (torch.randn(2, 3, 4),))
    trace(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (torch.randn(2, 3, 4),))
    trace(nn.Sequential(nn.InstanceNorm1d(4, track_running_stats=True), nn.Dropout1d()), (torch.randn(2, 4, 3),))


@lru_cache
def table(length: int) -> list[int]:
    return torch.ones(length).shape[0] * [1]


def test_what_is_made_once_and_kept_is_not_told() -> None:
    table.cache_clear()
    trace(Model(lambda m, x: x * len(table(3))), (X,))
    table.cache_clear()


def test_models_that_keep_tensors_unless_they_are_exported_keep_none_that_are_hollow() -> None:
    kept: list[Tensor] = []

    def after(m: Model, x: Tensor) -> Tensor:
        made = x.tanh()
        if not torch.compiler.is_compiling():
            kept.append(made)
        return made

    trace(Model(after), (X,))
    assert kept and not any(isinstance(t, FakeTensor) for t in kept)


def test_random_numbers_are_left_as_they_were() -> None:
    torch.manual_seed(3)
    random.seed(3)
    expected = torch.rand(1), random.random()
    model = Model(dropped_layer_by_python)
    torch.manual_seed(3)
    random.seed(3)
    with pytest.warns(CaptureWarning):
        trace(model, (X,))
    assert (torch.rand(1), random.random()) == expected
