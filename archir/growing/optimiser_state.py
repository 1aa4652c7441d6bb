"""What optimisers gather of each parameter, and what becomes of it when the parameter is rewritten."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn, optim

from archir.errors import GrowError
from archir.growing.shards import shared_out_like, whole
from archir.ir.graph import Patch
from archir.ir.tensor_map import TensorMap

Group = Mapping[str, Any]
"""A parameter group of an optimiser: its options, and its parameters as `params`."""


def _nothing(group: Group) -> float:
    return 0.0


@dataclass(frozen=True)
class Gathered:
    """How numbers that are gathered for each place of a parameter grow with what is put in.

    Attributes:
        power: of the gradients in them; 0 for what does not grow with them: copies hold what the unit held.
        start: what they are before the first step, and at new places.
    """

    power: int
    start: Callable[[Group], float] = _nothing

    def carried(self, value: torch.Tensor, by: TensorMap, group: Group) -> torch.Tensor:
        """Return what they become."""
        start = self.start(group)
        found = by.gradient(value - start, self.power) if self.power else by.unscaled(value - start)
        return found + start


@dataclass(frozen=True)
class Averaged:
    """An average of the weights: what separates it from them goes through the maps as they do."""


FIRST, SECOND, UNSCALED = Gathered(1), Gathered(2), Gathered(0)
"""A mean of gradients, one of their squares, and numbers that do not grow with them."""

Rule = Gathered | Averaged

_ADAM = {"exp_avg": FIRST, "exp_avg_sq": SECOND, "max_exp_avg_sq": SECOND}

RULES: Mapping[type[optim.Optimizer], Mapping[str, Rule]] = {
    optim.SGD: {"momentum_buffer": FIRST},
    optim.Muon: {"momentum_buffer": FIRST},
    optim.Adam: _ADAM,
    optim.AdamW: _ADAM,
    optim.NAdam: _ADAM,
    optim.RAdam: _ADAM,
    optim.SparseAdam: _ADAM,
    optim.Adamax: {"exp_avg": FIRST, "exp_inf": FIRST},
    optim.Adagrad: {"sum": Gathered(2, lambda group: float(group["initial_accumulator_value"]))},
    # Updates do not grow with the gradients where `eps` is small beside their squares.
    optim.Adadelta: {"square_avg": SECOND, "acc_delta": UNSCALED},
    optim.RMSprop: {"square_avg": SECOND, "grad_avg": FIRST, "momentum_buffer": UNSCALED},
    optim.Rprop: {"prev": FIRST, "step_size": Gathered(0, lambda group: float(group["lr"]))},
    optim.ASGD: {"ax": Averaged()},
    optim.Adafactor: {"variance": SECOND},
}
"""What PyTorch's optimisers gather in the shape of a parameter, by class and key."""

ROWS, COLUMNS = "row_var", "col_var"
"""The means of the squares of the gradients over the last axis and over the one before it, as Adafactor keeps them."""


@dataclass(frozen=True)
class Rewritten:
    """A parameter before and after a rewriting.

    Attributes:
        name: its name.
        before: what it held, whole.
        after: what it holds, whole.
        by: how that is made of it, None if nothing of it is.
    """

    name: str
    before: torch.Tensor
    after: torch.Tensor
    by: TensorMap | None


def carry_state(
    optimiser: optim.Optimizer, module: nn.Module, rewriting: Patch, grown: nn.Module
) -> dict[torch.Tensor, dict[str, Any]]:
    """Return the state of an optimiser for the parameters of a module as they are after a rewriting.

    Every tensor that has the shape of its parameter goes through the same index maps: a copy of a unit goes on with
    what it would have gathered had it been there from the first step, a fresh unit or layer starts with what an
    optimiser starts with. Weight decay that is added to the gradients is carried over as if it were one of them. The
    factors of Adafactor go through the maps as the matrix they stand for. Numbers are copied. Of optimisers that are
    not PyTorch's what has the shape of a parameter is reindexed and not scaled: it is not known what it grows with.
    Where processes hold shards of it, one tensor is gathered and mapped after another, and shared out again.

    Args:
        optimiser: the optimiser.
        module: the module before.
        rewriting: how its parameters are rewritten.
        grown: the module after, with the names of the graph after.

    Returns:
        What there is to be kept of each parameter of `grown` that was there before; nothing of new ones.

    Raises:
        GrowError: the optimiser keeps something of another shape.

    Source: ours.
    """
    groups = {p: group for group in optimiser.param_groups for p in group["params"]}
    named = dict(grown.named_parameters(remove_duplicate=False))
    found: dict[torch.Tensor, dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        slots, node = optimiser.state.get(parameter), rewriting.before.by_name[name].id
        if not slots or parameter not in groups or node not in rewriting.after:
            continue
        new = named[rewriting.after.node(node).names[0]]
        by = rewriting.maps.get(node, TensorMap())
        before = rewriting.before.tensors[node].to(parameter.device)
        there = Rewritten(name, before, whole(new.detach()), by)
        gathered = {slot: whole(value) if isinstance(value, torch.Tensor) else value for slot, value in slots.items()}
        carried = _carried(optimiser, gathered, there, groups[parameter])
        found[new] = {
            slot: shared_out_like(value, new) if isinstance(value, torch.Tensor) and value.shape == new.shape else value
            for slot, value in carried.items()
        }
    return found


def _carried(optimiser: optim.Optimizer, slots: Mapping[str, Any], there: Rewritten, group: Group) -> dict[str, Any]:
    rules = next((RULES[kind] for kind in type(optimiser).__mro__ if kind in RULES), {})
    found: dict[str, Any] = {}
    for slot, value in slots.items():
        if not isinstance(value, torch.Tensor) or not value.dim():
            found[slot] = copy.deepcopy(value)
        elif isinstance(optimiser, optim.Adafactor) and slot in (ROWS, COLUMNS):
            found[slot] = _factor(slots, there)[slot]
        elif value.shape == there.before.shape:
            found[slot] = _mapped(value, there, rules.get(slot, UNSCALED), group)
        else:
            raise GrowError(
                f"the state of {type(optimiser).__name__} cannot be carried over",
                where=f"{slot} of {there.name}",
                why=f"it is {list(value.shape)}, and the parameter {list(there.before.shape)}",
                hint="make a new optimiser of what apply(model) returns",
            )
    return found


def _mapped(value: torch.Tensor, there: Rewritten, rule: Rule, group: Group) -> torch.Tensor:
    like = there.after
    if isinstance(rule, Averaged):
        kept = like if there.by is None else there.by.change(value - there.before.to(value)) + like.to(value)
    else:
        kept = torch.full_like(like, rule.start(group)) if there.by is None else rule.carried(value, there.by, group)
    return torch.empty_like(like, dtype=value.dtype).copy_(kept)


def _factor(slots: Mapping[str, Any], there: Rewritten) -> dict[str, torch.Tensor]:
    """Return the factors of Adafactor, through the matrix of second moments that they stand for."""
    rows, columns = slots[ROWS], slots[COLUMNS]
    tiny = torch.finfo(rows.dtype).tiny
    whole = rows * columns / rows.mean(-2, keepdim=True).clamp(min=tiny)
    mapped = torch.zeros_like(there.after) if there.by is None else there.by.gradient(whole, 2)
    return {ROWS: mapped.mean(-1, keepdim=True), COLUMNS: mapped.mean(-2, keepdim=True)}
