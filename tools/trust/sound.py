"""Holds a graph that was accepted to account: everything a user may do with it works, or refuses with a reason."""

from __future__ import annotations

import ast
import hashlib
import math
from functools import cache

import torch

from archir.axes.describe import axis_names
from archir.axes.infer import infer_widths
from archir.cost import cost
from archir.emit.python import source
from archir.errors import ArchirError
from archir.ir.graph import Graph
from archir.ir.inputs import random_inputs
from archir.ir.parse import parse_graph
from archir.ir.text import print_graph
from archir.ir.types import TensorType, evaluate, symbols_of
from archir.ir.verify import verify
from tests.models.texts import TEXTS
from tools.trust.attack import Ran, Wrong
from tools.trust.operators import check_operator

MOST = 100_000
"""Elements of all values together of a graph that is run."""

_CALLED = frozenset(("exec", "eval", "compile", "__import__", "open", "input", "globals", "locals", "vars", "setattr"))
_REACHED = frozenset(("system", "popen", "__builtins__", "__globals__", "__class__", "__subclasses__", "__dict__"))


def warm_up() -> None:
    """Do once what is slow, or imports, the first time."""
    for text in TEXTS.values():
        examine(parse_graph(text))


def examine(graph: Graph) -> None:
    """Verify, print, parse, analyse, lower, emit and, if it is small, run a graph.

    Raises:
        ArchirError: a part refuses it; the others have been tried.
        Wrong: what is printed is not what is read.
        Ran: what is emitted calls something that no network calls.
    """
    verify(graph)
    text = print_graph(graph, locations=True)
    key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    known = _examined()
    if key not in known:
        _read_again(graph, text)
        known[key] = _first_refusal(graph)
    refusal = known[key]
    if refusal is not None:
        raise refusal


@cache
def _examined() -> dict[bytes, ArchirError | None]:
    """Return what became of each text that was examined in this process: most trials leave the graph as it was."""
    return {}


def _first_refusal(graph: Graph) -> ArchirError | None:
    for op in dict.fromkeys(node.op for node in graph.calls):
        check_operator(op)
    refused: list[ArchirError] = []
    for part in (_analyse, _emit, _run):
        try:
            part(graph)
        except ArchirError as error:
            refused.append(error.with_traceback(None))
    return refused[0] if refused else None


def check_source(text: str) -> None:
    """Check that source is a network's and nothing else.

    Raises:
        Ran: it calls or reaches something that no network does.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError:  # `to_python`, which loads what it wrote, refuses it
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLED:
            raise Ran(f"emitted source calls {node.func.id}\n{text}")
        if isinstance(node, ast.Attribute) and node.attr in _REACHED:
            raise Ran(f"emitted source reaches for {node.attr}\n{text}")


def _read_again(graph: Graph, text: str) -> None:
    tensors = {n.names[0]: graph.tensors[n.id] for n in graph.parameters}
    try:
        again = print_graph(parse_graph(text, tensors), locations=True)
    except ArchirError as error:
        raise Wrong(f"what is printed cannot be read: {error}\n{text}") from error
    if again != text:
        raise Wrong(f"what is printed is read as something else\n{text}\n{again}")


def _analyse(graph: Graph) -> None:
    print_graph(graph, names=axis_names(infer_widths(graph)))
    cost(graph)


def _emit(graph: Graph) -> None:
    check_source(source(graph))


def _run(graph: Graph) -> None:
    module = graph.module().eval()
    if not _is_small(graph):
        return
    try:
        args, kwargs = random_inputs(graph)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):  # a network may draw random numbers when it runs
            module(*args, **kwargs)
    except (NameError, SyntaxError, ImportError):
        raise
    except Exception:  # what kernels say of operands nobody would give them is theirs; effects are watched
        return


def _is_small(graph: Graph) -> bool:
    total = 0
    for node in graph.calls:
        for type_ in node.results:
            if isinstance(type_, TensorType):
                names = frozenset().union(*map(symbols_of, type_.shape))
                total += math.prod(evaluate(s, dict.fromkeys(names, 4)) for s in type_.shape)
    return total <= MOST
