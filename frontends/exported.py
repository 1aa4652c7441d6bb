"""Turns an exported program into a graph."""

from __future__ import annotations

import contextlib
import operator
import re
import warnings
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import sympy
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from archir.errors import CaptureError, GraphError
from archir.ir import ops
from archir.ir.arguments import keys_of
from archir.ir.constants import check_constants
from archir.ir.graph import Graph
from archir.ir.guards import choose
from archir.ir.node import (
    INPUT,
    OUTPUT,
    PARAMETER,
    Argument,
    Constant,
    Leaf,
    Node,
    Parameter,
    Signature,
    Tree,
    Value,
)
from archir.ir.operators.attention import ATTENTION
from archir.ir.types import ScalarType, Size, TensorType, Type, as_size, evaluate, symbol, symbols_of
from frontends.functional import flatten, remove_dead
from frontends.guards import Assumption, assumptions, guards_of
from frontends.locations import location
from frontends.sizes import plain
from frontends.stored import stored
from frontends.writes import Inexact, remove_writes

_PLACEMENT = ("device", "pin_memory", "layout")
_WITHOUT_DEVICE = {"aten.to.device": "aten.to.dtype"}
_VIEWS = ("aten.view.default", "aten._unsafe_view.default")


def attention_dropout(program: ExportedProgram) -> list[float]:
    """Return the dropout probability of every attention call of an exported program, in order."""
    calls = flatten(program.graph_module).find_nodes(op="call_function", target=ops.function(ATTENTION))
    arguments = (ops.normalise(ATTENTION, node.args, node.kwargs) for node in calls)
    return [float(found.get("dropout_p", 0.0)) for found in arguments]


def to_graph(
    program: ExportedProgram,
    model: nn.Module,
    dropout: Sequence[float] = (),
    names: Mapping[tuple[int, int], str] = MappingProxyType({}),
) -> tuple[Graph, tuple[Assumption, ...]]:
    """Return the graph of an exported program, and what its guards are made of.

    Args:
        program: what `torch.export.export` made of the model in eval mode.
        model: the model, for the names of its tensors.
        dropout: the dropout probability of every attention call in training, in order.
        names: what the sizes of axes are called, by the number of the tensor among the inputs and that of the axis.

    Raises:
        CaptureError: the program does something a graph cannot say.
    """
    try:
        graph = _plain(program)
    except Inexact as error:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own
            program = program.run_decompositions({})
        try:
            graph = _plain(program)
        except Inexact:
            raise CaptureError(
                "the model writes into a tensor in a way that is not supported", why=str(error)
            ) from error
    try:
        conversion = _Conversion(program, graph, model, dropout, names)
        return conversion.graph(), conversion.assumed
    except GraphError as error:
        raise CaptureError(error.what, where=error.where, why=error.why, hint=error.hint) from error


def _plain(program: ExportedProgram) -> fx.Graph:
    graph = flatten(program.graph_module)
    specs = program.graph_signature.input_specs
    names = {s.arg.name: f"{s.kind.name.lower().replace('_', ' ')} {s.target or s.arg.name}" for s in specs}
    remove_writes(graph, names)
    changed = {**program.graph_signature.buffers_to_mutate, **program.graph_signature.user_inputs_to_mutate}
    if changed:
        raise CaptureError(f"the model writes into {', '.join(sorted(changed.values()))}")
    remove_dead(graph)
    return graph


class _Conversion:
    """One exported program on its way to being a graph."""

    def __init__(
        self,
        program: ExportedProgram,
        graph: fx.Graph,
        model: nn.Module,
        dropout: Sequence[float],
        names: Mapping[tuple[int, int], str],
    ) -> None:
        self._program = program
        self._graph = graph
        self._model = model
        attention = graph.find_nodes(op="call_function", target=ops.function(ATTENTION))
        # Attention whose result is not used has been removed; then the calls cannot be told apart by their order.
        self._dropout = dict(zip(attention, dropout, strict=True)) if len(attention) == len(dropout) else {}
        self._values: dict[fx.Node, Argument] = {}
        self._nodes: list[Node] = []
        self._tensors: dict[int, torch.Tensor] = {}
        self._symbols: dict[sympy.Symbol, sympy.Symbol] = {}
        self._axis_names = names
        self.assumed: tuple[Assumption, ...] = ()

    def graph(self) -> Graph:
        placeholders = self._graph.find_nodes(op="placeholder")
        specs = list(zip(self._program.graph_signature.input_specs, placeholders, strict=True))
        users = [(spec, node) for spec, node in specs if spec.kind is InputKind.USER_INPUT]
        self._take_names([node.meta["val"] for _, node in users if isinstance(node.meta.get("val"), torch.Tensor)])
        leaves = [self._input(spec.arg, node) for spec, node in users]
        self.assumed = tuple(assumptions(self._program, self._symbols))
        for node in stored(self._model, len(self._nodes)):
            self._nodes.append(node[0])
            self._tensors[node[0].id] = node[1]
        by_name = {n: node.id for node in self._nodes for n in node.names}
        for spec, placeholder in specs:
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                self._values[placeholder] = Value(by_name[str(spec.target)])
            elif spec.kind is InputKind.CONSTANT_TENSOR:
                self._values[placeholder] = self._constant(str(spec.target), by_name)
            elif spec.kind is not InputKind.USER_INPUT:
                raise CaptureError(f"the model uses {spec.target}, a {spec.kind.name.lower()}, which no graph can hold")
        output: fx.Node | None = None
        for node in self._graph.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                output = node
            elif node.op != "placeholder":
                raise CaptureError(f"the model uses {node.op} {node.target}, which no graph can hold")
        assert output is not None
        self._guard_ones()
        signature = self._signature(leaves, output)
        name = re.sub(r"\W", "_", type(self._model).__name__)
        return Graph(name, self._nodes, self._tensors, signature)

    def _signature(self, leaves: Sequence[Constant | int], output: fx.Node) -> Signature:
        spec = self._program.call_spec
        assert spec.in_spec is not None and spec.out_spec is not None
        args, kwargs = _tree(spec.in_spec, iter(leaves)).children  # type: ignore[union-attr]
        returned = pytree.tree_leaves(output.args[0], is_leaf=lambda leaf: leaf is None)
        found: list[Constant | int] = []
        values: list[Argument] = []
        for item in returned:
            value = self._values[item] if isinstance(item, fx.Node) else item
            if isinstance(value, Value):
                found.append(len(values))
                values.append(value)
            elif isinstance(value, int | float | bool | str | None):
                found.append(Constant(value))
            else:
                raise CaptureError(f"the model returns a {type(value).__name__}, neither tensor nor constant")
        arguments = {str(i): v for i, v in enumerate(values)}
        self._nodes.append(Node(len(self._nodes), OUTPUT, arguments))
        result = _tree(spec.out_spec, iter(found))
        return Signature(args, kwargs, result, guards_of(self.assumed))  # type: ignore[arg-type]

    def _input(self, argument: object, placeholder: fx.Node) -> Constant | int:
        if isinstance(argument, ConstantArgument):
            value = argument.value
            if not isinstance(value, int | float | bool | str | None):
                raise CaptureError(f"argument {argument.name} is a {type(value).__name__}, neither tensor nor constant")
            self._values[placeholder] = value
            return Constant(value)
        value = placeholder.meta["val"]
        for size in value.shape if isinstance(value, torch.Tensor) else (value,):
            self._name_symbols(size)
        node = Node(len(self._nodes), INPUT, {}, (self._type(value),), name=str(placeholder.target))
        self._nodes.append(node)
        self._values[placeholder] = Value(node.id)
        return node.id

    def _constant(self, name: str, by_name: Mapping[str, int]) -> Value:
        tensor = self._program.constants[name].detach().clone()
        while name in by_name:
            name += "_"
        type_ = TensorType(tensor.dtype, tuple(tensor.shape))
        parameter = Parameter((name,), "constant", trainable=False, persistent=False)
        node = Node(len(self._nodes), PARAMETER, {}, (type_,), parameter=parameter)
        self._nodes.append(node)
        self._tensors[node.id] = tensor
        return Value(node.id)

    def _call(self, node: fx.Node) -> None:
        if node.target is operator.getitem and isinstance(self._argument(node.args[0]), tuple):
            self._values[node] = self._argument(node.args[0])[node.args[1]]  # type: ignore[index]
            return
        if node.target is torch.ops.aten.lift_fresh_copy.default:
            self._values[node] = self._argument(node.args[0])
            return
        op = ops.op_name(node.target)
        keywords = {k: self._argument(a) for k, a in node.kwargs.items()}
        several = isinstance(value := node.meta["val"], list | tuple)
        try:
            declared = tuple(map(self._type, value if several else (value,)))
            arguments = ops.normalise(op, self._argument(node.args), keywords)  # type: ignore[arg-type]
            check_constants(op, arguments, (Value,))
        except GraphError as error:
            where = str(location(node) or "")
            raise CaptureError(error.what, where=where, why=error.why, hint=error.hint) from error
        if op in _WITHOUT_DEVICE:
            op = _WITHOUT_DEVICE[op]
            arguments = ops.normalise(op, (), {k: a for k, a in arguments.items() if k != "device"})
        if op in _VIEWS:
            # A view that fits the strides of today need not fit those of a rewritten graph.
            op, arguments = "aten.reshape.default", {"self": arguments["self"], "shape": arguments["size"]}
        arguments = {
            name: argument
            for name, argument in arguments.items()
            if not (name == "device" or (name in _PLACEMENT and argument in (None, False, torch.strided)))
        }
        if op == ATTENTION:
            arguments = self._attention(node, arguments)
        results = self._agreed(node, op, arguments, declared)
        made = Node(len(self._nodes), op, arguments, results, name=node.name, location=location(node))
        self._nodes.append(made)
        self._values[node] = tuple(Value(made.id, i) for i in range(len(results))) if several else Value(made.id)

    def _agreed(
        self, node: fx.Node, op: str, arguments: dict[str, Argument], declared: tuple[Type, ...]
    ) -> tuple[Type, ...]:
        """Return the types of the results as they follow from those of the operands, and guard what export says else.

        Kernels disagree on the shapes of results that nobody reads.
        """
        guards = guards_of(self.assumed)
        try:
            operands = {name: _typed(argument, self._nodes) for name, argument in arguments.items()}
            inferred = ops.infer_types(op, operands, guards)
        except GraphError:
            return declared
        if len(inferred) != len(declared):
            return declared
        if ops.same_types(inferred, declared, guards):
            return inferred
        used = {user.args[1] if user.target is operator.getitem else None for user in node.users}
        unread = set() if None in used or len(declared) == 1 else set(range(len(declared))) - used
        pairs = enumerate(zip(declared, inferred, strict=True))
        return tuple(new if i in unread else self._guarded(old, new, node) for i, (old, new) in pairs)

    def _guarded(self, declared: Type, inferred: Type, node: fx.Node) -> Type:
        """Return the inferred type, with the guard that it is the declared one; the latter where they are unlike."""
        old, new = (t.shape if isinstance(t, TensorType) else (t.value,) for t in (declared, inferred))
        if _without_sizes(declared) != _without_sizes(inferred) or len(old) != len(new) or None in (*old, *new):
            return declared
        known = {s.name for s in self._symbols.values()}
        if not all(symbols_of(size) <= known for size in (*old, *new)):
            return declared
        for one, other in zip(old, new, strict=True):
            self.assumed += (Assumption(sympy.Eq(one, other, evaluate=False), str(location(node) or "")),)
        return inferred

    def _guard_ones(self) -> None:
        """Guard against a size of 1 where results have other shapes then, as those of `squeeze` have.

        Export takes a size for none that broadcasts or is squeezed, and notes nothing of it.
        """
        names = [s.name for s in self._symbols.values()]
        for name in names:
            known = guards_of(self.assumed, without=tuple(names))
            sizes = choose(known, {other: 1 if other == name else 6 + i for i, other in enumerate(names)})
            if sizes[name] == 1 and any(n.is_call and not _fits(n, self._nodes, sizes) for n in self._nodes):
                self.assumed += (Assumption(sympy.Ge(symbol(name), 2, evaluate=False)),)

    def _attention(self, node: fx.Node, arguments: dict[str, Argument]) -> dict[str, Argument]:
        if "dropout_p" in arguments:
            raise CaptureError(
                "attention drops out in eval mode, which is not supported",
                where=str(location(node) or ""),
                hint="pass dropout_p=p if self.training else 0.0",
            )
        probability = self._dropout.get(node, 0.0)
        return {**arguments, "dropout_p": probability} if probability else arguments

    def _argument(self, argument: object) -> Argument:
        if isinstance(argument, fx.Node):
            return self._values[argument]
        if isinstance(argument, list | tuple):
            return tuple(map(self._argument, argument))
        return argument  # type: ignore[return-value]

    def _take_names(self, tensors: Sequence[torch.Tensor]) -> None:
        """Name the sizes of those axes that have names.

        Raises:
            CaptureError: two names are those of one size.
        """
        for (tensor, axis), name in self._axis_names.items():
            size = tensors[tensor].shape[axis]
            expr = size.node.expr if isinstance(size, torch.SymInt) else None
            if expr is None or not expr.is_Symbol:
                continue
            known = self._symbols.setdefault(expr, symbol(name))
            if known.name != name:
                raise CaptureError(
                    f"{known.name} and {name} are one size in {type(self._model).__name__}",
                    why="the model works only where they are the same",
                    hint=f"call both axes {known.name}",
                )

    def _name_symbols(self, size: object) -> None:
        if isinstance(size, torch.SymInt):
            for found in sorted(size.node.expr.free_symbols - set(self._symbols), key=str):
                taken = {s.name for s in self._symbols.values()}
                first = int(any(axis == 0 for _, axis in self._axis_names))  # then the batch is called otherwise
                free = (f"B{number or ''}" for number in range(first, len(taken) + 2))
                self._symbols[found] = symbol(next(name for name in free if name not in taken))

    def _type(self, value: object) -> Type:
        if isinstance(value, torch.Tensor):
            return TensorType(value.dtype, tuple(map(self._size, value.shape)))
        if isinstance(value, torch.SymInt | int) and not isinstance(value, bool):
            with contextlib.suppress(GraphError):
                return ScalarType("int", self._size(value))
            return ScalarType("int")  # one that no size says, such as seven tenths of the batch, rounded
        return ScalarType("bool" if isinstance(value, torch.SymBool | bool) else "float")

    def _size(self, size: torch.SymInt | int) -> Size:
        if isinstance(size, int):
            return size
        return as_size(plain(size.node.expr, self._symbols))


def _fits(node: Node, nodes: Sequence[Node], sizes: Mapping[str, int]) -> bool:
    """Say whether a call makes what it is declared to make, for given sizes; that it rejects them does not count."""
    try:
        operands = {name: _at(_typed(argument, nodes), sizes) for name, argument in node.arguments.items()}
        return ops.infer_types(node.op, operands) == tuple(_at(t, sizes) for t in node.results)
    except (GraphError, KeyError):
        return True


def _at(part: object, sizes: Mapping[str, int]) -> object:
    """Return an argument with the sizes in its types worked out.

    Raises:
        KeyError: a size depends on data.
    """
    if isinstance(part, tuple):
        return tuple(_at(inner, sizes) for inner in part)
    if isinstance(part, TensorType):
        return TensorType(part.dtype, part.at(sizes))
    if isinstance(part, ScalarType) and part.value is not None:
        return ScalarType(part.kind, evaluate(part.value, sizes))
    return part


def _without_sizes(type_: Type) -> object:
    return type_.dtype if isinstance(type_, TensorType) else type_.kind


def _typed(argument: Argument, nodes: Sequence[Node]) -> object:
    if isinstance(argument, tuple):
        return tuple(_typed(part, nodes) for part in argument)
    return nodes[argument.node].results[argument.index] if isinstance(argument, Value) else argument


def _tree(spec: pytree.TreeSpec, leaves: Iterator[Constant | int]) -> Leaf:
    if spec.is_leaf():
        return next(leaves)
    children = tuple(_tree(child, leaves) for child in spec.children())
    if spec.type is namedtuple or issubclass(spec.type, tuple):
        return Tree("tuple", children)
    if issubclass(spec.type, list):
        return Tree("list", children)
    keys = keys_of(spec.context, len(children))
    if keys is None:
        raise CaptureError(
            f"a {spec.type.__name__} among the arguments or results has no text keys",
            hint="use tuples, lists, or dicts with text keys",
        )
    return Tree("dict", children, keys)
