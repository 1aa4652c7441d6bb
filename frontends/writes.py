"""Rewrites in-place operators of an exported program out of place."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from archir.errors import CaptureError
from archir.ir.operators.operator import Movement
from archir.ir.registry import operator_of
from frontends.locations import location

aten = torch.ops.aten

_FUNCTIONAL = {
    aten.zero_.default: aten.zeros_like.default,
    aten.bernoulli_.float: aten.bernoulli.p,
    aten.normal_.default: aten.normal_functional.default,
}
_SCATTER = {
    aten.select.int: aten.select_scatter.default,
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.diagonal.default: aten.diagonal_scatter.default,
}


class Inexact(Exception):
    """A write whose out-of-place form is not known here; export's own functionalisation may know it."""


def _keeps_order(op: object) -> bool:
    """Say whether the results of an operator are the elements of its operand in their order."""
    known = operator_of(str(op))
    return known.moves in (Movement.COPY, Movement.RESHAPE) and not known.mode


def remove_writes(graph: fx.Graph, names: Mapping[str, str]) -> None:
    """Rewrite in-place operators as their out-of-place forms, and follow every alias of what they write into.

    Tensors alias if they share storage. After a write into a view the tensor it is a view of is put together
    anew (`slice_scatter` and the like), and its other views that are used later are taken again.

    Args:
        graph: changed in place.
        names: what the placeholders are, for the errors.

    Raises:
        CaptureError: the program writes into an input, a parameter or a buffer.
        Inexact: the out-of-place form of a write is not known.

    Source: ours; the idea is that of `torch.func.functionalize`, which would take batch normalisation apart too.
    """
    _Writes(graph, names).remove()


class _Writes:
    """The aliases in a graph, and the node that holds what each tensor is now."""

    def __init__(self, graph: fx.Graph, names: Mapping[str, str]) -> None:
        self._graph = graph
        self._names = names
        self._nodes = list(graph.nodes)
        self._rank = {node: rank for rank, node in enumerate(self._nodes)}
        self._tensor: dict[fx.Node, fx.Node] = {}
        self._parent: dict[fx.Node, fx.Node] = {}
        self._args = {node: (node.args, node.kwargs) for node in self._nodes}
        self._last_use: dict[fx.Node, int] = {}
        self._now: dict[fx.Node, fx.Node] = {}
        self._reshaped: set[fx.Node] = set()
        for node in self._nodes:
            target = _written(node)
            # The result of an in-place operator is the tensor it wrote into.
            self._tensor[node] = self._tensor[target] if target is not None else node
            parent = _aliased(node)
            if target is None and parent is not None:
                self._parent[node] = self._tensor[parent]
            for operand in node.all_input_nodes:
                self._last_use[self._tensor[operand]] = self._rank[node]

    def remove(self) -> None:
        for node in self._nodes:
            target = _written(node)
            if self._now:
                node.args = fx.map_arg(node.args, self._current)
                node.kwargs = fx.map_arg(node.kwargs, self._current)
            if target is not None:
                with self._graph.inserting_before(node):
                    self._write(node, self._tensor[target])

    def _current(self, node: fx.Node) -> fx.Node:
        tensor = self._tensor.get(node, node)
        return self._now.get(tensor, tensor)

    def _write(self, node: fx.Node, tensor: fx.Node) -> None:
        if torch.Tag.inplace_view in node.target.tags:  # type: ignore[union-attr]
            self._now[tensor] = self._call(_functional(node.target), node.args, node.kwargs, node)
            self._reshaped.add(tensor)
            return
        chain = self._ancestors(tensor)
        root = chain[-1] if chain else tensor
        if root.op == "placeholder":
            raise CaptureError(
                f"the model writes into {self._names.get(root.name, root.name)}",
                where=str(location(node) or ""),
                why="a graph has no effects besides the running statistics of normalisation",
                hint="work on a copy, or return the new value",
            )
        self._now[tensor] = self._result(node)
        before = self._nodes[: self._rank[node]]
        family = [n for n in before if self._tensor[n] is n and n is not tensor and self._root(n) is root]
        live = {n for n in family if self._last_use.get(n, -1) > self._rank[node]}
        if any(tensor not in self._ancestors(n) for n in live):
            self._put_back(node, tensor, chain)
        else:
            chain = []
        for member in family:
            if member not in chain and self._is_needed(member, live) and self._comes_from(member, tensor, chain):
                if member in self._reshaped:
                    raise Inexact(f"{member} changed its shape in place")
                args, kwargs = self._args[member]
                mapped = fx.map_arg((args, kwargs), self._current)
                self._now[member] = self._call(member.target, *mapped, member)

    def _put_back(self, node: fx.Node, tensor: fx.Node, chain: list[fx.Node]) -> None:
        """Put the new value of a view into all it is a view of."""
        child = tensor
        for parent in chain:
            if child in self._reshaped:
                raise Inexact(f"{child} changed its shape in place")
            op, (args, kwargs) = child.target, self._args[child]
            whole, part = self._current(parent), self._now[child]
            if op in _SCATTER:
                made = self._call(_SCATTER[op], (whole, part, *args[1:]), kwargs, parent)
            elif _keeps_order(op):
                made = self._call(aten.reshape_as.default, (part, whole), {}, parent)
            elif op is aten.permute.default:
                order = [d % len(args[1]) for d in args[1]]
                back = sorted(range(len(order)), key=order.__getitem__)
                made = self._call(op, (part, back), {}, parent)
            elif op in (aten.transpose.int, aten.t.default):
                made = self._call(op, (part, *args[1:]), {}, parent)
            else:
                raise Inexact(f"{op} has no known inverse")
            made.meta = {**made.meta, **{k: v for k, v in node.meta.items() if k != "val"}}
            self._now[parent] = made
            child = parent

    def _result(self, node: fx.Node) -> fx.Node:
        """Return the out-of-place result of an in-place call."""
        whole = node.args[0]
        assert isinstance(whole, fx.Node)
        kind = node.meta["val"]
        if node.target is aten.copy_.default:
            source = node.args[1]
            assert isinstance(source, fx.Node)
            shape = tuple(source.meta["val"].shape)
            source = self._cast(source, kind.dtype)
            return (
                source if shape == tuple(kind.shape) else self._call(aten.expand_as.default, (source, whole), {}, node)
            )
        made = self._call(_functional(node.target), node.args, node.kwargs, node)
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        with kind.fake_mode:
            # Out of place, element types promote; in place, the tensor keeps its own.
            made.meta["val"] = made.target(*args, **kwargs)  # type: ignore[operator]
        return self._cast(made, kind.dtype)

    def _cast(self, value: fx.Node, dtype: torch.dtype) -> fx.Node:
        kind = value.meta["val"]
        if kind.dtype == dtype:
            return value
        made = self._call(aten.to.dtype, (value, dtype), {}, value)
        made.meta["val"] = kind.to(dtype)
        return made

    def _call(self, target: Any, args: Any, kwargs: Any, like: fx.Node) -> fx.Node:
        made = self._graph.call_function(target, args, kwargs)
        made.meta = dict(like.meta)
        return made

    def _ancestors(self, node: fx.Node) -> list[fx.Node]:
        found = []
        while node in self._parent:
            node = self._parent[node]
            found.append(node)
        return found

    def _root(self, node: fx.Node) -> fx.Node:
        return [node, *self._ancestors(node)][-1]

    def _is_needed(self, node: fx.Node, live: set[fx.Node]) -> bool:
        return node in live or any(node in self._ancestors(n) for n in live)

    def _comes_from(self, node: fx.Node, tensor: fx.Node, chain: list[fx.Node]) -> bool:
        return bool(chain) or tensor in self._ancestors(node)


def _written(node: fx.Node) -> fx.Node | None:
    """Return the node an in-place operator writes into."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    arguments = node.target._schema.arguments
    written = [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
    if not written:
        return None
    if written != [0] or not isinstance(node.args[0], fx.Node):
        raise Inexact(f"{node.target} writes into an argument other than its first")
    return node.args[0]


def _functional(op: Any) -> Any:
    """Return the operator that takes the same arguments and writes into none of them."""
    if op in _FUNCTIONAL:
        return _FUNCTIONAL[op]
    packet = getattr(aten, op._opname.removesuffix("_"), None)
    if packet is not None and op.namespace == "aten" and not op._opname.endswith("__"):
        # Overloads of the two need not have the same names: `pow_.Scalar` is `pow.Tensor_Scalar`.
        names = sorted(packet.overloads(), key=lambda name: name != op._overloadname)
        for found in (getattr(packet, name) for name in names):
            if _parameters(found) == _parameters(op):
                return found
    raise Inexact(f"{op} has no out-of-place form")


def _parameters(op: Any) -> list[tuple[str, str]]:
    return [(a.name, str(a.type)) for a in op._schema.arguments]


def _aliased(node: fx.Node) -> fx.Node | None:
    """Return the operand a node shares storage with."""
    if node.target is operator.getitem:
        return node.args[0]  # type: ignore[return-value]
    storages = _storages(node)
    if node.op != "call_function" or not storages or node.target is aten.lift_fresh_copy.default:
        return None
    return next((operand for operand in node.all_input_nodes if _storages(operand) & storages), None)


def _storages(node: fx.Node) -> set[int]:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    try:
        return {v.untyped_storage()._cdata for v in values if isinstance(v, torch.Tensor)}
    except NotImplementedError as error:
        raise Inexact(f"{node.target} does not tell what it shares storage with") from error  # within `torch.vmap`
