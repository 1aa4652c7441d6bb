"""Runs a model and its graph on the same example, and says in what they differ.

What export makes of a model is not taken on trust: whatever it loses without a word, in place or in training, shows
here.

Source: ours.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.ir.room import too_large
from frontends.examples import Example
from frontends.exporting import mode
from frontends.random_states import undisturbed

_TOLERANCE: Mapping[torch.dtype, float] = {torch.float64: 1e-7, torch.float32: 1e-3}
"""Largest difference that rounding makes in evaluation, in parts of the largest element; by element type."""

_COARSE, _TRAINED = 5e-2, 1e-2
"""The same for shorter element types, and for training, where rounding goes through a backward pass."""


@dataclass(frozen=True)
class Agreement:
    """What came of running a model and its graph.

    Attributes:
        difference: in what they differ, in words; nothing if they do not.
        compared: whether both ran, and gave what can be compared.
    """

    difference: str = ""
    compared: bool = True


@dataclass
class _Outcome:
    """What a run made, by name.

    Attributes:
        made: results, and in training buffers and gradients.
        failed: what it raised, if it did.
    """

    made: dict[str, torch.Tensor] = field(default_factory=dict)
    failed: str = ""


def compare(graph: Graph, model: nn.Module, example: Example, *, training: bool = False) -> Agreement:
    """Run copies of a model and of the module of its graph on an example, and compare what they make.

    Their weights are shaken, alike, so that what a zero hides shows. In training that is results, buffers and the
    gradients of the sum of squares of all results. A model that makes something else with other random numbers, or
    with weights that differ by rounding, is not compared. Nor are weights shaken, or a step of training compared, where
    functions that the model has kept compute with its own tensors, which no copy of it changes. What has no numbers,
    cannot be copied, or has no room for four copies is not compared at all.

    Args:
        graph: the graph.
        model: the model; it is left as it was.
        example: what both are called with.
        training: in training mode, instead of evaluation mode.
    """
    stored = [*model.parameters(), *model.buffers(), *example.tensors]
    if any(t.is_meta for t in stored) or too_large(4 * sum(t.nbytes for t in stored)):
        return Agreement(compared=False)

    try:
        borrows = _borrows(model, example)
    except Exception:
        return Agreement(compared=False)  # not copied, not run: the model stays as it was
    if borrows and training:
        return Agreement(compared=False)
    with mode(model, training=False):
        return _compared(graph, model, example, borrows=borrows, training=training)


def _compared(graph: Graph, model: nn.Module, example: Example, *, borrows: bool, training: bool) -> Agreement:
    def ready(rounding: float = 0.0) -> nn.Module:
        copied = copy.deepcopy(model)
        return copied if borrows else _shaken(_shaken(copied, 0.1), rounding)

    wanted = _run(ready(), example, training=training)
    wanted.made = {name: made for name, made in wanted.made.items() if not _is_idle(graph, name)}
    lowered = _with_tensors_of(graph, ready())
    found = _run(copy.deepcopy(lowered), example, training=training)
    if wanted.failed or found.failed:
        same = bool(wanted.failed) and bool(found.failed)
        told = f"the graph raises {found.failed}" if found.failed else f"the model raises {wanted.failed}"
        return Agreement("" if same else told, compared=not wanted.failed)

    def differs(module: nn.Module, outcome: _Outcome, times: float = 1.0, seed: int = 0) -> bool:
        again = _run(module, example, training=training, seed=seed)
        return bool(again.failed or _difference(outcome.made, again.made, times * tolerance))

    kinds = {t.dtype for t in (*model.parameters(), *example.tensors) if t.is_floating_point()}
    tolerance = max((_TOLERANCE.get(kind, _COARSE) for kind in kinds), default=_TOLERANCE[torch.float32])
    tolerance = max(tolerance, _TRAINED) if training else tolerance
    difference = _difference(wanted.made, found.made, tolerance)
    if difference:
        random = differs(ready(), wanted, seed=1) and differs(lowered, found, seed=1)
        rounding = max((torch.finfo(kind).eps for kind in kinds), default=0.0)
        if random or differs(ready(8 * rounding), wanted, times=0.1):
            return Agreement(compared=False)
    return Agreement(difference)


class _Watch(TorchFunctionMode):
    """Sees whether any of some tensors is used."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._ids = {id(tensor) for tensor in tensors}
        self.used = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.used = self.used or any(id(leaf) in self._ids for leaf in pytree.tree_leaves((args, kwargs or {})))
        return func(*args, **(kwargs or {}))


def _borrows(model: nn.Module, example: Example) -> bool:
    """Say whether a copy of a model uses tensors or parts of the model itself, as functions it has kept do."""
    watch, copied = _Watch((*model.parameters(), *model.buffers())), copy.deepcopy(model)
    called: list[nn.Module] = []
    hooks = [part.register_forward_pre_hook(lambda part, _: called.append(part)) for part in model.modules()]
    try:
        with mode(model, training=False), watch:
            _run(copied, example, training=False)
    finally:
        for hook in hooks:
            hook.remove()
    return watch.used or bool(called)


def _is_idle(graph: Graph, name: str) -> bool:
    """Say whether something is a buffer of a module of which the graph uses nothing, so that it stays as it was."""
    kind, _, path = name.partition(" ")
    if kind != "buffer":
        return False
    used = [n for node in graph.parameters if graph.uses(Value(node.id)) for n in node.names]
    return path.rpartition(".")[0] not in {n.rpartition(".")[0] for n in used}


def _shaken(model: nn.Module, amount: float) -> nn.Module:
    """Change every stored number by some part of its size, and those of parameters that are zero too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for is_parameter, tensors in ((True, model.parameters()), (False, model.buffers())):
            for tensor in tensors:
                if tensor.is_floating_point() and tensor.numel():
                    wide = tensor.to(tensor.dtype if tensor.dtype in _TOLERANCE else torch.float32)
                    noise = torch.rand(tensor.shape, generator=generator).to(wide)
                    scale = float(wide.abs().double().mean()) or float(is_parameter)
                    change = amount * scale * noise if is_parameter else amount * noise * wide
                    tensor.copy_(torch.where(torch.isfinite(wide), wide + change, wide))
    return model


def _with_tensors_of(graph: Graph, model: nn.Module) -> nn.Module:
    """Return the module of a graph with the numbers of the model, where they are in its state."""
    module = graph.module()
    # A module that stands in two places goes by another name first in either of them.
    known = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    with torch.no_grad():
        for name, tensor in (
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        ):
            if name in known and known[name].shape == tensor.shape:
                tensor.copy_(known[name])
    return module


def _run(module: nn.Module, example: Example, *, training: bool, seed: int = 0) -> _Outcome:
    made = _Outcome()
    with undisturbed(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            given = example.distinct()
            module.train(training)
            with torch.set_grad_enabled(training):
                result = module(*given.args, **given.kwargs)
            leaves = [t for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
            made.made = {f"result {i}": leaf.detach() for i, leaf in enumerate(leaves)}
            if training:
                made.made |= _trained(module, leaves)
        except Exception as error:
            made.failed = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return made


def _trained(module: nn.Module, results: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the buffers and the gradients after a step of training."""
    module.zero_grad()
    loss = sum(t.abs().square().double().mean() for t in results if t.requires_grad and t.numel())
    if isinstance(loss, torch.Tensor):
        loss.backward()  # type: ignore[no-untyped-call]
    found = {f"buffer {name}": buffer.detach().clone() for name, buffer in module.named_buffers()}
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    return found | {f"the gradient of {n}": g.clone() for n, g in gradients.items() if g is not None}


def _difference(wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], tolerance: float) -> str:
    """Say where what was found is not what was wanted; nothing if it is everywhere."""
    results = [sum(name.startswith("result") for name in names) for names in (wanted, found)]
    if results[0] != results[1]:
        return f"it makes {results[1]} tensors instead of {results[0]}"
    for name, one in wanted.items():
        # A buffer that is not kept may be a constant of the graph, under another name.
        other = found.get(name)
        if other is None:
            continue
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"{name} is {other.dtype} {list(other.shape)} instead of {one.dtype} {list(one.shape)}"
        off = _distance(one, other)
        if off > (tolerance if one.is_floating_point() or one.is_complex() else 0.0):
            return f"{name} is off by {off:.2g} of its largest element"
    return ""


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference of two tensors in parts of the largest element; infinities equal themselves."""
    if one.numel() == 0:
        return 0.0
    wide = torch.complex128 if one.is_complex() else torch.float64
    left, right = one.to(wide), other.to(wide)
    same = (left == right) | (left.isnan() & right.isnan())
    gap = torch.where(same, 0, (left - right).abs()).real
    if not bool(torch.isfinite(gap).all()):
        return float("inf")
    largest = float(torch.nan_to_num(left.abs().real, nan=0.0, posinf=0.0, neginf=0.0).max())
    return float(gap.max()) / max(largest, 1e-6)
