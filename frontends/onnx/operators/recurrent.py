"""Recurrent layers."""

from __future__ import annotations

from archir.ir.types import Size
from frontends.onnx.call import Call, Function, Results, Table
from frontends.onnx.operands import Known, Operand, Refusal
from frontends.onnx.operators.movement import reshaped

_GATES = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}
"""Which gate of ONNX (i o f c, z r h) stands where torch has it (i f g o, r z n)."""

_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def _recurrent(kind: str) -> Function:
    def function(c: Call) -> Results:
        hidden, way = c.integer("hidden_size"), c.text("direction", "forward")
        ways = 2 if way == "bidirectional" else 1
        op = _check(c, kind, ways)
        x = c[0] if not c.integer("layout", 0) else c.call("transpose.int", c[0], 0, 1)
        x = c.call("flip", x, [0]) if way == "reverse" else x
        steps, batch, _ = c.shape(x)
        weights = _weights(c, kind, hidden, ways)
        states = [_state(c, i, ways, batch, hidden, x) for i in ((5, 6) if kind == "LSTM" else (5,))]
        given = states if kind == "LSTM" else states[0]
        biased = c.get(3) is not None
        y, *last = c.calls(f"{op}.input", x, given, weights, biased, 1, 0.0, False, ways == 2, False)
        split = c.call("transpose.int", reshaped(c, y, [steps, batch, ways, hidden]), 1, 2)
        split = c.call("flip", split, [0]) if way == "reverse" else split
        if c.integer("layout", 0):
            split = c.call("permute", split, [2, 0, 1, 3])
            last = [c.call("transpose.int", part, 0, 1) for part in last]
        return [split, *last]

    return function


def _check(c: Call, kind: str, ways: int) -> str:
    """Return the operator of ATen, or refuse what it cannot do."""
    given = c.texts("activations", _ACTIVATIONS[kind] * ways)
    op = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}[kind]
    if kind == "RNN" and [a.lower() for a in given] == ["relu"] * ways:
        op, given = "rnn_relu", _ACTIVATIONS[kind] * ways
    problems = [f"its activations are {', '.join(given)}"] if given != _ACTIVATIONS[kind] * ways else []
    problems += ["it clips"] if c.has("clip") else []
    problems += ["it couples input and forget gates"] if c.integer("input_forget", 0) else []
    problems += ["it has peepholes"] if c.get(7) is not None and bool(c.known(7).any()) else []
    if kind == "GRU" and not c.integer("linear_before_reset", 0):
        problems += ["it resets before the product (linear_before_reset is 0), and torch does after it"]
    if c.get(4) is not None:
        steps = c.shape(c[0])[1 if c.integer("layout", 0) else 0]
        lengths = c.numbers(4, "sequence_lens") if isinstance(c[4], Known) else [None]
        problems += ["its sequences have lengths of their own"] if any(n != steps for n in lengths) else []
    if problems:
        raise Refusal("; ".join(problems))
    return op


def _weights(c: Call, kind: str, hidden: int, ways: int) -> list[Operand]:
    """Return the weights of every direction as torch has them, in its order."""
    found: list[Operand] = []
    for way in range(ways):
        end = "_reverse" if way else ""
        for index, name in ((1, "weight_ih_l0"), (2, "weight_hh_l0")):
            gates = _gates(c, c[index], way, kind, hidden, 0)
            found.append(c.trained(gates, f"{name}{end}"))
        if c.get(3) is not None:
            for part, name in enumerate(("bias_ih_l0", "bias_hh_l0")):
                gates = _gates(c, c[3], way, kind, hidden, part)
                found.append(c.trained(gates, f"{name}{end}"))
    return found


def _gates(c: Call, stacked: Operand, way: int, kind: str, hidden: int, part: int) -> Operand:
    """Return the weights of one direction with the gates in torch's order."""
    bare = Known(stacked.tensor) if isinstance(stacked, Known) else stacked
    one = c.call("select.int", bare, 0, way)
    count = len(_GATES[kind])
    pieces = [
        c.call("slice.Tensor", one, 0, (part * count + gate) * hidden, (part * count + gate + 1) * hidden)
        for gate in _GATES[kind]
    ]
    return pieces[0] if len(pieces) == 1 else c.call("cat", pieces, 0)


def _state(c: Call, index: int, ways: int, batch: Size, hidden: int, x: Operand) -> Operand:
    """Return the state at the start, zeros if none is given."""
    if c.get(index) is None:
        return c.call("zeros", [ways, c.size(batch), hidden], dtype=c.type(x).dtype)
    return c.call("transpose.int", c[index], 0, 1) if c.integer("layout", 0) else c[index]


OPERATORS: Table = {kind: _recurrent(kind) for kind in _GATES}
"""Recurrent layers."""
