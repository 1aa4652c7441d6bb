"""The sizes a model was given in place, stage by stage, as plain data, and models as they are made brought to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, field, replace
from math import prod
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from archir.errors import GrowError
from archir.growing.write_back import stored_tensors
from archir.ir.room import too_large
from archir.scoring.ranges import CLOSED, Whole, checked

Size = Whole | tuple[Whole, ...]
"""What an attribute of a module says of its sizes."""


@checked(GrowError, "this is no record of a growth step")
@dataclass(frozen=True, config=CLOSED, kw_only=True)
class Stage:
    """What a model was like from a growth step on; of the first one, what it was like as it was made.

    All stages of a model speak of the same tensors and attributes: those that some growth step has changed.

    Attributes:
        step: number of the training step after which it was so.
        shapes: of stored tensors, by name.
        attributes: sizes among the attributes of its modules, by their paths and names, `net.0.out_features`.
        specs: the rewrites that led to it.
        expected: what these were predicted to do to the loss on the examples they were checked on, in nats for
            likelihoods; None if nothing was.
        realised: what they did to it there.

    Raises:
        GrowError: a value is of another kind; all of them at once.
    """

    step: Whole
    shapes: dict[str, tuple[Whole, ...]]
    attributes: dict[str, Size]
    specs: tuple[str, ...] = ()
    expected: float | None = None
    realised: float = 0.0

    def fits(self, tensors: Mapping[str, Any]) -> bool:
        """Say whether tensors of a model at this stage might be these, some of which may be left out."""
        return all(tuple(tensors[name].shape) == shape for name, shape in self.shapes.items() if name in tensors)

    def over(self, other: Stage) -> Stage:
        """Return the stage with what it does not speak of as it was at another one."""
        return replace(self, shapes=other.shapes | self.shapes, attributes=other.attributes | self.attributes)


@dataclass(frozen=True)
class Sizes:
    """All sizes of a model that are kept with it.

    Attributes:
        shapes: of stored tensors, by name.
        attributes: whole numbers, and tuples of them, among the attributes of its modules, by path and name.
    """

    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    attributes: dict[str, int | tuple[int, ...]] = field(repr=False)


def sizes_of(model: nn.Module) -> Sizes:
    """Return all sizes of a model."""
    attributes: dict[str, int | tuple[int, ...]] = {}
    for path, part in model.named_modules():
        for name, value in vars(part).items():
            if _is_size(value):
                attributes[f"{path}.{name}" if path else name] = value if type(value) is int else tuple(value)
    return Sizes({name: tuple(t.shape) for name, t in stored_tensors(model).items()}, attributes)


def _is_size(value: object) -> bool:
    whole = value if type(value) in (tuple, list) and value else [value]
    return isinstance(whole, Iterable) and all(type(v) is int for v in whole)


def next_stage(stages: Sequence[Stage], before: Sizes, after: Sizes, reached: Stage) -> tuple[Stage, ...]:
    """Return the stages of a model with one more.

    Args:
        stages: those so far.
        before: sizes of the model before the growth step.
        after: its sizes after it.
        reached: what else there is to say of it; its sizes are not looked at.
    """
    shapes = {name for name, shape in after.shapes.items() if before.shapes.get(name) != shape}
    sizes = {name for name, value in after.attributes.items() if before.attributes.get(name, value) != value}
    old = Stage(
        step=0,
        shapes={name: before.shapes[name] for name in shapes},
        attributes={name: before.attributes[name] for name in sizes},
    )
    known = [stage.over(old) for stage in stages] or [old]
    new = replace(
        reached,
        shapes=known[-1].shapes | {name: after.shapes[name] for name in shapes},
        attributes=known[-1].attributes | {name: after.attributes[name] for name in sizes},
    )
    return (*known, new)


def to_data(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Return stages as lists, mappings, texts and numbers, to be kept in a checkpoint."""
    return [asdict(stage) | {"specs": list(stage.specs)} | _lists(stage) for stage in stages]


def _lists(stage: Stage) -> dict[str, Any]:
    return {
        "shapes": {name: list(shape) for name, shape in stage.shapes.items()},
        "attributes": {n: list(v) if isinstance(v, tuple) else v for n, v in stage.attributes.items()},
    }


def from_data(data: object) -> tuple[Stage, ...]:
    """Return the stages that `to_data` has made this of.

    Raises:
        GrowError: it has not.
    """
    if not isinstance(data, list) or not all(isinstance(d, dict) and all(type(k) is str for k in d) for d in data):
        raise GrowError("this is no record of growth steps", why=f"it is a {type(data).__name__}, no list of mappings")
    if wrong := sorted({key for d in data for key in d if key not in Stage.__dataclass_fields__}):
        raise GrowError("this is no record of growth steps", why=f"it speaks of {', '.join(wrong[:5])}")
    return tuple(Stage(**stage) for stage in data)


def bring_to(model: nn.Module, stage: Stage) -> None:
    """Give a model the sizes it had at a stage; tensors that are of another shape become zero.

    What changes is what a growth step in place changes: stored tensors and sizes among the attributes of modules. The
    weights are to be loaded afterwards, and optimisers to be made.

    Args:
        model: one that is made as that one was.
        stage: the stage.

    Raises:
        GrowError: the model has other tensors or attributes, or there is no room for those it is to have. It is as it
            was then.
    """
    tensors = stored_tensors(model)
    parts = dict(model.named_modules())
    _check(stage, tensors, parts)
    new: dict[int, torch.Tensor] = {}
    for name, old in tensors.items():
        shape = stage.shapes.get(name, tuple(old.shape))
        if tuple(old.shape) != shape:
            path, _, last = name.rpartition(".")
            if id(old) not in new:
                made = torch.zeros(shape, dtype=old.dtype, device=old.device)
                is_parameter = isinstance(old, nn.Parameter)
                new[id(old)] = nn.Parameter(made, requires_grad=old.requires_grad) if is_parameter else made
            setattr(model.get_submodule(path), last, new[id(old)])
    for name, value in stage.attributes.items():
        path, _, last = name.rpartition(".")
        kind = type(getattr(parts[path], last))
        setattr(parts[path], last, value if kind is int else kind(value))


def _check(stage: Stage, tensors: Mapping[str, torch.Tensor], parts: Mapping[str, nn.Module]) -> None:
    wrong, size = list[str](), 0
    for name, shape in stage.shapes.items():
        if name not in tensors:
            wrong.append(f"{name} is not in it")
        elif tensors[name].dim() != len(shape):
            wrong.append(f"{name} is {list(tensors[name].shape)}, and was {list(shape)}")
        else:
            size += prod(shape) * tensors[name].element_size()
    for name, value in stage.attributes.items():
        path, _, last = name.rpartition(".")
        found = vars(parts[path]).get(last) if path in parts else None
        if not _is_size(found) or (type(found) is int) != isinstance(value, int):
            wrong.append(f"{name} is {found!r:.40}, and was {value}")
    if why := too_large(size):
        wrong.append(why)
    if wrong:
        raise GrowError(
            "the model is not made as the one that has grown",
            why="; ".join(wrong[:5]) + (f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""),
            hint="make it with the same code and options",
        )
