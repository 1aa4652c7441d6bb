"""Control flow whose conditions are known when the file is read: the branch that is taken, and loops unrolled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
import torch

from frontends.onnx.call import Call, Results
from frontends.onnx.operands import Known, Operand, Refusal

MOST_ROUNDS = 1024
"""The most rounds of a loop that is unrolled."""

Body = Callable[[ir.Graph, Sequence[Operand]], list[Operand]]
"""What translates the nodes of a graph inside of a node, given its inputs, and returns its outputs."""


def branch(c: Call, body: Body) -> Results:
    """Return what the branch of an `If` makes that is taken.

    Raises:
        Refusal: the condition is computed.
    """
    condition = c.known(0, "condition").reshape(-1)
    return body(_graph(c, "then_branch" if bool(condition.all()) else "else_branch"), [])


def loop(c: Call, body: Body) -> Results:
    """Return what a `Loop` makes, its rounds one after the other.

    Raises:
        Refusal: how many rounds there are is computed, or there are more than `MOST_ROUNDS`.
    """
    inner = _graph(c, "body")
    most = MOST_ROUNDS + 1 if c.get(0) is None else int(c.number(0, "trip count"))
    goes_on = c.get(1) is None or bool(c.number(1, "condition"))
    carried = [c[i] for i in range(2, len(c.operands))]
    scanned: list[list[Operand]] = [[] for _ in range(len(inner.outputs) - 1 - len(carried))]
    done = 0
    while goes_on and done < most:
        if done >= MOST_ROUNDS:
            raise Refusal(f"it has more than {MOST_ROUNDS:,} rounds")
        condition = Known(torch.tensor(True))
        made = body(inner, [Known(torch.tensor(done)), condition, *carried])
        if not isinstance(made[0], Known):
            raise Refusal("its condition is computed in every round")
        goes_on, done = bool(made[0].tensor.all()), done + 1
        carried = made[1 : 1 + len(carried)]
        for rows, row in zip(scanned, made[1 + len(carried) :], strict=True):
            rows.append(row)
    if scanned and not done:
        raise Refusal("it collects results of no round")
    return [*carried, *(c.call("stack", rows, 0) for rows in scanned)]


def _graph(c: Call, name: str) -> ir.Graph:
    attribute = c.attribute(name)
    if attribute is None or attribute.type != ir.AttributeType.GRAPH:
        raise Refusal(f"it has no graph {name}")
    return attribute.as_graph()
