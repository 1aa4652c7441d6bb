"""The element types that a model takes its inputs in, and examples brought into them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from archir.errors import CaptureError, FileError
from archir.growing.examples import Examples
from archir.ir.graph import Graph
from archir.ir.room import too_large
from archir.ir.types import TensorType
from archir.scoring.pairs import argument_names
from archir.scoring.targets import map_tensors


@dataclass(frozen=True)
class InputTypes:
    """What a model takes.

    Attributes:
        names: of its arguments, those that may be positional first.
        positional: how many these are.
        floats: element type of its floating-point weights.
        types: element types of its inputs by name, where they are known.
    """

    names: tuple[str, ...]
    positional: int
    floats: torch.dtype
    types: Mapping[str, torch.dtype] = field(default_factory=dict)

    @property
    def keywords(self) -> tuple[str, ...]:
        """Names of the arguments other than one that is given alone and without its name."""
        return self.names[1:] if self.positional else self.names

    def __call__(self, examples: Examples) -> Examples:
        """Return examples in these types; what is of them already is returned as it is.

        Inputs become what the model takes, where that loses no more than digits: whole numbers may become fractions,
        and not the other way round. Where it is not known, and in targets, floating-point numbers become those of the
        weights, and whole numbers int64 but for bytes and truth values of inputs.

        Raises:
            FileError: there is no room for them.
        """
        inputs = examples.inputs
        if isinstance(inputs, torch.Tensor):
            first = self.types.get(self.names[0]) if self.positional else None
            taken: torch.Tensor | dict[str, torch.Tensor] = self._input(inputs, first, examples.where)
        else:
            taken = {name: self._input(t, self.types.get(name), examples.where) for name, t in inputs.items()}
        targets = map_tensors(lambda t: _converted(t, self._target(t.dtype), examples.where), examples.targets)
        return replace(examples, inputs=taken, targets=targets)

    def _input(self, tensor: torch.Tensor, wanted: torch.dtype | None, where: str) -> torch.Tensor:
        given = tensor.dtype
        if wanted is None:
            return _converted(tensor, given if given is torch.uint8 else self._target(given), where)
        loses = given.is_floating_point and not wanted.is_floating_point
        keeps = loses or given.is_complex or wanted.is_complex or wanted is torch.bool
        return _converted(tensor, given if keeps else wanted, where)

    def _target(self, given: torch.dtype) -> torch.dtype:
        if given.is_floating_point:
            return self.floats
        return given if given.is_complex or given is torch.bool else torch.int64


def input_types(model: nn.Module | Graph) -> InputTypes:
    """Return what a model takes: of a graph all is known, of a module the names of its arguments and its weights.

    Raises:
        CaptureError: it is neither.
    """
    if not isinstance(model, nn.Module | Graph):
        raise CaptureError(f"a model is an nn.Module, not a {type(model).__name__}")
    if isinstance(model, nn.Module):
        floats = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
        try:
            found = tuple(inspect.signature(model.forward).parameters.values())
        except (TypeError, ValueError):  # code that is not Python, which cannot be captured either
            found = ()
        plain = [p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        keywords = [p.name for p in found if p.kind is p.KEYWORD_ONLY]
        return InputTypes((*plain, *keywords), len(plain), floats)
    trained = (model.tensors[node.id].dtype for node in model.parameters)
    floats = next((dtype for dtype in trained if dtype.is_floating_point), torch.get_default_dtype())
    args, kwargs = model.signature.args, model.signature.kwargs
    positional, named = argument_names(model)
    types: dict[str, torch.dtype] = {}
    for name, leaf in zip((*positional, *named), (*args.children, *kwargs.children), strict=True):
        result = model.inputs[leaf].results[0] if isinstance(leaf, int) else None
        if isinstance(result, TensorType):
            types[name] = result.dtype
    return InputTypes((*positional, *named), len(positional), floats, types)


def _converted(tensor: torch.Tensor, dtype: torch.dtype, where: str) -> torch.Tensor:
    why = too_large(tensor.numel() * dtype.itemsize) if tensor.dtype != dtype else ""
    if why:
        raise FileError(f"there is no room for the examples as {dtype}", where=where, why=why)
    return tensor.to(dtype)
