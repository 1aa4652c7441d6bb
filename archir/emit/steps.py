"""What the steps of a module read and make: calls of operators, of layers, and of submodules."""

from __future__ import annotations

from collections import Counter

from archir.emit.scopes import Plan, Program, Step
from archir.ir.execute import returns_sequence
from archir.ir.node import Value


def operands_of(program: Program, step: Step) -> Counter[Value]:
    """Return the values a step reads, each as often as it does; sizes are left out."""
    if isinstance(step, Plan):
        return Counter(step.inputs)
    if is_layer_call(program, step):
        return Counter(program.operands(step))
    return Counter(v for v in program.graph.node(step).values if not program.is_size(v))


def results_of(program: Program, step: Step) -> list[Value]:
    """Return the values a step makes."""
    if isinstance(step, Plan):
        return list(step.outputs)
    return [Value(step, i) for i in range(len(program.graph.node(step).results))]


def is_sequence(program: Program, step: Step) -> bool:
    """Say whether a step calls an operator that returns a list of tensors."""
    return not isinstance(step, Plan) and returns_sequence(program.graph.node(step).op)


def is_long_short_memory(program: Program, step: Step) -> bool:
    """Say whether a step calls an LSTM of torch.nn, whose states come as a pair."""
    return not isinstance(step, Plan) and is_layer_call(program, step) and len(results_of(program, step)) == 3


def layer_path(program: Program, step: int) -> str:
    """Return the path of the layer a step calls, empty if it calls none."""
    call = program.layers.calls.get(step)
    return call.path if call is not None else ""


def is_layer_call(program: Program, step: int) -> bool:
    """Say whether a step calls a layer."""
    return step in program.layers.calls
