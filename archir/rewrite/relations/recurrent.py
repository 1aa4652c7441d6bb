"""Relations of recurrent nets: the hidden size is contracted with the weights of the next step and layer."""

from __future__ import annotations

from collections.abc import Mapping

from archir.ir.node import Node, Value
from archir.rewrite.equations import Equations, Relation


def recurrent(q: Equations, node: Node) -> None:
    """`lstm`, `gru`, `rnn_tanh`, `rnn_relu`: gates are non-linear, so states are exact copies."""
    x = q.operand(node, "input")
    given = node.argument("params")
    weights = [v for v in given if isinstance(v, Value)] if isinstance(given, tuple) else []
    per_cell = 4 if node.argument("has_biases") else 2
    directions = 2 if node.argument("bidirectional") else 1
    hidden_changes = False
    for number, first in enumerate(range(0, len(weights), per_cell)):
        w_ih, w_hh, *biases = weights[first : first + per_cell]
        for weight in (w_ih, w_hh, *biases):
            q.zero(node, q.variables(weight, 0))
            hidden_changes = hidden_changes or bool(q.variables(weight, 0))
        if number < directions:
            q.contract(node, q.variables(x, -1), q.variables(w_ih, 1))
        else:
            q.sum_over(node, q.variables(w_ih, 1))
        q.sum_over(node, q.variables(w_hh, 1))
    q.zero(node, [v for axis in range(q.rank(x) - 1) for v in q.variables(x, axis)])
    states = node.argument("hx")
    for value in (*(states if isinstance(states, tuple) else (states,)), *q.results(node)):
        if isinstance(value, Value):
            q.zero(node, q.variables(value))
    if hidden_changes:
        q.mix(node, "the units of a recurrent net act on each other from step to step")


RELATIONS: Mapping[str, Relation] = dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), recurrent)
