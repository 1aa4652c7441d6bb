"""Axis rules of recurrent nets: `w_ih ~ [gates*H, in]`, `w_hh ~ [gates*H, H]`, the same `H` in every layer."""

from __future__ import annotations

from collections.abc import Sequence

from archir.axes.rules.context import Context, Rule, Unknown
from archir.axes.terms import Atom, Product, Sum, Term, unify

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Number of gates of each kind of cell."""


def recurrent(c: Context) -> Sequence[Sequence[Term]]:
    """`lstm`, `gru`, `rnn_tanh`, `rnn_relu` with one or more layers and directions, without projections.

    States `[layers*directions, batch, H]` hold all layers, so the layers share one hidden size.
    """
    x, states, weights = c.operand("input"), c.operands("hx"), c.operands("params")
    cell = c.node.op.split(".")[1]
    layers = c.integer("num_layers")
    directions = 2 if c.node.argument("bidirectional") else 1
    per_cell = 4 if c.node.argument("has_biases") else 2
    if len(weights) != layers * directions * per_cell:
        raise Unknown("a recurrent net with projections")
    hidden = states[0][-1]
    gates = Product((Atom(GATES[cell], "the gates of a cell"), hidden))
    reads: Term = x[-1]
    for layer in range(layers):
        for direction in range(directions):
            first = (layer * directions + direction) * per_cell
            w_ih, w_hh, *biases = weights[first : first + per_cell]
            unify(w_ih[0], gates)
            unify(w_hh[0], gates)
            unify(w_ih[1], reads)
            unify(w_hh[1], hidden)
            for bias in biases:
                unify(bias[0], gates)
            c.role([w_ih[1], w_hh[1]], "contracted")
        reads = Sum([hidden] * directions)
    c.role([hidden], "produced")
    # The batch axis of the states has that of the input; the axis over time has positions.
    batch, time = (x[0], x[1]) if c.node.argument("batch_first") else (x[1], x[0])
    if len(x) == 2:
        time = x[0]
        c.freeze([time], "an axis over time")
        state = [states[0][0], hidden]
        return [[time, reads], *([state] * len(states))]
    c.freeze([time], "an axis over time")
    for found in states:
        unify(found[1], batch)
        unify(found[2], hidden)
        c.freeze([found[0]], "one state for each layer and direction")
    state = [states[0][0], batch, hidden]
    return [[x[0], x[1], reads], *([state] * len(states))]


RULES: dict[str, Rule] = {f"aten.{cell}.input": recurrent for cell in GATES}
