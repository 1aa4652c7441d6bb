"""Random networks through trace, prune, split, source and ONNX, held against plain PyTorch and nothing of archir's."""

from __future__ import annotations

import copy
import importlib.util
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from archir.axes.infer import infer_widths
from archir.axes.widths import Place, Width
from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.errors import GraphError, PassError
from archir.ir.graph import Graph
from frontends.pytorch import trace
from passes.prune import Prune
from passes.split import Split
from tools.trust.attack import Attack, Files, Wrong
from tools.trust.random_net import Plan, RandomNet, build, random_plan

Batches = Sequence[tuple[Tensor, ...]]

EXACT, SINGLE = 1e-9, 2e-4
"""Largest differences, relative to the largest output where that exceeds 1, in float64 and in float32."""

UNITS = 3
"""Widths of which a unit is taken."""


def make(dice: random.Random) -> Files:
    """Return the plan of a network."""
    return _file(random_plan(dice), dice.randrange(2**31))


def known() -> Sequence[Files]:
    """Return networks whose control flow depends on the batch, among other things that are easily lost."""
    plans = (
        Plan("image", (("conv", 0, 1), ("many", 1, 0)), "tensor", 0),
        Plan("sequence", (("mlp", 0, 1), ("even", 1, 0)), "dict", 1),
    )
    return [_file(plan, 0) for plan in plans]


def _file(plan: Plan, dice: int) -> Files:
    return {"plan.json": json.dumps(asdict(plan) | {"dice": dice}).encode()}


def use(check: Callable[[RandomNet, Batches, Path, random.Random], None], folder: Path) -> None:
    """Build the network and check one thing about it."""
    content = json.loads((folder / "plan.json").read_bytes())
    dice = random.Random(content.pop("dice"))
    plan = Plan(**content | {"steps": tuple(map(tuple, content["steps"]))})
    net, batches = build(plan)
    check(net, batches, folder, dice)


def _traced(net: RandomNet, batches: Batches, folder: Path, dice: random.Random) -> None:
    graph = _double(net, batches)[2]
    same(graph.module().eval(), *_double(net, batches)[:2], EXACT, "the graph")


def _pruned(net: RandomNet, batches: Batches, folder: Path, dice: random.Random) -> None:
    """Removing a unit does what zeros in its places do, unless statistics or extrema run over the units."""
    wide, inputs, graph = _double(net, batches)
    for width in dice.sample(list(infer_widths(graph)), min(UNITS, len(infer_widths(graph)))):
        unit = dice.randrange(width.size)
        try:
            small = Prune(width=width.name, units=(unit,)).apply(graph)
        except PassError:
            continue
        module = small.module().eval()
        _check_units(width, wide, module, unit)
        if width.roles & {"norm", "reduced"}:
            for batch in inputs:
                tensors(module(*batch))
            continue
        same(module, without(wide, module.state_dict()), inputs, EXACT, f"pruned {width.name} unit {unit}")


def _split(net: RandomNet, batches: Batches, folder: Path, dice: random.Random) -> None:
    """Repeating a unit keeps the function."""
    wide, inputs, graph = _double(net, batches)
    for width in dice.sample(list(infer_widths(graph)), min(UNITS, len(infer_widths(graph)))):
        unit = dice.randrange(width.size)
        try:
            large = Split(width=width.name, units=(unit,)).apply(graph)
        except PassError:
            continue
        module = large.module().eval()
        was, found = wide.state_dict(), module.state_dict()
        for place in _plain(width, was):
            if found[place.parameter].shape[place.axis] != width.size + 1:
                raise Wrong(f"split leaves {place.parameter} as it was")
        same(module, wide, inputs, EXACT, f"split {width.name} unit {unit}")


def _plain(width: Width, state: Mapping[str, Tensor]) -> list[Place]:
    """Return the places of a width where the units are the slices, in order."""
    return [p for p in width.places if p.parameter in state and state[p.parameter].shape[p.axis] == width.size]


def _check_units(width: Width, net: nn.Module, small: nn.Module, unit: int) -> None:
    """Check that the slices that were removed are those of the unit.

    Raises:
        Wrong: others were, or none.
    """
    before, after = net.state_dict(), small.state_dict()
    for place in _plain(width, before):
        if after[place.parameter].shape[place.axis] != width.size - 1:
            raise Wrong(f"prune leaves {place.parameter} as it was")
        if before[place.parameter].unique().numel() == before[place.parameter].numel():
            gone = missing(before[place.parameter], after[place.parameter], place.axis)
            if gone != [unit]:
                raise Wrong(f"prune removes other units of {place.parameter}")


def _source(net: RandomNet, batches: Batches, folder: Path, dice: random.Random) -> None:
    graph = trace(net, batches[0])
    path = to_python(graph, folder).path
    spec = importlib.util.spec_from_file_location("archir_trust_emitted", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    emitted = module.load()
    missing, more = emitted.load_state_dict(net.state_dict(), strict=False)
    if missing or [key for key in more if not key.endswith("num_batches_tracked")]:
        raise Wrong(f"an old state dict does not fit: missing {missing}, unexpected {more}")
    same(emitted.eval(), net, _taken(graph, batches), SINGLE, "the source")
    _refuses(emitted, net, _refused(graph, batches), "the source")


def _onnx(net: RandomNet, batches: Batches, folder: Path, dice: random.Random) -> None:
    graph = trace(net, batches[0])
    path = to_onnx(graph, folder / "net.onnx").path
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    given = ("x", "y")

    def run(*batch: Tensor) -> list[Tensor]:
        feed = {name: t.numpy() for name, t in zip(given, batch, strict=True) if name in names}
        return [torch.from_numpy(found.copy()) for found in session.run(None, feed)]

    same(run, net, _taken(graph, batches), SINGLE, "the ONNX file")
    _refuses(run, net, _refused(graph, batches), "the ONNX file")


def _double(net: RandomNet, batches: Batches) -> tuple[nn.Module, Batches, Graph]:
    """Return everything in float64."""
    wide = copy.deepcopy(net).double()
    inputs = [tuple(t.double() if t.is_floating_point() else t for t in batch) for batch in batches]
    graph = trace(wide, inputs[0])
    return wide, _taken(graph, inputs), graph


def _taken(graph: Graph, batches: Batches) -> Batches:
    """Return the batches a graph takes; it refuses those that its guards do not hold for."""
    module = graph.module().eval()
    found = []
    for batch in batches:
        try:
            with torch.no_grad():
                module(*batch)
        except GraphError:
            continue
        found.append(batch)
    if not found:
        raise Wrong("the graph refuses every batch, that of the example too")
    return found


def _refused(graph: Graph, batches: Batches) -> Batches:
    """Return the batches a graph does not take."""
    taken = _taken(graph, batches)
    return [batch for batch in batches if not any(batch is other for other in taken)]


def _refuses(one: Callable[..., Any], other: Callable[..., Any], batches: Batches, what: str) -> None:
    """Check that what was made of a graph refuses the batches the graph refuses, or is right for them.

    Raises:
        Wrong: it computes something else.
    """
    for batch in batches:
        try:
            with torch.no_grad():
                one(*batch)
        except Exception:  # whatever it says: it is the runtime's own
            continue
        same(one, other, [batch], SINGLE, what)


def same(one: Callable[..., Any], other: Callable[..., Any], batches: Batches, limit: float, what: str) -> None:
    """Check that two networks compute the same for every batch.

    Raises:
        Wrong: they do not.
    """
    for batch in batches:
        with torch.no_grad():
            found, wanted = tensors(one(*batch)), tensors(other(*batch))
        if [t.shape for t in found] != [t.shape for t in wanted]:
            raise Wrong(f"{what} has other shapes for a batch of {len(batch[0])}")
        for a, b in zip(found, wanted, strict=True):
            gap = float((a.double() - b.double()).abs().max())
            if not gap <= limit * max(1.0, float(b.abs().max())):
                raise Wrong(f"{what} differs\nby {gap:.3g} for a batch of {len(batch[0])}")


def tensors(result: object) -> list[Tensor]:
    """Return the tensors of a nested result, in order."""
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def without(net: nn.Module, kept: Mapping[str, Tensor]) -> nn.Module:
    """Return a network with zeros wherever the tensors of a smaller one lack a slice, found by comparing values.

    Raises:
        Wrong: a tensor of the smaller one is no part of the network's.
    """
    zeroed = copy.deepcopy(net)
    state = zeroed.state_dict()
    with torch.no_grad():
        for name, small in kept.items():
            large = state[name]
            for axis in range(large.dim()):
                gone = large.shape[axis] - small.shape[axis]
                if gone:
                    large.index_fill_(axis, torch.tensor(missing(large, small, axis)), 0)
    return zeroed


def missing(large: Tensor, small: Tensor, axis: int) -> list[int]:
    """Return the slices along an axis of a tensor that a smaller one does not have; values are all different."""
    known = set(small.flatten().tolist())
    slices = large.detach().unbind(axis)
    found = [i for i, part in enumerate(slices) if not known & set(part.flatten().tolist())]
    if len(found) != large.shape[axis] - small.shape[axis]:
        raise Wrong("the tensors of a pruned network are not those of the old one")
    return found


NETS = tuple(
    Attack(
        f"net-{name}",
        make,
        partial(use, check),
        known,
        full=300,
        short=short,
        seconds=120,
        memory=6 * 2**30,
        watched=False,
    )
    for name, check, short in (
        ("trace", _traced, 6),
        ("prune", _pruned, 6),
        ("split", _split, 6),
        ("source", _source, 6),
        ("onnx", _onnx, 2),
    )
)
