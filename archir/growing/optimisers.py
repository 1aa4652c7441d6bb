"""Optimisers as a configuration names them, and their state as named tensors."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass
from torch import nn

from archir.errors import GrowError, suggest
from archir.growing.shards import shared_out_like, whole
from archir.scoring.ranges import CLOSED, PLAIN, Part, Real, Truth, among, checked, problem

OPTIMISERS = ("sgd", "adamw")

USUAL = {"sgd": 5e-4, "adamw": 1e-2}
"""The weight decay that is usual, by optimiser."""

AUTO = "auto"
"""The learning rate that is found by a range test before the first step; see `archir.growing.range_test`."""

_NUMBER = TypeAdapter[float](Real, config=ConfigDict(allow_inf_nan=False))


def _number_or_auto(value: object) -> float | str:
    return AUTO if isinstance(value, str) and value == AUTO else _NUMBER.validate_python(value)


Rate = Annotated[float | str, PlainValidator(_number_or_auto, json_schema_input_type=Real | Literal["auto"])]

Moment = Annotated[float, Field(strict=True, ge=0, lt=1), PLAIN]


@checked(GrowError, "these are no options of an optimiser")
@dataclass(frozen=True, config=CLOSED)
class OptimiserOptions:
    """How weights are optimised.

    Attributes:
        name: `sgd` or `adamw`.
        rate: learning rate; `auto` for one that a range test finds before the first step.
        weight_decay: decay of the weights; decoupled from the gradient in `adamw`. What is usual if not given, `USUAL`.
        momentum: momentum of `sgd`.
        nesterov: whether that is Nesterov's.
        betas: decay of the first and second moments of `adamw`.
        decay_all: whether parameters of fewer than two dimensions decay, too: biases, and the scales of norms.

    Raises:
        GrowError: there is no such optimiser, or a value is of another kind or out of range; all of them at once.
    """

    name: Annotated[str, among("optimiser", OPTIMISERS)] = "adamw"
    rate: Rate = AUTO
    weight_decay: Real | None = None
    momentum: Part = 0.9
    nesterov: Truth = True
    betas: tuple[Moment, Moment] = (0.9, 0.999)
    decay_all: Truth = False

    @model_validator(mode="after")
    def _is_nesterovs(self) -> Self:
        if self.nesterov and self.name == "sgd" and self.momentum <= 0:
            raise problem("Nesterov's momentum needs a momentum above 0")
        return self

    @property
    def known_rate(self) -> float:
        """The learning rate.

        Raises:
            GrowError: it is still to be found.
        """
        if isinstance(self.rate, str):
            raise GrowError("the learning rate is still to be found", hint="give one, or call find_rate")
        return self.rate

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return an optimiser of the module's trainable parameters, tied ones once.

        Raises:
            GrowError: it has none, or the rate is still to be found.
        """
        rate, decay = self.known_rate, USUAL[self.name] if self.weight_decay is None else self.weight_decay
        parameters = [p for p in module.parameters() if p.requires_grad]
        if not parameters:
            raise GrowError("the model has no trainable parameters")
        kept = [] if self.decay_all else [p for p in parameters if p.dim() < 2]
        decayed = [p for p in parameters if self.decay_all or p.dim() >= 2]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        if self.name == "adamw":
            return torch.optim.AdamW(groups, rate, betas=self.betas, weight_decay=decay)
        return torch.optim.SGD(
            groups,
            rate,
            momentum=self.momentum,
            weight_decay=decay,
            nesterov=self.nesterov,
        )


def optimiser_tensors(
    optimiser: torch.optim.Optimizer, module: nn.Module, device: torch.device | None = None
) -> dict[str, torch.Tensor]:
    """Return the state of an optimiser as whole tensors named `slot/parameter`, such as `exp_avg/conv.weight`.

    Args:
        optimiser: the optimiser.
        module: the module whose parameters it has.
        device: where the tensors are to be; where they are if not given.
    """
    return {
        f"{slot}/{name}": whole(_as_tensor(value)).detach().to(device, copy=True)
        for name, parameter in module.named_parameters()
        for slot, value in optimiser.state.get(parameter, {}).items()
        if value is not None
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give an optimiser the state that `optimiser_tensors` returned; other parameters keep what they have.

    The state may come from a file. It is held to what a copy of the optimiser keeps after a step, whatever its class;
    `torch.distributed.checkpoint.state_dict` takes any shapes and names, and counts a step of an optimiser that is
    asked for its state before the first.

    Raises:
        GrowError: a name, a shape or an element type does not fit the module or the optimiser, something is missing
            that it keeps, or a number is not finite; the optimiser is left as it was.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    groups = {names[p]: (p, group) for group in optimiser.param_groups for p in group["params"]}
    given: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        slot, _, name = key.partition("/")
        if name not in groups:
            raise GrowError(f"optimiser state {key!r} belongs to no parameter", hint=suggest(name, groups))
        given.setdefault(name, {})[slot] = tensor
    states: dict[torch.Tensor, dict[str, Any]] = {}
    for name, slots in given.items():
        parameter, group = groups[name]
        kept = _kept(optimiser, parameter, group)
        if missing := [slot for slot in kept if slot not in slots]:
            raise GrowError(f"optimiser state of {name!r} lacks {', '.join(missing)}")
        states[parameter] = {slot: _fitting(slot, name, tensor, kept, optimiser) for slot, tensor in slots.items()}
    optimiser.state.update(states)


def _kept(optimiser: torch.optim.Optimizer, parameter: torch.Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return something like what an optimiser keeps of a parameter, by slot: what a copy does after a step."""
    like = torch.zeros_like(parameter)
    like.grad = torch.zeros_like(parameter)
    trial = copy.copy(optimiser)
    trial.param_groups = [{**group, "params": [like]}]
    # Some keep numbers from the start, which they need for a step.
    trial.state = defaultdict(dict, {like: copy.deepcopy(optimiser.state.get(parameter, {}))})
    trial.step()
    return {slot: value for slot, value in trial.state[like].items() if value is not None}


def _fitting(
    slot: str, name: str, tensor: torch.Tensor, kept: Mapping[str, Any], optimiser: torch.optim.Optimizer
) -> object:
    """Return a copy of a tensor as an optimiser keeps it in a slot, where and in the layout in which it does.

    Raises:
        GrowError: it does not fit there, or is not finite.
    """
    key = f"{slot}/{name}"
    if slot not in kept:
        raise GrowError(f"optimiser state {key!r} is none of {type(optimiser).__name__}", hint=suggest(slot, kept))
    like = _as_tensor(kept[slot])
    if tensor.shape != like.shape:
        raise GrowError(f"optimiser state {key!r} is {list(tensor.shape)}, not {list(like.shape)}")
    if tensor.dtype != like.dtype or not bool(torch.isfinite(tensor).all()):
        raise GrowError(f"optimiser state {key!r} is not of finite numbers of type {like.dtype}")
    if not isinstance(kept[slot], torch.Tensor):
        return tensor.item()
    return torch.empty_like(like).copy_(shared_out_like(tensor.to(like.device), like))


def _as_tensor(value: torch.Tensor | float) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float64 if type(value) is float else None)
