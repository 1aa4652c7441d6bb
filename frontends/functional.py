"""Makes the fx graph of an exported program plain: no nested regions, no dead code; `writes` does the rest."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from archir.errors import CaptureError
from frontends.locations import location

_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast


def flatten(module: fx.GraphModule) -> fx.Graph:
    """Return a copy of a graph with `torch.no_grad()` blocks, their results detached, and disabled autocast inlined.

    Raises:
        CaptureError: a block runs under autocast, or the graph calls another higher-order operator.
    """
    graph = fx.Graph()
    result = _copy(module, graph, {})
    graph.output(result)
    return graph


def _copy(module: fx.GraphModule, graph: fx.Graph, values: dict[fx.Node, Any]) -> Any:
    def current(node: fx.Node) -> Any:
        return values[node]

    for node in module.graph.nodes:
        if node.op == "output":
            return fx.map_arg(node.args[0], current)
        if node.op == "get_attr" or node in values:
            continue
        if node.target is operator.getitem and isinstance(values[node.args[0]], tuple):
            values[node] = values[node.args[0]][node.args[1]]
        elif isinstance(node.target, torch._ops.HigherOrderOperator):
            values[node] = _region(module, node, graph, values)
        else:
            values[node] = graph.node_copy(node, current)
    return ()


def _region(module: fx.GraphModule, node: fx.Node, graph: fx.Graph, values: dict[fx.Node, Any]) -> tuple[Any, ...]:
    if node.target not in (_GRAD, _AUTOCAST):
        raise CaptureError(
            f"the model uses {node.target}, a higher-order operator, which is not supported",
            where=str(location(node) or ""),
        )
    if node.target is _AUTOCAST and node.args[2]:
        raise CaptureError(
            "the model runs a block under autocast, which is not supported",
            where=str(location(node) or ""),
            hint="run the model under autocast as a whole instead",
        )
    settings = 1 if node.target is _GRAD else 4
    body_node, *operands = node.args[settings:]
    assert isinstance(body_node, fx.Node)
    body = module.get_submodule(str(body_node.target))
    assert isinstance(body, fx.GraphModule)
    places = body.graph.find_nodes(op="placeholder")
    given = fx.map_arg(tuple(operands), lambda n: values[n])
    results: tuple[Any, ...] = tuple(_copy(body, graph, dict(zip(places, given, strict=True))))
    if node.target is _GRAD and not node.args[0]:
        return tuple(_detached(graph, r) if isinstance(r, fx.Node) else r for r in results)
    return results


def _detached(graph: fx.Graph, node: fx.Node) -> fx.Node:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return node
    made = graph.call_function(torch.ops.aten.detach.default, (node,))
    made.meta = dict(node.meta)
    return made


def remove_dead(graph: fx.Graph) -> None:
    """Remove the calls whose results nothing uses, assertions included."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)
