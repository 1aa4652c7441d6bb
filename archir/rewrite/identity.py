"""When a block is the identity: which of its layers have to be zero, and the proof.

The block is run on states instead of numbers: zero, the same as the input, or other. A layer whose weight and bias
are zero gives zero; what is the same plus zero is the same; an activation that lets the range of the input pass
keeps it the same. This holds in training too.

Source: ours; the last layer of a branch at zero is from Zhang, Dauphin, Ma 2019 (Fixup).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum

from archir.ir.graph import Graph
from archir.ir.node import PARAMETER, Argument, Node, Value
from archir.ir.operators.operator import SUMMANDS, Kind, Movement
from archir.ir.registry import operator_of
from archir.ir.types import TensorType
from archir.rewrite.block import Block
from archir.rewrite.miss import Miss
from archir.rewrite.surroundings import LAYERS, kind_of, short_name
from archir.rewrite.zeros import keeps_zero

_DEEPEST = 64
"""Most calls that are looked through for the range of a value."""


class State(Enum):
    """What is known of a value in a block.

    Attributes:
        ZERO: every number is zero.
        SAME: the numbers are those of the input, in its order.
        OTHER: nothing.
    """

    ZERO = "zero"
    SAME = "same"
    OTHER = "other"


def find_identity(graph: Graph, block: Block, source: Value) -> frozenset[int] | Miss:
    """Find the stored tensors of a block that, when zero, make a copy of it after the block the identity.

    They are those of the last layer of each of its residual branches.

    Args:
        graph: the graph.
        block: the block.
        source: what it is given; the copy is given its result instead.

    Returns:
        Their nodes, or why there are none.
    """
    zeros: frozenset[int] = frozenset()
    sums = False
    while True:
        states = run(graph, block, source, zeros)
        if states[block.out] is State.SAME:
            return zeros or Miss("it has no layer that could be zero", (block.out.node,))
        more: frozenset[int] = frozenset()
        for node in block.calls:
            branch = _open_branch(node, states)
            sums = sums or branch is not None
            more = more or (frozenset() if branch is None else _last_layer(graph, block, branch) - zeros)
        if not more:
            break
        zeros |= more
    if not sums and not zeros:
        return Miss("it has no residual connection", (block.out.node,))
    blocker = _blocker(graph, block, states)
    if _open_branch(blocker, states) is not None:
        return Miss("a branch of it ends in no layer that could be zero", (blocker.id,))
    changing = blocker.op.removesuffix(".default")
    return Miss(f"{changing} changes what its residual connections let through", (blocker.id,))


def is_residual(graph: Graph, block: Block) -> bool:
    """Say whether a block adds up two activations of the type of its result."""
    type_ = graph.type_of(block.out)
    for node in block.calls:
        made = [v for v in node.values if graph.node(v.node).op != PARAMETER and graph.type_of(v) == type_]
        if operator_of(node.op).linear == SUMMANDS and node.results[0] == type_ and len(made) == 2:
            return True
    return False


def is_gated(graph: Graph, block: Block) -> bool:
    """Say whether a block multiplies what it is given by something it has computed."""
    node, made = graph.node(block.out.node), {n.id for n in block.calls}
    if not _is_product(node) or not operator_of(node.op).pointwise:
        return False
    return any(v in block.given for v in node.values) and any(v.node in made for v in node.values)


def run(graph: Graph, block: Block, source: Value, zeros: frozenset[int]) -> Mapping[Value, State]:
    """Return the state of every value of a block when some stored tensors are zero.

    Args:
        graph: the graph.
        block: the block.
        source: what it is given, which has the range of its result.
        zeros: stored tensors that are zero.
    """
    states = {source: State.SAME} | {Value(id_): State.ZERO for id_ in zeros}
    for node in block.calls:
        state = _state(graph, block, node, states)
        states |= dict.fromkeys(node.made, state)
    return states


def _state(graph: Graph, block: Block, node: Node, states: Mapping[Value, State]) -> State:
    known, layer = operator_of(node.op), kind_of(node) in LAYERS

    def of(argument: Argument) -> State:
        return states.get(argument, State.OTHER) if isinstance(argument, Value) else State.OTHER

    def zero(*arguments: str) -> bool:
        given = [node.arguments.get(a) for a in arguments]
        return all(a is None or of(a) is State.ZERO for a in given)

    first = next(iter(node.arguments.values()), None)
    if layer or known.kind is Kind.NORM:
        by_weight = node.arguments.get("weight") is not None and zero("weight", "bias")
        return State.ZERO if by_weight or (layer and zero("input", "bias")) else State.OTHER
    if short_name(node) == "addmm":
        both = zero("self") and (zero("mat1") or zero("mat2"))
        return State.ZERO if both else State.OTHER
    if _is_product(node):
        if any(of(v) is State.ZERO for u, v in node.operands() if u.argument in known.multilinear):
            return State.ZERO
    elif known.linear == SUMMANDS:
        one, other = of(node.arguments["self"]), of(node.arguments["other"])
        if one is other is State.ZERO:
            return State.ZERO
        commutes = short_name(node) == "add" and "alpha" not in node.arguments
        for skip, branch in (("self", "other"), ("other", "self")) if commutes else (("self", "other"),):
            same = node.arguments[skip]
            if of(same) is State.SAME and of(node.arguments[branch]) is State.ZERO and isinstance(same, Value):
                return State.SAME if node.results[0] == graph.type_of(same) else State.OTHER
        return State.OTHER
    elif known.moves is Movement.JOIN and isinstance(first, tuple):
        return State.ZERO if all(of(part) is State.ZERO for part in first) else State.OTHER
    elif of(first) is State.ZERO and keeps_zero(node):
        return State.ZERO
    elif of(first) is State.SAME and (_keeps_all(graph, block, node) or _passes(graph, block, node)):
        return State.SAME
    return State.OTHER


def _is_product(node: Node) -> bool:
    """Say whether a call multiplies its operands and adds nothing."""
    known = operator_of(node.op)
    return bool(known.multilinear) and known.layer is None and node.arguments.get("bias") is None


def _keeps_order(node: Node) -> bool:
    """Say whether a call keeps all numbers and their order, unless it changes the element type; in training too."""
    known = operator_of(node.op)
    return known.moves in (Movement.COPY, Movement.CAST, Movement.RESHAPE) and not known.mode


def _keeps_all(graph: Graph, block: Block, node: Node) -> bool:
    """Say whether a call keeps all numbers of the input of a block."""
    input_, result = graph.type_of(block.out), node.results[0]
    typed = isinstance(input_, TensorType) and isinstance(result, TensorType) and input_.dtype == result.dtype
    return _keeps_order(node) and typed


def _passes(graph: Graph, block: Block, node: Node) -> bool:
    """Say whether a call lets everything through that lies in the range of the result of a block."""
    if short_name(node) == "dropout":
        return node.argument("p") == 0
    window = _window(node)
    if window is None:
        return False
    low, high = _limits(graph, block.out, _DEEPEST)
    return window[0] <= low and high <= window[1]


def _window(node: Node) -> tuple[float, float] | None:
    """Return the range a call cuts its operand to, None if it does something else."""
    name = short_name(node)
    if name in ("relu", "relu6"):
        return 0.0, 6.0 if name == "relu6" else math.inf
    if name == "hardtanh":
        low, high = node.argument("min_val"), node.argument("max_val")
    elif name == "clamp":
        low, high = node.argument("min"), node.argument("max")
    else:
        return None
    if isinstance(low, Value) or isinstance(high, Value):
        return None
    return _number(low, -math.inf), _number(high, math.inf)


def _number(argument: Argument, default: float) -> float:
    return float(argument) if isinstance(argument, int | float) else default


def _limits(graph: Graph, value: Value, depth: int) -> tuple[float, float]:
    """Return limits between which a value lies."""
    node = graph.node(value.node)
    name, moves = short_name(node), operator_of(node.op).moves
    window = _window(node) if node.is_call else None
    if window is not None:
        return window
    if name in ("sigmoid", "softmax", "hardsigmoid"):
        return 0.0, 1.0
    operands = [*node.values]
    if not depth or not node.is_call or not operands:
        return -math.inf, math.inf
    if name == "add" and "alpha" not in node.arguments and len(operands) == 2:
        limits = [_limits(graph, v, depth - 1) for v in operands]
        return sum(low for low, _ in limits), sum(high for _, high in limits)
    if moves is Movement.JOIN:
        limits = [_limits(graph, v, depth - 1) for v in operands]
        return min(low for low, _ in limits), max(high for _, high in limits)
    if _keeps_order(node) or moves is Movement.PERMUTE or name.startswith("max_pool"):
        return _limits(graph, operands[0], depth - 1)
    if name == "dropout" or "avg_pool" in name:
        low, high = _limits(graph, operands[0], depth - 1)
        return (0.0 if low >= 0 else -math.inf), (0.0 if high <= 0 else math.inf)
    return -math.inf, math.inf


def _open_branch(node: Node, states: Mapping[Value, State]) -> Value | None:
    """Return what a call adds to the input of its block, if that is not zero."""
    if operator_of(node.op).linear != SUMMANDS:
        return None
    one, other = node.arguments["self"], node.arguments["other"]
    for skip, branch in ((one, other), (other, one)):
        if isinstance(skip, Value) and isinstance(branch, Value) and states.get(skip) is State.SAME:
            return branch if states.get(branch, State.OTHER) is State.OTHER else None
    return None


def _last_layer(graph: Graph, block: Block, value: Value) -> frozenset[int]:
    """Return the stored tensors of a block that have to be zero for a value to be; none if that cannot be."""
    nothing: frozenset[int] = frozenset()
    node = graph.node(value.node)
    if node.op == PARAMETER:
        return frozenset({node.id}) if node.is_trainable and node.id in block.stored else nothing
    if node not in block.calls:
        return nothing
    known, adds = operator_of(node.op), short_name(node) == "addmm"
    operands = [*node.values]
    if known.kind in LAYERS or known.kind is Kind.NORM or adds:
        names = ("mat2", "self") if adds else ("weight", "bias")
        given = [a for n in names if (a := node.arguments.get(n)) is not None]
        parts = [
            _last_layer(graph, block, a) if isinstance(a, Value) and _is_stored(graph, a) else nothing for a in given
        ]
        return frozenset().union(*parts) if all(parts) and names[0] in node.arguments else nothing
    if known.linear == SUMMANDS or known.moves is Movement.JOIN:
        parts = [_last_layer(graph, block, v) for v in operands]
        return frozenset().union(*parts) if all(parts) else nothing
    if _is_product(node):
        if known.pointwise:  # what is scaled rather than the scale
            operands.sort(key=lambda v: (_is_stored(graph, v), graph.type_of(v) != node.results[0]))
        else:  # the weight
            operands.sort(key=lambda v: not _is_stored(graph, v))
        return next((found for v in operands if (found := _last_layer(graph, block, v))), nothing)
    return _last_layer(graph, block, operands[0]) if operands and keeps_zero(node) else nothing


def _is_stored(graph: Graph, value: Value) -> bool:
    """Say whether a value is a stored tensor, moved about at most."""
    node = graph.node(value.node)
    while node.is_call and operator_of(node.op).linear and len(node.operands()) == 1:
        node = graph.node(node.operands()[0][1].node)
    return node.op == PARAMETER


def _blocker(graph: Graph, block: Block, states: Mapping[Value, State]) -> Node:
    """Return the call at which the input of a block ceases to be the same on its way to the result."""
    node = graph.node(block.out.node)
    inside = {n.id: n for n in block.calls}
    while not any(states.get(v) is State.SAME for v in node.values):
        above = [inside[v.node] for v in node.values if v.node in inside]
        alike = [n for n in above if graph.type_of(block.out) in n.results]
        if not above:
            break
        node = (alike or above)[0]
    return node
