"""Random inputs for a graph, made from the types of its inputs and what the program does with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from archir.ir.graph import Graph
from archir.ir.guards import choose
from archir.ir.input_checks import example_symbols
from archir.ir.node import Node, Value, build
from archir.ir.registry import operator_of
from archir.ir.types import Size, TensorType, Type, evaluate, symbols_of

_TABLES = {"aten.embedding.default": ("weight", "indices"), "aten.embedding_bag.padding_idx": ("weight", "indices")}
_NUMBERS = {"int": 2, "float": 2.0, "bool": True}
"""What an input is given that is a number of unknown value."""


def random_inputs(
    graph: Graph, batch: int = 2, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return random positional and keyword arguments a model can be called with.

    Floating-point inputs are standard normal; integer inputs are uniform below the number of rows of the tables they
    index, and in {0, 1} where they index none; no row of a truth-valued input is constant.

    Args:
        graph: the program.
        batch: number of examples; one close to it where the guards of the graph do not hold for it.
        seed: seed of the generator.
        sizes: sizes of other dynamic axes, by symbol; `batch + 1`, `batch + 2`, ... if not given.
    """
    generator = torch.Generator().manual_seed(seed)
    values = symbol_sizes(graph, batch) | dict(sizes or {})
    tensors = [_tensor(graph, node, values, generator) for node in graph.inputs]
    return build(graph.signature.args, tensors), build(graph.signature.kwargs, tensors)


def symbol_sizes(graph: Graph, batch: int, avoid: Sequence[Mapping[str, int]] = ()) -> dict[str, int]:
    """Return a size for every symbol in the input types: `batch` for that of the examples, others a little larger.

    Where the guards of the graph do not hold for these, sizes close to them are taken.

    Args:
        graph: the program.
        batch: number of examples.
        avoid: sizes that are not to be returned again, where there are others.

    Raises:
        GraphError: no sizes were found for which the guards hold.
    """
    sizes = [size for node in graph.inputs for type_ in node.results for size in _sizes(type_)]
    names = dict.fromkeys(name for size in sizes for name in sorted(symbols_of(size)))
    examples = example_symbols(graph)
    ordered = sorted(names, key=lambda name: name not in examples)
    return choose(graph.signature.guards, {name: batch + i for i, name in enumerate(ordered)}, avoid)


def _sizes(type_: Type) -> tuple[Size, ...]:
    if isinstance(type_, TensorType):
        return type_.shape
    return () if type_.value is None else (type_.value,)


def _tensor(graph: Graph, node: Node, sizes: Mapping[str, int], generator: torch.Generator) -> object:
    type_ = node.results[0]
    if not isinstance(type_, TensorType):
        return evaluate(type_.value, sizes) if type_.value is not None else _NUMBERS[type_.kind]
    shape = type_.at(sizes)
    if type_.dtype.is_floating_point or type_.dtype.is_complex:
        real = torch.complex64 if type_.dtype.is_complex else torch.float64
        return torch.randn(shape, generator=generator, dtype=real).to(type_.dtype)
    rows = table_rows(graph, Value(node.id))
    found = torch.randint(0, rows or 2, shape, generator=generator).to(type_.dtype)
    if type_.dtype == torch.bool and shape and shape[-1] > 1:
        found[..., 0], found[..., -1] = False, True
    return found


def table_rows(graph: Graph, value: Value) -> int | None:
    """Return the smallest number of rows of the tables a value indexes, None if it indexes none."""
    found: list[int] = []
    seen: set[Value] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for use in graph.uses(current):
            user = graph.node(use.node)
            known = operator_of(user.op)
            if known.moves and use.argument in known.linear:
                waiting += user.made
            else:
                found += _rows(graph, user, use.argument, use.position)
    return min(found, default=None)


def _rows(graph: Graph, user: Node, argument: str, position: tuple[int, ...]) -> list[int]:
    """Return how many different numbers a use as an index takes."""
    if user.op in _TABLES and argument == _TABLES[user.op][1]:
        return _size(graph, user.argument(_TABLES[user.op][0]), 0)
    if user.op == "aten.index.Tensor" and argument == "indices":
        return _size(graph, user.argument("self"), position[0])
    if user.op in ("aten.gather.default", "aten.index_select.default") and argument == "index":
        dim = user.argument("dim")
        return _size(graph, user.argument("self"), dim) if isinstance(dim, int) else []
    if user.op == "aten.one_hot.default":
        classes = user.argument("num_classes")
        return [classes] if isinstance(classes, int) and classes > 0 else []
    return []


def _size(graph: Graph, table: object, axis: int) -> list[int]:
    type_ = graph.type_of(table) if isinstance(table, Value) else None
    size = type_.shape[axis] if isinstance(type_, TensorType) else None
    return [size] if isinstance(size, int) else []
