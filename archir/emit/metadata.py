"""What an ONNX file says of the network in it, in the metadata of the model: texts by name that begin with `archir.`.

    archir.version      the version of archir that wrote the file
    archir.program      SHA-256 of the text form of the graph it was made from, weights left out
    archir.parameters   trainable numbers of the graph
    archir.flops        floating-point operations of its forward pass, for these sizes:
    archir.sizes        JSON: the size that each dynamic axis is taken to have
    archir.history      JSON: the passes that led to the graph
    archir.quantised    JSON: how many operators of each kind compute with 8-bit integers, if any do

All of it follows from the graph: the same graph gives the same file, whenever and wherever it is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import onnx

from archir.cost import cost
from archir.ir.graph import Graph
from archir.ir.notes import GUARDS, HISTORY, program_checksum, version_of, write_texts
from archir.ir.types import TensorType, symbols_of

EXAMPLES = 1
"""The batch size that FLOPs are told for."""


def describe(graph: Graph, model: onnx.ModelProto) -> None:
    """Note in a model, which is changed in place, what network it is: the graph it was made from."""
    price = cost(graph, EXAMPLES)
    notes = {
        "archir.version": version_of("archir"),
        "archir.program": program_checksum(graph),
        "archir.parameters": str(price.parameters),
        "archir.flops": str(price.flops),
        "archir.sizes": json.dumps(_sizes(graph)),
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
    """Return the size of each dynamic axis that `cost` takes it to have."""
    types = [type_ for node in graph.inputs for type_ in node.results if isinstance(type_, TensorType)]
    names = [name for type_ in types for size in type_.shape for name in sorted(symbols_of(size))]
    return dict.fromkeys(names, EXAMPLES) | dict(graph.signature.sizes)
