"""Optimisers and learning rates as a configuration names them, and optimiser state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from archir.errors import GrowError, suggest
from archir.score.ranges import PART, Range, Real, Truth, out_of_range, plain, shown

OPTIMISERS = ("sgd", "adamw")
SLOTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.SGD: ("momentum_buffer",),
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
}
"""What an optimiser keeps for each parameter, by its class."""

POWERS = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2}
"""The power of the gradients in each of these, but for the count of steps."""

SHAPES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class OptimiserOptions:
    """How weights are optimised.

    Attributes:
        name: `sgd` or `adamw`.
        rate: learning rate.
        weight_decay: decay of the weights; decoupled from the gradient in `adamw`.
        momentum: momentum of `sgd`.
        nesterov: whether that is Nesterov's.
        betas: decay of the first and second moments of `adamw`.
    """

    name: str = "sgd"
    rate: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.name not in OPTIMISERS:
            raise GrowError(f"there is no optimiser {self.name!r}", mend=suggest(self.name, OPTIMISERS))
        ranges: dict[str, Range] = {"rate": Real(), "weight_decay": Real(), "momentum": PART, "nesterov": Truth()}
        problems = out_of_range(self, ranges)
        betas, moment = self.betas, Real(most=1, below=True)
        if isinstance(betas, tuple):
            betas = tuple(map(plain, betas))
            object.__setattr__(self, "betas", betas)
        if not isinstance(betas, tuple) or len(betas) != 2 or not all(map(moment.fits, betas)):
            problems.append(f"betas is {shown(betas)}, not a pair, each {moment}")
        if problems:
            raise GrowError("these are no options of an optimiser", where="; ".join(problems))
        if self.nesterov and self.name == "sgd" and self.momentum <= 0:
            raise GrowError("Nesterov's momentum needs a momentum above 0")

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return an optimiser of the module's trainable parameters, tied ones once.

        Raises:
            GrowError: it has none.
        """
        parameters = [p for p in module.parameters() if p.requires_grad]
        if not parameters:
            raise GrowError("the model has no trainable parameters")
        if self.name == "adamw":
            return torch.optim.AdamW(parameters, self.rate, betas=self.betas, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            parameters,
            self.rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each step: a linear warm-up, then constant, linear or cosine down to `last`.

    Attributes:
        rate: highest learning rate.
        steps: number of steps, warm-up included; the rate stays `last` after them.
        warmup: number of steps of the warm-up.
        shape: `constant`, `linear` or `cosine`.
        last: learning rate at the end, for the falling shapes.
    """

    rate: float
    steps: int
    warmup: int = 0
    shape: str = "cosine"
    last: float = 0.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise GrowError(f"there is no schedule {self.shape!r}", mend=suggest(self.shape, SHAPES))
        if not 0 <= self.warmup < self.steps:
            raise GrowError(f"a warm-up of {self.warmup} steps does not fit into {self.steps} steps")

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        if self.shape == "constant":
            return self.rate
        done = min(1.0, (step - self.warmup) / (self.steps - self.warmup))
        left = 1 - done if self.shape == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.last + (self.rate - self.last) * left


def optimiser_tensors(optimiser: torch.optim.Optimizer, module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of an optimiser as tensors named `slot/parameter`, such as `exp_avg/conv.weight`."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        for slot, value in optimiser.state.get(parameter, {}).items():
            if value is not None:
                tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
                found[f"{slot}/{name}"] = tensor.detach().clone()
    return found


def restore_optimiser(optimiser: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give an optimiser the state that `optimiser_tensors` returned.

    Raises:
        GrowError: a name, a shape or an element type does not fit the module or the optimiser, or a number is not
            finite; the optimiser is left as it was.
    """
    parameters = dict(module.named_parameters())
    slots = SLOTS[type(optimiser)]
    states: dict[torch.Tensor, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        slot, _, name = key.partition("/")
        parameter = parameters.get(name)
        if parameter is None:
            raise GrowError(f"optimiser state {key!r} belongs to no parameter", mend=suggest(name, parameters))
        if slot not in slots:
            raise GrowError(f"optimiser state {key!r} is none of {type(optimiser).__name__}", mend=suggest(slot, slots))
        # The count of steps is a number, all else is as large as the parameter.
        shape, kind = ([], torch.float32) if slot == "step" else (list(parameter.shape), parameter.dtype)
        if list(tensor.shape) != shape:
            raise GrowError(f"optimiser state {key!r} is {list(tensor.shape)}, its parameter {list(parameter.shape)}")
        if tensor.dtype != kind or not bool(torch.isfinite(tensor).all()):
            raise GrowError(f"optimiser state {key!r} is not of finite numbers of type {kind}")
        states.setdefault(parameter, {})[slot] = tensor.to("cpu" if slot == "step" else parameter.device, copy=True)
    partial = next((p for p, found in states.items() if len(found) != len(slots)), None)
    if partial is not None:
        name = next(n for n, p in parameters.items() if p is partial)
        missing = ", ".join(slot for slot in slots if slot not in states[partial])
        raise GrowError(f"optimiser state of {name!r} lacks {missing}")
    optimiser.state.clear()
    optimiser.state.update(states)
