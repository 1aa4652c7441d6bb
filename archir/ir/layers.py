"""Finds the calls that a layer of `torch.nn` makes: the one recogniser, of live modules and of emitted source alike.

A layer with tensors is told by its tensors: those under one path that have the names of the layer and go into one call.
One without is told by its call alone. A call is a layer's only if the layer, called on its operands, makes that call
with the same arguments.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from archir.ir.data import GraphData
from archir.ir.execute import mode_argument
from archir.ir.layer_forms import MATCHERS, Form, Options
from archir.ir.node import PARAMETER, Argument, Node, Value
from archir.ir.operators.table import TABLE
from archir.ir.registry import operator_of

_CHANNELS = "Dropout2d"
"""What drops whole channels; its class says how many axes these have."""

BARE = frozenset(o.layer.module for o in TABLE.values() if o.layer and o.layer.module and not o.layer.tensors).union(
    f"Dropout{axes}d" for axes in (1, 2, 3)
)
"""The layers without tensors that calls belong to."""

KINDS = frozenset({*MATCHERS, *(f"BatchNorm{d}d" for d in (1, 2, 3))}) - {"BatchNorm"}
"""The layers with tensors that are found."""

_BUFFERS = frozenset({"running_mean", "running_var", "num_batches_tracked"})


@dataclass(frozen=True, slots=True)
class Make:
    """What a layer of `torch.nn` is made with.

    Attributes:
        kind: its class.
        options: the arguments of its class by name, in order; those at their defaults may be left out.
    """

    kind: str
    options: Options

    def layer(self) -> nn.Module:
        """Return such a layer; its tensors are on the meta device.

        Raises:
            ValueError: torch.nn makes no such layer.
        """
        found = _pattern(self.kind, self.options, repr(self.options))
        if found is None:
            raise ValueError(f"torch.nn makes no {self.kind} with {dict(self.options)}")
        # Copying what its class made of the options is many times quicker than making it again.
        made: nn.Module = object.__new__(found.kind)
        made.__dict__.update(found.state)
        made.__dict__.update((name, found.state[name].copy()) for name in found.containers)
        return made

    @property
    def is_made(self) -> bool:
        """Whether torch.nn makes such a layer."""
        return _pattern(self.kind, self.options, repr(self.options)) is not None


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with tensors.

    Attributes:
        path: its path in the model.
        make: what it is made with.
        tensors: parameter nodes by the names of its tensors; all that stand under its path.
        extra: names of tensors that the layer has and the graph does not store.
    """

    path: str
    make: Make
    tensors: Mapping[str, Node]
    extra: frozenset[str] = frozenset()

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of its parameters."""
        return tuple(name for name, n in self.tensors.items() if n.parameter and n.parameter.kind == "parameter")

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names of its parameters without gradients."""
        return tuple(name for name in self.parameters if not self.tensors[name].is_trainable)


@dataclass(frozen=True, slots=True)
class LayerCall:
    """A node that is a call of a layer.

    Attributes:
        path: path of the layer.
        operands: what it is called with.
        absorbed: nodes that the call makes unnecessary.
    """

    path: str
    operands: tuple[Argument, ...]
    absorbed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers with tensors of a program, by path, and their calls, by node."""

    layers: Mapping[str, Layer]
    calls: Mapping[int, LayerCall]


def find_layers(graph: GraphData) -> Layers:
    """Return the layers with tensors that a program can be made with.

    Args:
        graph: the program.
    """
    owned = _owned(graph)
    parents = _above({*owned, *_places(graph)})
    found: dict[str, list[tuple[Node, Form, Make]]] = {}
    for node in graph.calls:
        layer = operator_of(node.op).layer
        match = MATCHERS.get(layer.module) if layer else None
        form = match(graph, node) if match else None
        if form is None or not _is_constant(form.options):
            continue
        make = Make(form.kind, form.options)
        path = _path(graph, node, form, owned, parents)
        if path and make.is_made:
            found.setdefault(path, []).append((node, form, make))
    layers: dict[str, Layer] = {}
    calls: dict[int, LayerCall] = {}
    for path, users in found.items():
        first = next((user for user in users if user[0].location and user[0].location.module == path), users[0])
        _, form, make = first
        layers[path] = Layer(path, make, owned[path], frozenset(form.optional) - owned[path].keys())
        calls |= {n.id: LayerCall(path, f.operands, f.absorbed) for n, f, other in users if other == make}
    return Layers(layers, calls)


def find_bare_layers(graph: GraphData, modules: Set[str]) -> tuple[Mapping[str, Make], Mapping[int, LayerCall]]:
    """Return the layers without tensors of a program by path, and their calls by node.

    One stands where no tensors and no other modules do, and where all calls that come from there are alike.

    Args:
        graph: the program.
        modules: the paths of its modules.
    """
    owned = _owned(graph)
    inner = owned.keys() | _above({*owned, *_places(graph)})
    made: dict[str, list[tuple[Node, Make | None]]] = {}
    for node in graph.calls:
        path = node.location.module if node.location else ""
        if path and path in modules and path not in inner:
            made.setdefault(path, []).append((node, bare_layer(node)))
    layers: dict[str, Make] = {}
    calls: dict[int, LayerCall] = {}
    for path, users in made.items():
        first = users[0][1]
        if first is not None and all(make == first for _, make in users):
            layers[path] = first
            calls |= {node.id: LayerCall(path, node.values) for node, _ in users}
    return layers, calls


def bare_layer(node: Node) -> Make | None:
    """Return what the layer without tensors is made with that makes a call, None if none does.

    Args:
        node: the call.
    """
    known = operator_of(node.op).layer
    if known is None or known.module not in BARE:
        return None
    modes = {mode_argument(node)}
    operands = [n for n, a in node.arguments.items() if isinstance(a, Value)]
    if len(operands) != 1 or set(node.arguments) - {*known.options, *operands, *modes}:
        return None
    # The operator flattens from the first axis on unless it is told, the layer from the second.
    told = {"start_dim"} if known.module == "Flatten" else set()
    options = [(n, one_or_each(node.argument(n))) for n in known.options if n in node.arguments or n in told]
    kind = known.module
    if kind == _CHANNELS:
        axes = len(node.tensor_type().shape) - 2
        if axes not in (1, 2, 3):
            return None
        kind = f"Dropout{axes}d"
    make = Make(kind, tuple(options))
    return make if _is_constant(make.options) and make.is_made else None


def one_or_each(value: Argument) -> Argument:
    """Return one number for several that are the same: `2` for `[2, 2]`."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A layer that others are copied from: its class, its attributes, and which of these are containers."""

    kind: type[nn.Module]
    state: Mapping[str, Any]
    containers: tuple[str, ...]


@lru_cache(maxsize=4096)
def _pattern(kind: str, options: Options, shown: str) -> _Pattern | None:
    """Return what layers are copied from, None where torch.nn refuses to make it.

    Options that are equal and shown otherwise, as 1 and 1.0 are, have a layer of their own.
    """
    device = {"device": "meta"} if kind in KINDS else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about options without effect, which whoever wrote the model was told of
            found: nn.Module = getattr(nn, kind)(**dict(options), **device)
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError):
        return None
    state = vars(found)
    containers = tuple(name for name, part in state.items() if isinstance(part, dict | list | set))
    return _Pattern(type(found), state, containers)


def _is_constant(options: Options) -> bool:
    def plain(value: object) -> bool:
        return (
            all(map(plain, value))
            if isinstance(value, tuple)
            else value is None or isinstance(value, int | float | str)
        )

    return all(plain(value) for _, value in options)


def _owned(graph: GraphData) -> dict[str, dict[str, Node]]:
    """Return the stored tensors by the path of the module that holds them and their name in it."""
    owned: dict[str, dict[str, Node]] = {}
    for node in graph.parameters:
        for name in node.names:
            path, _, leaf = name.rpartition(".")
            owned.setdefault(path, {})[leaf] = node
    return owned


def _places(graph: GraphData) -> set[str]:
    """Return the paths of the modules that calls come from."""
    return {node.location.module for node in graph.calls if node.location}


def _above(paths: set[str]) -> set[str]:
    """Return the paths of the modules that other modules are in, but the outermost."""
    return {path[:i] for path in paths for i, sign in enumerate(path) if sign == "."}


def _path(graph: GraphData, node: Node, form: Form, owned: Mapping[str, Mapping[str, Node]], parents: set[str]) -> str:
    """Return the path under which the tensors of a call have the names of the layer, empty if there is none."""
    wanted = {name: value for name, value in form.tensors.items() if value is not None}
    first = next(iter(wanted.values()))
    if not isinstance(first, Value) or graph.node(first.node).op != PARAMETER:
        return ""
    here = node.location.module if node.location else ""
    paths = [n.rpartition(".")[0] for n in graph.node(first.node).names]
    for path in sorted(paths, key=lambda p: p != here):
        fields = owned[path]
        if not path or path in parents or fields.keys() - set(form.optional) != wanted.keys():
            continue
        if all(isinstance(v, Value) and fields[n].id == v.node for n, v in wanted.items()) and _fit(fields):
            return path
    return ""


def _fit(fields: Mapping[str, Node]) -> bool:
    """Say whether tensors are kept as a layer keeps its parameters and buffers."""
    for name, node in fields.items():
        kind = "buffer" if name in _BUFFERS else "parameter"
        if node.parameter is None or node.parameter.kind != kind or not node.parameter.persistent:
            return False
    return True
