"""Divides a program into the forward functions of its modules, without changing the order of its calls.

A module has a forward of its own where all calls that come from it stand together: then it is one call,
`x = self.layer1(x)`. Where they do not (it is called several times, or what was added to it runs elsewhere), its calls
are made by the module it is in. So nothing is moved, and random numbers are drawn in the order of the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from archir.ir.data import GraphData
from archir.ir.execute import mode_argument
from archir.ir.layers import LayerCall
from archir.ir.node import PARAMETER, Argument, Node, Value
from archir.ir.types import ScalarType, TensorType

Parts = tuple[str, ...]
"""The path of a module, part by part."""


@dataclass(frozen=True, slots=True)
class Region:
    """What a module does in its forward.

    Attributes:
        path: path of the module.
        steps: the calls it makes and the modules it calls, in order.
        inputs: values it takes from outside, in the order of their first use.
        outputs: values it makes that are used outside, in order.
        sizes: numbers it takes from outside that are sizes of its inputs: the input and the axis of each.
        end: the position of its last call.
        kind: the class it was captured from, with its package; empty if unknown.
    """

    path: str
    steps: tuple[Node | Region, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    end: int
    kind: str = ""
    sizes: Mapping[Value, tuple[Value, int]] = field(default_factory=dict)


@dataclass(slots=True)
class _Open:
    """A region whose calls are being collected."""

    parts: Parts
    steps: list[Node | Region] = field(default_factory=list)


class Regions:
    """The division of a program.

    Attributes:
        root: what the outermost module does.
        position: the position of each call, by node.
        last: by value, the position of the last call that uses it, past all calls if it is returned; that of the call
            that makes it if nothing does.
    """

    def __init__(
        self, graph: GraphData, calls: Mapping[int, LayerCall], modules: Set[str], wanting: Mapping[int, Set[str]]
    ) -> None:
        """Divide a graph.

        Args:
            graph: the program.
            calls: its calls of layers, by node.
            modules: the paths of its modules but layers.
            wanting: calls that only a module of certain paths, or the outermost one, can make.
        """
        self._graph, self._calls = graph, calls
        absorbed = {i for call in calls.values() for i in call.absorbed}
        nodes = [node for node in graph.calls if node.id not in absorbed]
        self.position = {node.id: at for at, node in enumerate(nodes)}
        self.last: dict[Value, int] = {}
        self._kinds: dict[str, str] = {}
        for at, node in enumerate(nodes):
            self.last.update(dict.fromkeys(node.made, at))
            self.last.update(dict.fromkeys(self.reads(node), at))
            if node.location is not None:
                self._kinds.setdefault(node.location.module, node.location.kind)
        self.last.update(dict.fromkeys(graph.output.values, len(nodes)))
        places = _places(nodes, calls, modules)
        together = _together(places) - _repeated(calls)
        for id_, paths in wanting.items():
            if id_ in self.position:
                place = places[self.position[id_]]
                together -= {place[:n] for n in range(1, len(place) + 1) if ".".join(place[:n]) not in paths}
        self.root = self._divided(nodes, places, together)

    def reads(self, step: Node | Region) -> Sequence[Value]:
        """Return the values a step uses."""
        if isinstance(step, Region):
            return step.inputs
        call = self._calls.get(step.id)
        return step.values if call is None else [value for operand in call.operands for value in _values(operand)]

    def makes(self, step: Node | Region) -> Sequence[Value]:
        """Return the values of a step that others may use."""
        return step.outputs if isinstance(step, Region) else step.made

    def is_sequence(self, region: Region, count: int) -> bool:
        """Say whether a module calls those numbered 0, 1, ... in it, each on what the one before returns.

        Args:
            region: what it does.
            count: how many there are.
        """
        given = region.inputs
        if len(region.steps) != count:
            return False
        for number, step in enumerate(region.steps):
            call = None if isinstance(step, Region) else self._calls.get(step.id)
            path = step.path if isinstance(step, Region) else call.path if call else ""
            if path != f"{region.path}.{number}" or len(given) != 1 or tuple(self.reads(step)) != given:
                return False
            given = tuple(self.makes(step))
        return given == region.outputs

    def _divided(self, nodes: Sequence[Node], places: Sequence[Parts], together: Set[Parts]) -> Region:
        stack = [_Open(())]
        chains: dict[Parts, list[Parts]] = {}
        for at, (node, place) in enumerate(zip(nodes, places, strict=True)):
            if place not in chains:
                chains[place] = [place[:n] for n in range(1, len(place) + 1) if place[:n] in together]
            chain = chains[place]
            while len(stack) > 1 and stack[-1].parts not in chain:
                self._close(stack, at - 1)
            stack += [_Open(parts) for parts in chain[len(stack) - 1 :]]
            stack[-1].steps.append(node)
        while len(stack) > 1:
            self._close(stack, len(nodes) - 1)
        return Region("", tuple(stack[0].steps), (), (), len(nodes))

    def _close(self, stack: list[_Open], end: int) -> None:
        """Let the innermost region that is open be a step of the one it is in."""
        closed = stack.pop()
        path = ".".join(closed.parts)
        made: dict[Value, None] = {}
        taken: dict[Value, None] = {}
        for step in closed.steps:
            taken.update((v, None) for v in self.reads(step) if v not in made and not self._stores(path, v))
            made.update(dict.fromkeys(self.makes(step)))
        outputs = tuple(value for value in made if self.last[value] > end)
        sizes = {value: place for value in taken if (place := self._size(value, taken))}
        inputs = tuple(value for value in taken if value not in sizes)
        region = Region(path, tuple(closed.steps), inputs, outputs, end, self._kinds.get(path, ""), sizes)
        stack[-1].steps.append(region)

    def _size(self, value: Value, inputs: Iterable[Value]) -> tuple[Value, int] | None:
        """Return the input and the axis of it whose size a number is, None if there is none."""
        number = self._graph.type_of(value)
        if not isinstance(number, ScalarType) or number.value is None:
            return None
        types = ((other, self._graph.type_of(other)) for other in inputs)
        shapes = ((other, type_.shape) for other, type_ in types if isinstance(type_, TensorType))
        return next(((other, shape.index(number.value)) for other, shape in shapes if number.value in shape), None)

    def _stores(self, path: str, value: Value) -> bool:
        """Say whether a value is a tensor that is stored below a path."""
        node = self._graph.node(value.node)
        return node.op == PARAMETER and any(name.startswith(f"{path}.") for name in node.names)


def _places(nodes: Sequence[Node], calls: Mapping[int, LayerCall], modules: Set[str]) -> list[Parts]:
    """Return for each call the module that makes it; one without a place is made where those around it are."""
    split: dict[str, Parts] = {}

    def parts(path: str) -> Parts:
        if path not in split:
            inner = path
            while inner not in modules:
                inner = inner.rpartition(".")[0]
            split[path] = tuple(inner.split(".")) if inner else ()
        return split[path]

    known: list[Parts | None] = []
    for node in nodes:
        here = node.location.module if node.location else None
        place = None if here is None else parts(here)
        if call := calls.get(node.id):
            inside = parts(call.path)
            place = inside if place is None else _common(place, inside)
        elif place is None and mode_argument(node) is not None:
            place = ()  # it follows the mode of the outermost module
        known.append(place)
    before: list[Parts] = []
    for place in known:
        before.append(place if place is not None else before[-1] if before else ())
    after: Parts = ()
    for at in range(len(known) - 1, -1, -1):
        place = known[at]
        after = after if place is None else place
        before[at] = _common(before[at], after) if place is None else place
    return before


def _common(one: Parts, other: Parts) -> Parts:
    """Return the path of the innermost module that holds two modules."""
    if one == other:
        return one
    length = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def _together(places: Sequence[Parts]) -> set[Parts]:
    """Return the modules whose calls stand together."""
    runs: Counter[Parts] = Counter()
    before: Parts = ()
    for place in places:
        if place != before:
            runs.update(place[:n] for n in range(len(_common(place, before)) + 1, len(place) + 1))
            before = place
    return {place for place, times in runs.items() if times == 1}


def _repeated(calls: Mapping[int, LayerCall]) -> set[Parts]:
    """Return the modules of which every layer is called several times, as they are themselves."""
    often = Counter(call.path for call in calls.values())
    if len(often) == len(calls):
        return set()
    fewest: dict[Parts, int] = {}
    for path, times in often.items():
        parts = tuple(path.split("."))
        for n in range(1, len(parts)):
            fewest[parts[:n]] = min(times, fewest.get(parts[:n], times))
    return {parts for parts, times in fewest.items() if times > 1}


def _values(operand: Argument) -> list[Value]:
    if isinstance(operand, tuple):
        return [value for part in operand for value in _values(part)]
    return [operand] if isinstance(operand, Value) else []
