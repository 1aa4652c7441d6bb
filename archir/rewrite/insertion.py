"""Insertion: new calls and stored tensors of a graph, under a module path of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from enum import Enum

import torch

from archir.errors import PassError
from archir.ir.edit import Edit
from archir.ir.graph import Graph, Patch
from archir.ir.node import Argument, Location, Use, Value
from archir.ir.room import too_large
from archir.ir.types import TensorType
from archir.rewrite.surroundings import Activation


class Start(Enum):
    """What a new weight holds.

    Attributes:
        RANDOM: normal numbers with variance 2/fan-in.
        ZERO: zeros.
        IDENTITY: what lets its input through unchanged.

    Source: He et al. 2015 for the variance.
    """

    RANDOM = "random"
    ZERO = "zero"
    IDENTITY = "identity"


class Insertion:
    """Adds calls to a graph that is being edited, as a new module beside the one a value comes from.

    Stored tensors have the names that modules of `torch.nn` give them, so that emitted source is made of these.

    Attributes:
        edit: the edit.
        path: path of the new module.
    """

    def __init__(self, edit: Edit, beside: Value, name: str, kind: str) -> None:
        """Find a place.

        Args:
            edit: the edit.
            beside: a value; the new module goes into the module that holds the layer it comes from.
            name: name of the new module; a number is appended where it is taken.
            kind: its class, for people and for emitted source: `SqueezeExcite`.
        """
        self.edit = edit
        self._kind = kind
        self._node = edit.node(beside.node)
        type_ = edit.type_of(beside)
        assert isinstance(type_, TensorType)
        self._dtype = type_.dtype
        self.path = self._fresh_path(name)
        self._generator = torch.Generator().manual_seed(beside.node)

    def _fresh_path(self, name: str) -> str:
        place = self._node.location
        within = place.module if place else ""
        if place and place.kind.startswith("torch.nn.modules.") and not self._is_bare_element(within):
            within = within.rpartition(".")[0]
        stem, number = f"{within}.{name}" if within else name, 1
        path = stem
        while self.edit.is_path(path) or self.edit.is_name(path):
            path, number = f"{stem}_{number}", number + 1
        return path

    def _is_bare_element(self, path: str) -> bool:
        """Say whether a module is a numbered element, of an `nn.Sequential` say, without stored tensors.

        What is new goes into such a module, so that the sequence remains one.
        """
        return path.rpartition(".")[2].isdigit() and not self.edit.stores(path)

    def location(self, name: str = "") -> Location:
        """Return the place of the new calls: the new module, or a layer in it."""
        place = self._node.location
        path = f"{self.path}.{name}" if name else self.path
        return Location(path, self._kind, place.file if place else "", place.line if place else 0)

    def call(self, op: str, *args: Argument, **kwargs: Argument) -> Value:
        """Add a call."""
        return self.edit.call(op, *args, location=self.location(), **kwargs)

    def activate(self, activation: Activation, x: Value) -> Value:
        """Add an activation."""
        return self.call(activation.op, x, **dict(activation.options))

    def parameter(self, name: str, tensor: torch.Tensor, *, kind: str = "parameter") -> Value:
        """Add a stored tensor, where the others are."""
        stored = tensor.to(self.edit.device, self._dtype if tensor.is_floating_point() else tensor.dtype)
        return self.edit.add_parameter(f"{self.path}.{name}", stored, kind=kind, location=self.location())

    def linear(self, name: str, x: Value, features: int, *, start: Start = Start.RANDOM, bias: bool = True) -> Value:
        """Add `nn.Linear` along the last axis."""
        weight = self._weight((features, self.features(x, -1)), start)
        stored = self._stored(name, weight, bias)
        return self.edit.call("aten.linear.default", x, *stored, location=self.location(name))

    def conv(
        self,
        name: str,
        x: Value,
        features: int,
        kernel: Sequence[int],
        *,
        start: Start = Start.RANDOM,
        bias: bool = True,
        stride: Sequence[int] = (),
        padding: Sequence[int] = (),
        dilation: Sequence[int] = (),
        groups: int = 1,
    ) -> Value:
        """Add `nn.Conv1d`, `2d` or `3d`; unless given, the padding is what keeps the size at stride 1 (odd kernels)."""
        rank = len(kernel)
        spread = tuple(dilation) or (1,) * rank
        weight = self._weight((features, self.features(x, -1 - rank) // groups, *kernel), start)
        arguments: dict[str, Argument] = {
            "stride": tuple(stride) or (1,) * rank,
            "padding": tuple(padding) or tuple((k - 1) // 2 * d for k, d in zip(kernel, spread, strict=True)),
            "dilation": spread,
            "groups": groups,
        }
        stored = self._stored(name, weight, bias)
        return self.edit.call(f"aten.conv{rank}d.default", x, *stored, location=self.location(name), **arguments)

    def layer_norm(self, name: str, x: Value) -> Value:
        """Add `nn.LayerNorm` over the last axis."""
        size = self.features(x, -1)
        weight = self.parameter(f"{name}.weight", torch.ones(size))
        bias = self.parameter(f"{name}.bias", torch.zeros(size))
        return self.edit.call("aten.layer_norm.default", x, (size,), weight, bias, location=self.location(name))

    def batch_norm(self, name: str, x: Value, axis: int = 1, eps: float = 1e-5) -> Value:
        """Add `nn.BatchNorm` that changes nothing in evaluation mode: mean 0, variance 1."""
        size = self.features(x, axis)
        weight = self.parameter(f"{name}.weight", torch.full((size,), math.sqrt(1 + eps), dtype=torch.float64))
        bias = self.parameter(f"{name}.bias", torch.zeros(size))
        mean = self.parameter(f"{name}.running_mean", torch.zeros(size), kind="buffer")
        variance = self.parameter(f"{name}.running_var", torch.ones(size), kind="buffer")
        self.parameter(f"{name}.num_batches_tracked", torch.tensor(0), kind="buffer")
        arguments = (x, weight, bias, mean, variance, False, 0.1, eps, True)
        return self.edit.call("aten.batch_norm.default", *arguments, location=self.location(name))

    def blend(self, name: str, kept: Value, other: Value, shape: Sequence[int]) -> Value:
        """Add `kept + a (other - kept)`, where `a` is a stored tensor of a given shape, zero at first."""
        share = self.parameter(name, torch.zeros(tuple(shape)))
        step = self.call("aten.mul.Tensor", self.call("aten.sub.Tensor", other, kept), share)
        return self.call("aten.add.Tensor", kept, step)

    def _stored(self, name: str, weight: torch.Tensor, bias: bool) -> list[Value]:
        found = [self.parameter(f"{name}.weight", weight)]
        return [*found, self.parameter(f"{name}.bias", torch.zeros(len(weight)))] if bias else found

    def features(self, x: Value, axis: int = -1) -> int:
        """Return the size of an axis of a value.

        Raises:
            PassError: it is known only at run time.
        """
        type_ = self.edit.type_of(x)
        assert isinstance(type_, TensorType)
        size = type_.shape[axis]
        if not isinstance(size, int):
            raise PassError("a layer cannot be inserted", why="the number of features is known only at run time")
        return size

    def _weight(self, shape: tuple[int, ...], start: Start) -> torch.Tensor:
        if min(shape) < 1:
            raise PassError("a layer cannot be inserted", why=f"its weight would be of shape {list(shape)}")
        why = too_large(8 * math.prod(shape))  # drawn in float64
        if why:
            raise PassError("a layer cannot be inserted", where=f"its weight would be {list(shape)}", why=why)
        if start is Start.ZERO:
            return torch.zeros(shape)
        if start is Start.IDENTITY:
            weight = torch.zeros(shape)
            middle = tuple(k // 2 for k in shape[2:])
            for unit in range(shape[0]):
                weight[(unit, unit % shape[1], *middle)] = 1
            return weight
        fan_in = math.prod(shape[1:])
        return torch.randn(shape, generator=self._generator, dtype=torch.float64) * math.sqrt(2 / fan_in)


def splice(
    graph: Graph,
    value: Value,
    build: Callable[[Edit], Value],
    *,
    by: str,
    uses: Collection[Use] | None = None,
) -> Patch:
    """Return a patch by which the users of a value use something made of it instead.

    Args:
        graph: the graph.
        value: the value.
        build: adds calls to the edit and returns what takes the place of the value.
        by: spec of the pass, for the history.
        uses: the uses that change; all if not given.

    Raises:
        PassError: what takes its place has another shape or element type.
    """
    chosen = graph.uses(value) if uses is None else uses
    with graph.edit(by=by) as e:
        new = build(e)
        if e.type_of(new) != graph.type_of(value):
            why = f"it is {graph.type_of(value)}, what would take its place {e.type_of(new)}"
            raise PassError("a value cannot be replaced", why=why)
        e.replace_uses(value, new, chosen)
    return e.patch
