"""Which axes of the inputs of a model are dynamic besides the batch, as users name them, or as two examples show."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from torch.export.dynamic_shapes import _DerivedDim, _DimHint, _DimHintType
from torch.utils import _pytree as pytree

from archir.errors import CaptureError, suggest
from archir.ir.axis_names import DynamicAxes, name_fault
from frontends.examples import Example

_SPELLING = 'axes are named as in dynamic={"x": {1: "T"}}, on the command line --dynamic x:1=T'


@dataclass(frozen=True)
class DynamicAxis:
    """An axis of an input that is to be dynamic.

    Attributes:
        tensor: number of the tensor among those of the example.
        axis: number of the axis.
        name: what its size is called; axes of one name are one size. Nothing if it has no name.
        required: whether it is an error if the model fixes it.
        bounds: the smallest and the largest size it is to have, where that is said.
    """

    tensor: int
    axis: int
    name: str = ""
    required: bool = True
    bounds: tuple[int | None, int | None] = (None, None)

    @property
    def hint(self) -> Any:
        """What `torch.export` is told of it: that guards may be about it, which stay with the graph."""
        bounds = {key: value for key, value in zip(("min", "max"), self.bounds, strict=True) if value is not None}
        return Dim.AUTO(**bounds) if bounds else Dim.AUTO


def input_names(model: nn.Module, example: Example) -> list[str]:
    """Return what the graph calls each tensor of an example: its argument, and the keys that lead to it there."""
    parameters = inspect.signature(model.forward).parameters
    bound = inspect.signature(model.forward).bind(*example.args, **example.kwargs).arguments
    given: dict[int, str] = {}
    for name, argument in bound.items():
        by_name = parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        for path, leaf in pytree.tree_flatten_with_path(argument)[0]:
            parts = [*([] if by_name else [name]), *(re.sub(r"\W+", "_", str(_key(part))) for part in path)]
            if isinstance(leaf, torch.Tensor):
                given[id(leaf)] = "_".join(parts)
    return [given.get(id(tensor), f"input {i}") for i, tensor in enumerate(example.tensors)]


def _key(part: Any) -> object:
    return getattr(part, "key", getattr(part, "idx", getattr(part, "name", part)))


def named_axes(dynamic: DynamicAxes, model: nn.Module, example: Example) -> tuple[DynamicAxis, ...]:
    """Return the dynamic axes a user has named.

    Args:
        dynamic: their names, by input and number; negative ones count from the end.
        model: the model.
        example: what it is called with.

    Raises:
        CaptureError: there is no such input or axis, an axis is the batch, a name is none, or axes of one name have
            different sizes; all that is wrong is told at once.
    """
    names, tensors = input_names(model, example), example.tensors
    found: list[DynamicAxis] = []
    problems: list[str] = []
    for name, axes in dynamic.items() if isinstance(dynamic, Mapping) else ():
        if name not in names:
            known = f"there are {', '.join(names)}" if names else "there is none"
            problems.append(f"no input is called {name!r}: " + (suggest(str(name), names) or known))
            continue
        tensor = names.index(name)
        for axis, size in axes.items() if isinstance(axes, Mapping) else ():
            problem = _axis_fault(axis, tensors[tensor].dim())
            if problem:
                problems.append(f"axis {axis} of {name}: {problem}")
            elif fault := name_fault(size):
                problems.append(f"axis {axis} of {name}: {fault}")
            else:
                found.append(DynamicAxis(tensor, axis % tensors[tensor].dim(), size))
        if not isinstance(axes, Mapping):
            problems.append(f"{name}: {axes!r} is no mapping from numbers of axes to names")
    if not isinstance(dynamic, Mapping):
        problems.append(f"{dynamic!r} is no mapping from names of inputs to axes")
    twice = [axis for axis, count in Counter((a.tensor, a.axis) for a in found).items() if count > 1]
    problems += [f"axis {axis} of {names[tensor]} is named twice" for tensor, axis in twice]
    problems += unlike(found, names, example)
    if problems:
        raise CaptureError(
            f"these axes of {type(model).__name__} cannot be dynamic",
            where="\n         ".join(problems),
            hint=_SPELLING,
        )
    return tuple(found)


def _axis_fault(axis: object, rank: int) -> str:
    if not isinstance(axis, int) or isinstance(axis, bool):
        return "it is no number"
    if not -rank <= axis < rank:
        return f"the input has {rank} axes, counted from 0"
    return "it is the batch, which is dynamic anyway and called B" if axis % rank == 0 else ""


def unlike(axes: Sequence[DynamicAxis], names: Sequence[str], example: Example) -> list[str]:
    """Return where axes that have one name have different sizes in an example."""
    sizes: dict[str, tuple[DynamicAxis, int]] = {}
    problems: list[str] = []
    for axis in axes:
        size = example.tensors[axis.tensor].shape[axis.axis]
        first, wanted = sizes.setdefault(axis.name or f"{axis.tensor} {axis.axis}", (axis, size))
        if size != wanted:
            problems.append(
                f"{axis.name} is {wanted} on axis {first.axis} of {names[first.tensor]} "
                f"and {size} on axis {axis.axis} of {names[axis.tensor]}"
            )
    return problems


def differing_axes(
    example: Example, other: Example, model: nn.Module, known: Sequence[DynamicAxis]
) -> tuple[DynamicAxis, ...]:
    """Return the axes whose sizes differ between two examples, the first one of each tensor apart, with known names.

    Raises:
        CaptureError: the examples are not of one kind: nesting, element types, numbers of axes, or other values; or no
            size differs, or axes of one name differ; all that is wrong is told at once.
    """
    names, found = input_names(model, example), list(known)
    (left, spec), (right, shape) = (pytree.tree_flatten((e.args, e.kwargs)) for e in (example, other))
    problems = [] if spec == shape else [f"they are nested in different ways: {spec} and {shape}"[:300]]
    number = -1
    for one, two in zip(left, right, strict=True) if spec == shape else ():
        if not isinstance(one, torch.Tensor) or not isinstance(two, torch.Tensor):
            problems += (
                [f"{one!r} in one is {two!r} in the other"[:200]] if type(one) is not type(two) or one != two else []
            )
            continue
        number += 1
        if one.dtype != two.dtype or one.dim() != two.dim():
            kinds = [f"{t.dtype} of {t.dim()} axes" for t in (one, two)]
            problems.append(f"{names[number]} is {kinds[0]} in one and {kinds[1]} in the other")
            continue
        named = {axis.axis for axis in known if axis.tensor == number}
        differ = [axis for axis in range(1, one.dim()) if one.shape[axis] != two.shape[axis]]
        found += [DynamicAxis(number, axis) for axis in differ if axis not in named]
    if not problems:
        problems = unlike(known, names, other)
    if not problems and not found:
        problems = ["no size differs but that of the batch, which is dynamic anyway"]
    if problems:
        raise CaptureError(
            f"two examples of {type(model).__name__} do not show which axes are dynamic",
            where="\n         ".join(problems),
            hint="give other= what the model is called with just so, of other sizes",
        )
    return tuple(found)


def asked_axes(shapes: Any, model: nn.Module, example: Example) -> tuple[DynamicAxis, ...] | None:
    """Return the dynamic axes that `torch.export.export` is told of, None where they are not all named one by one.

    A `Dim` is an axis with a name, if that is one a size can have; guards are kept, where export would refuse them.

    Args:
        shapes: as for `torch.export.export`.
        model: the model.
        example: what it is called with.
    """
    bound = inspect.signature(model.forward).bind(*example.args, **example.kwargs).arguments
    numbers = {id(tensor): i for i, tensor in enumerate(example.tensors)}
    found: list[DynamicAxis] = []

    def walk(part: Any, told: Any) -> bool:
        if told is None:
            return True
        if isinstance(part, torch.Tensor):
            axes = told.items() if isinstance(told, Mapping) else enumerate(told) if _is_list(told) else None
            if axes is None:
                return False
            for axis, dim in axes:
                if not isinstance(axis, int) or not -part.dim() <= axis < part.dim():
                    return False
                made = _asked(numbers[id(part)], axis % part.dim(), dim)
                if made is None:
                    return False
                found.extend(made)
            return True
        if isinstance(part, Mapping) and isinstance(told, Mapping):
            return part.keys() == told.keys() and all(walk(part[key], told[key]) for key in part)
        both = _is_list(part) and _is_list(told) and len(part) == len(told)
        return both and all(map(walk, part, told))

    if isinstance(shapes, Mapping):
        fits = shapes.keys() == bound.keys() and all(walk(bound[name], shapes[name]) for name in bound)
    else:
        fits = _is_list(shapes) and len(shapes) == len(bound) and all(map(walk, bound.values(), shapes))
    names = input_names(model, example)
    return tuple(found) if fits and not unlike(found, names, example) else None


def _is_list(part: object) -> bool:
    return isinstance(part, tuple | list)


def _asked(tensor: int, axis: int, dim: Any) -> list[DynamicAxis] | None:
    """Return an axis as it is asked for, none if it is to be static, None if it cannot be said so."""
    if isinstance(dim, _DimHint):
        if dim.type is _DimHintType.STATIC:
            return []
        return [DynamicAxis(tensor, axis, "", dim.type is _DimHintType.DYNAMIC, (dim.min, dim.max))]
    if isinstance(dim, Dim) and not isinstance(dim, _DerivedDim):
        bounds = tuple(int(b) if isinstance(b, int) and b > 1 and b < 2**62 else None for b in (dim.min, dim.max))
        return [DynamicAxis(tensor, axis, dim.__name__, True, (bounds[0], bounds[1]))]
    return [] if dim is None else None
