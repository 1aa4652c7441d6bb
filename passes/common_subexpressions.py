"""CommonSubexpressions: what is computed twice is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from archir.ir import ops
from archir.ir.execute import mode_argument
from archir.ir.graph import Graph, Patch
from archir.ir.node import Argument, Node, Value
from archir.ir.registry import operator_of
from archir.rewrite.passes import Pass
from passes.sweep import Sweep, sweep


@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """Let calls of one operator with the same arguments be one call, the first.

    Random calls, those whose result sizes depend on data, those that behave differently in training (each dropout
    draws its own mask, each normalisation updates its running statistics) and those with an effect stay apart.
    Training is the same afterwards.

    Source: the standard optimisation of compilers (value numbering).
    """

    name: ClassVar[str] = "common-subexpressions"
    summary: ClassVar[str] = "compute once what is computed twice"
    preserves: ClassVar[str] = "the function, in training too"

    def patch(self, graph: Graph) -> Patch:
        """Return a patch without repeated calls; an empty one if there are none."""
        seen: dict[object, int] = {}

        def merge(walk: Sweep, node: Node) -> None:
            if not is_pure(node) or mode_argument(node) is not None:
                return
            # The types are part of the key: sizes that depend on data have a symbol of their own in each call.
            key = (node.op, node.results, *((n, _key(a)) for n, a in node.arguments.items()))
            first = seen.setdefault(key, node.id)
            if first != node.id:
                for old in node.made:
                    walk.edit.replace_uses(old, Value(first, old.index))
                walk.drop(node.id)

        return sweep(graph, self, merge)


def is_pure(node: Node) -> bool:
    """Say whether a call gives the same results for the same arguments in evaluation mode, and does nothing else.

    Normalisation with running statistics does something else: it may write them.
    """
    target = ops.function(node.op)
    if "empty" in node.op.split(".")[1] or isinstance(node.arguments.get("running_mean"), Value):
        return False
    if not isinstance(target, torch._ops.OpOverload):
        return True
    mode = operator_of(node.op).mode
    if mode:
        return mode_argument(node) is not None or not node.argument(mode)
    return torch.Tag.nondeterministic_seeded not in target.tags


def _key(argument: Argument) -> object:
    """Return what tells arguments apart: 1, 1.0 and True are three."""
    if isinstance(argument, tuple):
        return tuple(map(_key, argument))
    return argument if isinstance(argument, Value) else (type(argument), repr(argument))
