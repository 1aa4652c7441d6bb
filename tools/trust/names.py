"""Hostile names in graphs that are made in Python, and in modules that are traced, written as source and run."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from archir.emit.python import to_python
from archir.ir.graph import Graph
from archir.ir.load import load
from archir.ir.node import INPUT, PARAMETER, Constant, Location, Node, Parameter, Signature, Tree
from archir.ir.parse import parse_graph
from archir.ir.verify import verify
from frontends.pytorch import trace
from tests.models.texts import TEXTS
from tools.trust.attack import Attack, Files
from tools.trust.hostile import NAMES
from tools.trust.sound import check_source, examine

_PLACES = (
    "graph",
    "input",
    "parameter",
    "parameters",
    "module",
    "kind",
    "born",
    "keyword",
    "key",
    "result",
    "mode",
    "history",
)


def make(dice: random.Random) -> Files:
    """Return which names go where: one or two places of a graph, or of a module."""
    places = [(dice.choice(_PLACES), _name(dice)) for _ in range(dice.choice((1, 1, 2)))]
    plan = {"graph": dice.choice(sorted(TEXTS)), "places": places, "write": dice.random() < 0.1}
    return {"plan.json": json.dumps(plan).encode()}


def make_module(dice: random.Random) -> Files:
    """Return what a part of a module is called."""
    return {"plan.json": json.dumps(_name(dice)).encode()}


def _name(dice: random.Random) -> str:
    name = dice.choice(NAMES)
    match dice.randrange(6):
        case 0:
            return f"{name}.{dice.choice(NAMES)}"
        case 1:
            return f"a.{name}"
        case 2:
            return f"{name}.weight"
        case _:
            return name


def use(folder: Path) -> None:
    """Make the graph, use it, save and load it, and now and then write it as source."""
    plan = json.loads((folder / "plan.json").read_bytes())
    graph = parse_graph(TEXTS[plan["graph"]])
    for place, name in plan["places"]:
        graph = renamed(graph, place, name)
    verify(graph)
    _use(graph, folder, write=plan["write"])


def use_module(folder: Path) -> None:
    """Capture the module, use its graph, save and load it, and write it as source."""
    name = json.loads((folder / "plan.json").read_bytes())
    _use(trace(_Odd(name), (torch.zeros(2, 4),)), folder, write=True)


def _use(graph: Graph, folder: Path, *, write: bool) -> None:
    examine(graph)
    graph.save(folder / "net.archir")
    examine(load(folder / "net.archir"))
    if write:
        with torch.random.fork_rng(devices=[]):  # layers draw their weights before they are given others
            check_source(to_python(graph, folder / "out").path.read_text())


NAMED = Attack("name", make, use)
NAMED_MODULES = Attack("module-name", make_module, use_module, full=500, short=60, seconds=60, watched=False)


class _Odd(nn.Module):
    """A module with a name of its own, which says what its parts and its results are called."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        self.parts._modules[name] = nn.Linear(4, 4)  # as a loader of somebody's model might
        self.last = nn.Linear(4, 2)
        self.name = name

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {self.name: self.last(self.parts[self.name](x))}


def renamed(graph: Graph, place: str, name: str) -> Graph:
    """Return a graph with a name put in a place, made by its constructor."""
    nodes, signature, history, title = list(graph.nodes), graph.signature, graph.history, graph.name
    match place:
        case "graph":
            title = name
        case "input":
            nodes = _changed(nodes, INPUT, name=name)
        case "parameter" | "parameters":
            old = next((n.parameter for n in nodes if n.parameter), None)
            if old is not None:
                names = (name,) if place == "parameter" else (*old.names, name)
                nodes = _changed(nodes, PARAMETER, parameter=Parameter(names, old.kind, old.trainable, old.persistent))
        case "module" | "kind":
            location = Location(name, "torch.nn.Dropout") if place == "module" else Location("a", name)
            nodes = [replace(n, location=location) if n.is_call else n for n in nodes]
        case "born":
            nodes = [replace(n, born=name) if n.is_call else n for n in nodes]
        case "keyword":
            count = len(signature.args.children)
            if count:
                *rest, last = signature.args.children
                kwargs = Tree("dict", (*signature.kwargs.children, last), (*signature.kwargs.keys, name))
                signature = Signature(Tree("tuple", tuple(rest)), kwargs, signature.result)
        case "key":
            first, *rest = signature.args.children or (Constant(1),)
            signature = Signature(
                Tree("tuple", (Tree("dict", (first,), (name,)), *rest)), signature.kwargs, signature.result
            )
        case "result":
            signature = Signature(signature.args, signature.kwargs, Tree("dict", (signature.result,), (name,)))
        case "mode":
            signature = replace(signature, mode_changes=frozenset({name}))
        case _:
            history = (*history, name)
    return Graph(title, nodes, graph.tensors, signature, history)


def _changed(nodes: list[Node], op: str, **fields: Any) -> list[Node]:
    """Return the nodes with the first of a kind changed."""
    at = next((i for i, n in enumerate(nodes) if n.op == op), None)
    return nodes if at is None else [*nodes[:at], replace(nodes[at], **fields), *nodes[at + 1 :]]
