"""Divides a program into the forward functions of its modules.

A module's calls become one `self.block(x)` where they can be contracted without a cycle; a module called several times
does the same each time. Where neither holds, its calls are written into the `forward` of its parent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import networkx as nx

from archir.emit.code import is_number
from archir.emit.trial import Trial
from archir.ir.graph import Graph
from archir.ir.layers import Layers
from archir.ir.node import PARAMETER, Node, Value
from archir.ir.types import ScalarType

INLINE = 4
"""A module without parameters and of at most this many calls is written where it is used."""


@dataclass(frozen=True)
class Plan:
    """One run of the forward function of a module.

    Attributes:
        path: path of the module.
        nodes: all calls in it, those of its submodules included.
        steps: what it does in order: calls of operators and runs of submodules.
        elements: for a chain of numbered submodules, the steps by number; such a module is an `nn.Sequential`.
        inputs: values it takes from outside, in order of first use.
        outputs: values used outside, in order.
    """

    path: str
    nodes: tuple[int, ...]
    steps: tuple[Step, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    elements: Mapping[int, Step] | None = None


Step = int | Plan


def below(name: str, path: str) -> bool:
    """Say whether a dotted name lies under a path."""
    return not path or name.startswith(path + ".")


def parent(path: str) -> str:
    """Return the path of the parent module."""
    return path.rpartition(".")[0]


class Program:
    """A graph with what the division needs to know: the calls to write, and the module of each."""

    def __init__(self, graph: Graph, layers: Layers) -> None:
        self.graph = graph
        self.layers = layers
        self.trial = Trial(graph)
        self.names: dict[int, tuple[str, ...]] = {n.id: n.names for n in graph.parameters}
        self._operands: dict[int, list[Value]] = {}
        absorbed = {i for call in layers.calls.values() for i in call.absorbed}
        needed = {graph.output.id}
        for node in reversed(graph.nodes):
            if node.id in needed and node.id not in absorbed:
                needed |= {v.node for v in self.operands(node.id)}
        needed -= absorbed
        self.calls = [n.id for n in graph.calls if n.id in needed and not self.is_size(Value(n.id))]
        self.position = {id_: at for at, id_ in enumerate(self.calls)}
        self.scope = {id_: self._scope(graph.node(id_)) for id_ in self.calls}
        self._stored: dict[str, set[str]] = {}
        for name in (name for names in self.names.values() for name in names):
            parts = name.split(".")
            for at, part in enumerate(parts):
                self._stored.setdefault(".".join(parts[:at]), set()).add(part)

    def is_size(self, value: Value) -> bool:
        """Say whether a value is a number that follows from the shapes of tensors at hand."""
        type_ = self.graph.type_of(value)
        return isinstance(type_, ScalarType) and type_.value is not None

    def operands(self, node: int) -> list[Value]:
        """Return the values a call is written with, numbers that follow from shapes left out."""
        if node not in self._operands:
            call = self.layers.calls.get(node)
            found = self.graph.node(node).values if call is None else [v for o in call.operands for v in _values(o)]
            self._operands[node] = [v for v in dict.fromkeys(found) if not self.is_size(v)]
        return self._operands[node]

    @cached_property
    def users(self) -> dict[int, set[int]]:
        """The calls that use a call, the output included."""
        found: dict[int, set[int]] = {}
        for id_ in [*self.calls, self.graph.output.id]:
            for value in self.operands(id_):
                found.setdefault(value.node, set()).add(id_)
        return found

    def outside(self, value: Value, path: str, inside: set[int]) -> bool:
        """Say whether a value has to be handed to a module with the given calls inside."""
        if self.graph.node(value.node).op == PARAMETER:
            return not any(below(name, path) for name in self.names[value.node])
        return value.node not in inside

    def children(self, path: str) -> set[str]:
        """Return the names of the modules and tensors right below a path under which any tensor is stored."""
        return self._stored.get(path, set())

    def has_parameters(self, path: str) -> bool:
        """Say whether any tensor is stored under a path."""
        return path in self._stored

    def _scope(self, node: Node) -> str:
        call = self.layers.calls.get(node.id)
        path = node.location.module if node.location else self._between(node)
        while path in self.layers.layers:
            path = parent(path)
        if call is not None and not below(call.path, path):
            path = parent(call.path)
        return path

    def _between(self, node: Node) -> str:
        """Return the innermost module that holds the neighbours of a call without a place."""
        graph = self.graph
        near = [graph.node(v.node) for v in node.values]
        near += [graph.node(u.node) for v in node.made for u in graph.uses(v)]
        places = [n.location.module.split(".") for n in near if n.is_call and n.location]
        if not places:
            return ""
        shared = 0
        while all(len(p) > shared and p[shared] == places[0][shared] for p in places):
            shared += 1
        return ".".join(places[0][:shared])


def _values(argument: object) -> Iterable[Value]:
    if isinstance(argument, Value):
        yield argument
    elif isinstance(argument, tuple):
        for part in argument:
            yield from _values(part)


_Key = tuple[str, int]
"""A run of a submodule: its path, and which run it is. A call of the module itself has the path '' and its id."""


class Planner:
    """Makes the plan of a program."""

    def __init__(self, program: Program, nested: bool = True) -> None:
        self._program = program
        self._nested = nested
        self._same: dict[tuple[str, tuple[int, ...]], Plan] = {}

    def plan(self, path: str = "", nodes: Sequence[int] | None = None) -> Plan:
        """Return the plan of a module that makes the given calls, of the whole program if none are given."""
        calls = tuple(self._program.calls if nodes is None else nodes)
        key = path, calls
        if key not in self._same:
            self._same[key] = self._chain(path, calls) or self._general(path, calls)
        return self._same[key]

    def _general(self, path: str, nodes: tuple[int, ...]) -> Plan:
        inlined: set[str] = set()
        runs: set[str] = set()
        while True:
            groups = self._groups(path, nodes, inlined, runs)
            quotient = self._quotient(groups)
            stuck = [part for part in nx.strongly_connected_components(quotient) if len(part) > 1]
            modules = {key[0] for part in stuck for key in part if key[0]}
            if modules - runs:
                runs |= modules
                continue
            if modules:
                inlined |= modules
                continue
            plans = {key: self.plan(key[0], group) for key, group in groups.items() if key[0]}
            unlike = self._unlike(plans)
            if unlike:
                inlined |= unlike
                continue
            first = {key: self._program.position[group[0]] for key, group in groups.items()}
            order = nx.lexicographical_topological_sort(quotient, key=lambda key: first[key])
            steps = tuple(plans[key] if key[0] else key[1] for key in order)
            return self._finish(path, nodes, steps)

    def _finish(self, path: str, nodes: tuple[int, ...], steps: tuple[Step, ...]) -> Plan:
        program, inside = self._program, set(nodes)
        taken: dict[Value, None] = {}
        for step in steps:
            for value in step.inputs if isinstance(step, Plan) else program.operands(step):
                if program.outside(value, path, inside):
                    taken.setdefault(value)
        users = {user for node in nodes for user in program.users.get(node, set()) if user not in inside}
        given = {value for user in users for value in program.operands(user) if value.node in inside}
        outputs = tuple(sorted(given, key=lambda v: (program.position[v.node], v.index)))
        return Plan(path, nodes, steps, tuple(taken), outputs)

    def _groups(
        self, path: str, nodes: tuple[int, ...], inlined: set[str], runs: set[str]
    ) -> dict[_Key, tuple[int, ...]]:
        inlined = set(inlined)
        while True:
            found: dict[_Key, list[int]] = {}
            run, before = 0, ""
            for node in nodes:
                child = self._child(path, self._program.scope[node], inlined)
                if child != before:
                    run, before = run + 1, child
                key = (child, run if child in runs else 0) if child else ("", node)
                found.setdefault(key, []).append(node)
            groups = {key: tuple(group) for key, group in found.items()}
            flat = {key[0] for key, group in groups.items() if key[0] and self._is_flat(key[0], group)}
            if not flat:
                return self._repeats(groups, runs)
            inlined |= flat

    def _repeats(self, groups: dict[_Key, tuple[int, ...]], runs: set[str]) -> dict[_Key, tuple[int, ...]]:
        found: dict[_Key, tuple[int, ...]] = {}
        for (path, run), group in groups.items():
            parts = self._parts(path, group) if path and path not in runs else [group]
            for i, part in enumerate(parts):
                found[path, run + i if path else run] = part
        return found

    def _parts(self, path: str, group: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Divide the calls of a module that runs several times into equal parts, where they are alike."""
        count = self._multiplicity(path, group)
        if count == 1 or len(group) % count:
            return [group]
        step = len(group) // count
        parts = [group[i : i + step] for i in range(0, len(group), step)]
        unlike = self._unlike({(path, i): self.plan(path, part) for i, part in enumerate(parts)})
        return [group] if unlike else parts

    def _multiplicity(self, path: str, group: tuple[int, ...]) -> int:
        counts: Counter[object] = Counter()
        for node in group:
            call = self._program.layers.calls.get(node)
            if call is not None:
                counts[call.path] += 1
                continue
            for value in self._program.operands(node):
                names = self._program.names.get(value.node, ())
                if any(below(name, path) for name in names):
                    counts[value] += 1
        return max(counts.values(), default=1)

    def _child(self, path: str, scope: str, inlined: set[str]) -> str:
        """Return the submodule of `path` a call belongs to, '' if it is written into `path` itself."""
        if not self._nested or scope == path:
            return ""
        child = path
        for name in scope[len(path) + 1 if path else 0 :].split("."):
            child = f"{child}.{name}" if child else name
            if child not in inlined:
                return child
        return ""

    def _is_flat(self, path: str, group: tuple[int, ...]) -> bool:
        """Whether the calls of a module are written into its parent."""
        if not self._program.has_parameters(path):
            return len(group) <= INLINE
        numbered = all(self._number(path, node) is not None for node in group)
        return numbered and any(self.plan(path, part).elements is None for part in self._parts(path, group))

    def _number(self, path: str, node: int) -> int | None:
        """Return the number of the submodule of a numbered container a call belongs to."""
        scope = self._program.scope[node]
        call = self._program.layers.calls.get(node)
        inner = call.path if call is not None and below(call.path, scope) else scope
        rest = inner[len(path) + 1 if path else 0 :].split(".")[0] if below(inner, path) else ""
        return int(rest) if is_number(rest) else None

    def _chain(self, path: str, nodes: tuple[int, ...]) -> Plan | None:
        """Return the plan of a module whose numbered submodules are called one after the other."""
        parts: dict[int, list[int]] = {}
        for node in nodes:
            number = self._number(path, node)
            if number is None or not self._nested:
                return None
            parts.setdefault(number, []).append(node)
        if not parts or max(parts) > 4 * len(parts) + 8 or (path and not self._program.has_parameters(path)):
            return None
        if not self._program.children(path) <= set(map(str, parts)):
            return None  # a part that is never called, or called elsewhere, is not run in passing
        elements: dict[int, Step] = {}
        for number in sorted(parts):
            group = tuple(parts[number])
            child = f"{path}.{number}" if path else str(number)
            call = self._program.layers.calls.get(group[0])
            single = len(group) == 1 and call is not None and call.path == child
            elements[number] = group[0] if single else self.plan(child, group)
        plan = self._finish(path, nodes, tuple(elements.values()))
        ends = [self._ends(step, set(nodes)) for step in plan.steps]
        if any(len(inputs) != 1 or len(outputs) != 1 for inputs, outputs in ends) or len(plan.outputs) != 1:
            return None
        linked = all(before[1] == after[0] for before, after in pairwise(ends))
        if not linked or tuple(ends[0][0]) != plan.inputs or tuple(ends[-1][1]) != plan.outputs:
            return None
        return Plan(path, nodes, plan.steps, plan.inputs, plan.outputs, elements)

    def _ends(self, step: Step, inside: set[int]) -> tuple[list[Value], list[Value]]:
        if isinstance(step, Plan):
            return list(step.inputs), list(step.outputs)
        finished = self._finish(parent(self._program.layers.calls[step].path), (step,), (step,))
        return list(finished.inputs), list(finished.outputs)

    def _quotient(self, groups: Mapping[_Key, tuple[int, ...]]) -> nx.DiGraph:
        owner = {node: key for key, group in groups.items() for node in group}
        quotient = nx.DiGraph()
        quotient.add_nodes_from(groups)
        for node, key in owner.items():
            sources = {owner[v.node] for v in self._program.operands(node) if v.node in owner}
            quotient.add_edges_from((source, key) for source in sources if source != key)
        return quotient

    def _unlike(self, plans: Mapping[_Key, Plan]) -> set[str]:
        """Return the submodules whose runs do not all do the same."""
        shapes: dict[str, set[object]] = {}
        for (path, _), plan in plans.items():
            shapes.setdefault(path, set()).add(self._shape(plan))
        return {path for path, found in shapes.items() if len(found) > 1}

    def _shape(self, plan: Plan) -> object:
        """Return what a run does, calls numbered from its beginning."""
        program = self._program
        number: dict[Value, object] = {value: ("in", i) for i, value in enumerate(plan.inputs)}
        at = {node: i for i, node in enumerate(plan.nodes)}

        def named(argument: object) -> object:
            if isinstance(argument, tuple):
                return tuple(map(named, argument))
            if not isinstance(argument, Value):
                return type(argument), argument
            if argument in number:
                return number[argument]
            if argument.node in at:
                return "call", at[argument.node], argument.index
            if program.is_size(argument):
                return str(program.graph.type_of(argument))
            return "parameter", argument.node

        def call(node: int) -> object:
            call = program.layers.calls.get(node)
            if call is not None:
                return call.path, named(call.operands)
            found = program.graph.node(node)
            return program.scope[node], found.op, tuple((k, named(v)) for k, v in found.arguments.items())

        outputs = tuple(named(value) for value in plan.outputs)
        return tuple(call(node) for node in plan.nodes), len(plan.inputs), outputs
