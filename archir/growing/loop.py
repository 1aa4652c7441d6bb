"""What a training loop of the user's own holds beside the model, as it goes on after a rewriting of the weights."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import nn, optim
from torch.optim.lr_scheduler import LRScheduler

from archir.errors import GrowError, suggest
from archir.growing.device import device_of
from archir.growing.optimiser_state import carry_state
from archir.growing.parameter_groups import grown_groups
from archir.growing.weight_average import carry_average
from archir.ir.graph import Patch

_TRACKED = "_wrapped_by_lr_sched"
"""What schedulers mark the step of an optimiser with that they watch."""

Schedulers = Any
"""A scheduler of `torch.optim.lr_scheduler`, or several; whatever holds its optimiser as `optimizer`."""


def check_optimiser(optimiser: optim.Optimizer, model: nn.Module) -> None:
    """Check that an optimiser is one of a model, and that what it keeps can be carried over.

    Raises:
        GrowError: it holds parameters that are not the model's, or none that are, keeps parameters beside its groups,
            or what it has gathered is of all of them together.
    """
    if not isinstance(optimiser, optim.Optimizer):
        raise GrowError(f"a {type(optimiser).__name__} is no optimiser of torch.optim")
    name, own = type(optimiser).__name__, set(model.parameters())
    if isinstance(optimiser, optim.LBFGS):
        raise GrowError(
            "LBFGS cannot go on after its parameters are rewritten",
            why="the curvature it has gathered is that of a function of all parameters at once",
            hint="apply(model) without it, and make a new one of what comes back",
        )
    held = [p for group in optimiser.param_groups for p in group["params"]]
    if strange := sum(p not in own for p in held):
        raise GrowError(
            f"{strange} of the {len(held)} parameters of the optimiser are not the model's",
            why="it was made of another model, or the model was replaced or moved since",
            hint="give the optimiser that was made of model.parameters()",
        )
    if "step" in vars(optimiser) and not hasattr(vars(optimiser)["step"], _TRACKED):
        raise GrowError(f"the step of the {name} was replaced by another function", hint="give it as it was made")
    for key, value in vars(optimiser).items():
        if isinstance(value, optim.Optimizer):
            raise GrowError(
                f"{name} holds another optimiser, {key}", hint=f"give optimizer.{key}, and wrap what returns"
            )
        listed = isinstance(value, list | tuple) and any(isinstance(p, nn.Parameter) for p in value)
        if listed or isinstance(value, nn.Parameter):
            raise GrowError(
                f"{name} keeps parameters beside its groups, as {key}", hint="make a new one of the new model"
            )


def grown_optimiser(
    optimiser: optim.Optimizer, model: nn.Module, rewriting: Patch, grown: nn.Module
) -> optim.Optimizer:
    """Return an optimiser like another one for the parameters as they are after a rewriting.

    Its groups are those of the other, see `grown_groups`; its state, see `carry_state`. Gradients are left out.

    Args:
        optimiser: the other one, which is left as it is.
        model: the module it is of.
        rewriting: how its parameters are rewritten.
        grown: the module after that.

    Raises:
        GrowError: it keeps something that cannot be carried over.
    """
    found = object.__new__(type(optimiser))
    found.__dict__ = {key: copy.copy(v) if isinstance(v, OrderedDict) else v for key, v in vars(optimiser).items()}
    found.param_groups = grown_groups(optimiser, model, rewriting, grown)
    # Some keep what is of no parameter under keys that are none.
    other = {key: copy.deepcopy(v) for key, v in optimiser.state.items() if not isinstance(key, torch.Tensor)}
    found.state = defaultdict(dict, other | carry_state(optimiser, model, rewriting, grown))
    if "step" in vars(optimiser):
        # A scheduler has put this in place of the method, to know whether it was called.
        _track(found, vars(optimiser)["step"])
    return found


def part_of(optimiser: optim.Optimizer, model: nn.Module) -> optim.Optimizer:
    """Return an optimiser like another one for those of its parameters alone that are a model's; it takes no steps."""
    own = set(model.parameters())
    found = object.__new__(type(optimiser))
    found.__dict__ = {key: value for key, value in vars(optimiser).items() if key != "step"}
    found.param_groups = []
    for group in optimiser.param_groups:
        places = [i for i, parameter in enumerate(group["params"]) if parameter in own]
        kept: dict[str, Any] = {
            key: [group[key][i] for i in places] for key in ("params", "param_names") if key in group
        }
        found.param_groups.append({**group, **kept})
    found.state = defaultdict(dict, {key: value for key, value in optimiser.state.items() if key in own})
    return found


def take_over(optimiser: optim.Optimizer, part: optim.Optimizer, other: optim.Optimizer) -> None:
    """Let an optimiser go on with the parameters and the state of another one in the place of a part of its own.

    Args:
        optimiser: the one that goes on.
        part: the part of it that is replaced, see `part_of`.
        other: that part after a rewriting, which has as many parameters in every group.
    """
    gone = {parameter for group in part.param_groups for parameter in group["params"]}
    for group, its in zip(optimiser.param_groups, other.param_groups, strict=True):
        new = iter(its["params"])
        group["params"] = [next(new) if parameter in gone else parameter for parameter in group["params"]]
    kept = {key: value for key, value in optimiser.state.items() if key not in gone}
    optimiser.state = defaultdict(dict, kept | other.state)


def _track(optimiser: optim.Optimizer, tracked: Any) -> None:
    """Let an optimiser note that its step was called, as the one whose step this is does."""
    plain = tracked.__wrapped__

    @wraps(plain)
    def step(*args: Any, **options: Any) -> Any:
        optimiser._opt_called = True  # type: ignore[attr-defined]
        return plain(optimiser, *args, **options)

    setattr(step, _TRACKED, True)
    optimiser.step = step  # type: ignore[method-assign]


def check_schedulers(schedulers: Schedulers, optimiser: optim.Optimizer | None, *, in_place: bool = False) -> list[Any]:
    """Return the schedulers of an optimiser, those that others hold under any name included.

    Args:
        schedulers: one or several, see `Schedulers`.
        optimiser: what they are to be bound to.
        in_place: whether the optimiser stays the object it is, so that nothing that holds it is left behind.

    Raises:
        GrowError: one is none, or is that of another optimiser; or, where it is not in place, one holds the optimiser
            elsewhere, too.
    """
    found = _found_schedulers(schedulers)
    for one in found:
        name, bound = type(one).__name__, getattr(one, "optimizer", None)
        if not isinstance(bound, optim.Optimizer):
            raise GrowError(f"a {name} is no scheduler of an optimiser")
        if bound is not optimiser:
            raise GrowError(
                f"the {name} is bound to another optimiser",
                hint="give it with the optimiser it was made of" if optimiser else "give its optimiser, too",
            )
        beside = [
            key for key, value in getattr(one, "__dict__", {}).items() if key != "optimizer" and _leads_to(value, bound)
        ]
        if beside and not in_place:
            raise GrowError(
                f"the {name} holds its optimiser elsewhere, too, as {beside[0]}",
                why="that would go on with the optimiser as it was before the step",
                hint="apply in place, where the optimiser stays the object it is, or make a new scheduler",
            )
    return found


def _leads_to(value: object, optimiser: optim.Optimizer) -> bool:
    """Return whether a value is an optimiser, a method bound to it, or holds one of these in a list, tuple or dict."""
    if isinstance(value, dict | list | tuple):
        return any(_leads_to(part, optimiser) for part in (value.values() if isinstance(value, dict) else value))
    return value is optimiser or (isinstance(value, MethodType) and value.__self__ is optimiser)


def _found_schedulers(given: Schedulers) -> list[Any]:
    """Return the schedulers that are given, each once, each before those it holds."""
    found = list[Any]()

    def collect(value: Any, within: bool) -> None:
        if isinstance(value, dict | list | tuple):
            for part in value.values() if isinstance(value, dict) else value:
                collect(part, within)
        elif value is not None and (not within or _is_scheduler(value)) and not any(value is one for one in found):
            found.append(value)
            for part in getattr(value, "__dict__", {}).values():
                collect(part, within=True)

    collect(given, within=False)
    return found


def _is_scheduler(value: object) -> bool:
    """Return whether what another scheduler holds is one itself: one of PyTorch's, or with an optimiser as they have.

    Optimisers that wrap another one and modules are none.
    """
    bound = getattr(value, "__dict__", {}).get("optimizer")
    other = isinstance(value, optim.Optimizer | nn.Module | type)
    return isinstance(value, LRScheduler) or (isinstance(bound, optim.Optimizer) and not other)


@dataclass(frozen=True)
class GrownAverage:
    """An average of the weights of a model, as it is after a rewriting of them.

    Attributes:
        average: what holds it as `module`; `torch.optim.swa_utils.AveragedModel` for one.
        module: the module it holds afterwards.
    """

    average: nn.Module
    module: nn.Module

    @property
    def inner(self) -> nn.Module:
        """The module it holds now."""
        return self.average.get_submodule("module")

    def put(self) -> None:
        """Put the module into its place."""
        self.average.module = self.module


def check_average(average: nn.Module, model: nn.Module) -> nn.Module:
    """Return the module of averaged weights that is within a moving average of a model.

    Raises:
        GrowError: there is none, or it is no average of that model.
    """
    inner = getattr(average, "module", None)
    if not isinstance(average, nn.Module) or not isinstance(inner, nn.Module):
        raise GrowError(
            f"a {type(average).__name__} holds no average of the model",
            hint="give a torch.optim.swa_utils.AveragedModel, or whatever holds the averaged module as .module",
        )
    found, wanted = ({n: t.shape for n, t in m.state_dict().items()} for m in (inner, model))
    if found != wanted:
        wrong = next(n for n in (*wanted, *found) if found.get(n) != wanted.get(n))
        raise GrowError("the average is not that of the model", why=f"{wrong} differs", hint=suggest(wrong, found))
    return inner


def grown_average(average: nn.Module, model: nn.Module, rewriting: Patch, grown: nn.Module) -> GrownAverage:
    """Return a moving average of the weights as it is after a rewriting of them; see `carry_average`.

    It goes on in the shape of the model after, of which it holds a copy. Buffers of real numbers are averages, too.

    Args:
        average: the average, which is left as it is.
        model: the module it is of.
        rewriting: how the weights are rewritten.
        grown: the module after that.

    Raises:
        GrowError: it is none, or not that of the model.
    """
    inner = check_average(average, model)
    module = copy.deepcopy(grown).to(device_of(inner))
    old, new = ({n: t.detach() for n, t in m.state_dict().items()} for m in (inner, module))
    is_real = {n for n, t in new.items() if t.is_floating_point() or t.is_complex()}
    real = carry_average(
        {n: t for n, t in old.items() if n in is_real},
        rewriting,
        {n: t.clone() for n, t in new.items() if n in is_real},
    )
    whole = {n: old.get(n, t) for n, t in new.items() if n not in is_real}
    module.load_state_dict(real | whole)
    for (_, part), (_, was) in zip(module.named_parameters(), grown.named_parameters(), strict=True):
        part.requires_grad_(was.requires_grad)
    names = dict(inner.named_modules())
    for name, part in module.named_modules():
        part.training = names[name].training if name in names else inner.training
    return GrownAverage(average, module)
