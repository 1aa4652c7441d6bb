"""What an ONNX file says of the network in it, in the metadata of the model: texts by name that begin with `archir.`.

    archir.version      the version of archir that wrote the file
    archir.program      SHA-256 of the text form of the graph it was made from, weights left out
    archir.parameters   trainable numbers of the graph
    archir.flops        floating-point operations of its forward pass, for these sizes:
    archir.sizes        JSON: the size that each dynamic axis is taken to have
    archir.history      JSON: the passes that led to the graph
    archir.guards       JSON: what the sizes of its inputs have to satisfy
    archir.quantised    JSON: how many operators of each kind compute with 8-bit integers, if any do

All of it follows from the graph: the same graph gives the same file, whenever and wherever it is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

import onnx

from archir.cost import cost
from archir.emit.check import BATCHES, LARGE
from archir.errors import GraphError
from archir.ir.graph import Graph
from archir.ir.input_checks import sources
from archir.ir.inputs import symbol_sizes
from archir.ir.notes import GUARDS, HISTORY, program_checksum, version_of, write_texts
from archir.ir.types import Size, TensorType, evaluate, symbols_of

EXAMPLES = 1
"""The batch size that FLOPs are told for."""


def describe(graph: Graph, model: onnx.ModelProto) -> None:
    """Note in a model, which is changed in place, what network it is: the graph it was made from."""
    sizes = _sizes(graph)
    price = cost(graph, EXAMPLES, sizes)
    notes = {
        "archir.version": version_of("archir"),
        "archir.program": program_checksum(graph),
        "archir.parameters": str(price.parameters),
        "archir.flops": str(price.flops),
        "archir.sizes": json.dumps(sizes),
        HISTORY: write_texts(graph.history),
        GUARDS: write_texts(map(str, graph.signature.guards)),
    }
    _note(model, notes)


def describe_quantised(model: onnx.ModelProto, operators: Mapping[str, int]) -> None:
    """Note in a model, which is changed in place, how many operators of each kind compute with 8-bit integers."""
    _note(model, {"archir.quantised": json.dumps(dict(operators))})


def _note(model: onnx.ModelProto, notes: Mapping[str, str]) -> None:
    model.metadata_props.extend(onnx.StringStringEntryProto(key=key, value=note) for key, note in notes.items())


def _sizes(graph: Graph) -> dict[str, int]:
    """Return the size of each dynamic axis that FLOPs are told for: the least that the network takes of those tried.

    They are those it was captured for and a batch of one, where its guards allow these and every size in the graph is
    positive for them, and else those that it is checked on.
    """
    known = sources([node.results[0] for node in graph.inputs])
    captured = dict(graph.signature.sizes)

    def tried() -> Iterator[dict[str, int]]:
        yield dict.fromkeys(symbol_sizes(graph, EXAMPLES), EXAMPLES) | captured
        for batch in (EXAMPLES, *BATCHES, *LARGE):
            sizes = symbol_sizes(graph, batch)
            yield from (sizes | captured, sizes)

    found = [{name: size for name, size in sizes.items() if name in known} for sizes in tried()]
    allowed = [sizes for sizes in found if _allowed(graph, sizes)] or found[-1:]
    shapes = {
        size for node in graph.nodes for type_ in node.results if isinstance(type_, TensorType) for size in type_.shape
    }
    return next((sizes for sizes in allowed if all(_positive(size, sizes) for size in shapes)), allowed[0])


def _allowed(graph: Graph, sizes: Mapping[str, int]) -> bool:
    return all(guard.holds(_filled(guard.symbols, sizes)) for guard in graph.signature.guards)


def _positive(size: Size, sizes: Mapping[str, int]) -> bool:
    try:
        return isinstance(size, int) or evaluate(size, _filled(symbols_of(size), sizes), floored=True) > 0
    except GraphError:
        return False


def _filled(names: Iterable[str], sizes: Mapping[str, int]) -> dict[str, int]:
    """Return sizes with those that are read off no input, which `cost` takes to be the batch."""
    return dict.fromkeys(names, EXAMPLES) | dict(sizes)
