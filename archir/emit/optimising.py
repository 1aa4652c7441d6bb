"""What the optimiser of the exporter may do to a model before it is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass
from torch.onnx import ONNXProgram

from archir.errors import EmitError

BatchNorm = Literal["fold", "keep"]
"""What becomes of batch normalisation: part of the layer before it, or an operator of its own."""


def chosen_batch_norm(batch_norm: str | None, *, optimize: bool) -> BatchNorm:
    """Return what becomes of batch normalisation: what is asked for, else what follows from `optimize`.

    Raises:
        EmitError: there is no such choice, or it goes against `optimize`.
    """
    if batch_norm not in (None, "fold", "keep"):
        raise EmitError(f"there is no batch_norm {batch_norm!r}", hint='give "fold" or "keep"')
    if batch_norm == "fold" and not optimize:
        raise EmitError(
            "batch normalisation cannot be folded in a file that is not optimised",
            why="without optimize every operator is kept",
            hint='fold it in the graph, archir.apply(graph, "fold-batch-norm"), or leave optimize on',
        )
    return "fold" if optimize and batch_norm != "keep" else "keep"


def optimise(program: ONNXProgram, batch_norm: BatchNorm) -> None:
    """Fold constants, drop what does nothing, and fuse operators of what was exported, in place.

    Args:
        program: what the exporter made, not optimised.
        batch_norm: `"fold"`: normalisation becomes part of the convolution or the linear layer in front of it, where
            nothing else reads what that makes; `"keep"`: it stays, with its tensors.
    """
    if batch_norm == "fold":
        program.optimize()
    else:
        with _given(program.model):
            program.optimize()


@contextmanager
def _given(model: ir.Model) -> Iterator[None]:
    """Let the tensors of batch normalisation be inputs of a model for a while, which no optimiser takes for constants.

    Nor does it store two of them as one, which norms that were never trained would be.
    """
    InlinePass()(model)
    graph = model.graph
    norms = [node for node in graph.all_nodes() if node.op_type == "BatchNormalization"]
    tensors = {
        id(value): value
        for node in norms
        for value in node.inputs[1:]
        if value is not None and value.is_initializer() and not value.is_graph_input() and value.graph is graph
    }
    graph.inputs.extend(tensors.values())
    try:
        yield
    finally:
        for value in tensors.values():
            graph.inputs.remove(value)
