"""The graph that an ONNX file becomes, while it is built: calls of ATen, folded where all operands are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import sympy
import torch

from archir.errors import GraphError
from archir.ir import ops
from archir.ir.builder import GraphBuilder
from archir.ir.input_checks import sources
from archir.ir.node import Argument, Location, Value
from archir.ir.room import too_large
from archir.ir.sizes import canonical
from archir.ir.types import Size, TensorType, Type
from frontends.onnx.names import Names, is_anonymous, module_of
from frontends.onnx.operands import Known, Operand, Refusal, Series, Sizes

MOST_CALLS = 200_000
"""The most calls a file may become; loops that are unrolled count every round."""


_FEW = 64
"""The most elements of a tensor that may be a shape, and is computed of what trains."""


class Translation:
    """A graph in the making.

    Attributes:
        builder: what it is built with.
        names: the names of its stored tensors.
        location: the module that the node at hand belongs to.
        values: what each value of the file is.
        absorbed: nodes that another one has done already, and what they make.
    """

    def __init__(self, builder: GraphBuilder) -> None:
        """Start with the inputs that the builder has been given."""
        self.builder = builder
        self.names = Names()
        self.location: Location | None = None
        self.values: dict[ir.Value, Operand | Series] = {}
        self.absorbed: dict[ir.Node, Operand] = {}
        self._inputs: list[Value] = []
        self._stored: dict[Known, Value] = {}
        self._named: dict[Known, str] = {}
        self._promoted: dict[tuple[Known, str, bool], Known] = {}
        self._changed: dict[tuple[Known, str, str], Known] = {}
        self._sizes: dict[Size, int | Value] = {}
        self._elements: dict[Value, torch.Tensor] = {}
        self._calls = 0

    def input(self, name: str, type_: Type) -> Value:
        """Add an input."""
        self._inputs.append(self.builder.input(name, type_))
        return self._inputs[-1]

    def type_of(self, operand: Operand) -> TensorType:
        """Return the type of an operand."""
        if isinstance(operand, Known):
            return TensorType(operand.tensor.dtype, tuple(operand.tensor.shape))
        if isinstance(operand, Sizes):
            return TensorType(operand.dtype, operand.shape)
        found = self.builder.type_of(operand)
        assert isinstance(found, TensorType)
        return found

    def call(self, op: str, *args: Any, **kwargs: Any) -> tuple[Operand, ...]:
        """Call an operator, at once where all tensors among its arguments are known and train nothing.

        Args:
            op: operator name, `aten.relu.default`.
            args: arguments in schema order; operands and constants, lists of them too.
            kwargs: arguments by name.

        Raises:
            Refusal: the operator rejects its operands, or its result would not fit into memory.
        """
        self._calls += 1
        if self._calls > MOST_CALLS:
            raise Refusal(f"the file becomes more than {MOST_CALLS:,} calls")
        found = list(_operands([*args, *kwargs.values()]))
        try:
            if all(isinstance(part, Known) and not part.trains and not part.buffer for part in found):
                return self._computed(op, args, kwargs)
            given, named = [self._argument(a) for a in args], {k: self._argument(a) for k, a in kwargs.items()}
            self.builder.location = self._place(found)
            results = self.builder.results(self.builder.call(op, *given, **named))
            self._remember(results, op, args, kwargs, found)
        except GraphError as error:
            raise Refusal(f"{error.what}{f': {error.why}' if error.why else ''}") from error
        return results

    def elements(self, operand: Operand | Series | None) -> torch.Tensor | None:
        """Return the elements of an operand if they are known: of what is computed of a few stored numbers, too."""
        if isinstance(operand, Known):
            return operand.tensor
        return self._elements.get(operand) if isinstance(operand, Value) else None

    def _remember(
        self, results: tuple[Value, ...], op: str, args: Sequence[Any], kwargs: dict[str, Any], operands: list[Operand]
    ) -> None:
        """Keep what a call makes of a few stored numbers, as files scale sizes by a number that is an initialiser."""
        known = [self.elements(operand) for operand in operands]
        if all(tensor is not None and tensor.numel() <= _FEW for tensor in known):
            made = self._computed(op, _mapped(args, self._bare), {k: _mapped(a, self._bare) for k, a in kwargs.items()})
            for value, result in zip(results, made, strict=True):
                if isinstance(result, Known) and result.tensor.numel() <= _FEW:
                    self._elements[value] = result.tensor

    def _bare(self, operand: Operand) -> Known:
        found = self.elements(operand)
        assert found is not None
        return Known(found)

    def absorb(self, node: ir.Node, result: Operand) -> None:
        """Remember that a node is done, and what it makes."""
        self.absorbed[node] = result

    def value(self, operand: Operand) -> Value:
        """Return an operand as a value of the graph: what is known is stored, sizes are read off the inputs."""
        if isinstance(operand, Value):
            return operand
        if isinstance(operand, Known):
            if operand not in self._stored:
                self._stored[operand] = self._store(operand)
            return self._stored[operand]
        parts = [self.call("aten.scalar_tensor.default", self.size(e), dtype=operand.dtype)[0] for e in operand.entries]
        joined = self.call("aten.stack.default", parts)[0] if operand.shape else parts[0]
        return self.value(self.call("aten.reshape.default", joined, operand.shape)[0])

    def parameter(self, operand: Operand, name: str, *, buffer: bool = False) -> Operand:
        """Return an operand that stands where weights do: what is known of floating-point numbers trains.

        Exporters store tensors with equal elements once, so that the biases of two layers that are all zero are one;
        such a tensor is stored for every layer anew.

        Args:
            operand: the operand.
            name: what it is called if it has no name of its own.
            buffer: whether it is a statistic instead, which does not train.
        """
        if not isinstance(operand, Known) or not operand.tensor.is_floating_point():
            return operand
        called = name if is_anonymous(operand.name) else operand.name
        if called != name and _leaf(called) == _leaf(name) and is_uniform(operand.tensor):
            called = name
        key = (operand, called, buffer)
        if key not in self._promoted:
            same = (called, buffer) == (operand.name, operand.buffer) and operand.trains != buffer
            self._promoted[key] = operand if same else Known(operand.tensor, called, not buffer, buffer)
        return self._promoted[key]

    def layer_names(self, weight: str, bias: str, stem: str) -> tuple[str, str] | None:
        """Return the names of a weight and a bias of which one has a name; None if neither has."""
        if not weight and bias.endswith("bias"):
            return f"{bias[:-4]}{stem}", bias
        if weight.endswith(stem) and (not bias or _leaf(bias) == "bias"):
            return weight, f"{weight[: -len(stem)]}bias"
        return (weight, bias) if weight and bias else None

    def changed(self, operand: Operand, op: str, args: Sequence[Any], *, alone: bool) -> Operand:
        """Return what an operator makes of a weight, under the same name if nothing uses it as it is.

        Args:
            operand: the weight.
            op: operator name.
            args: further arguments of the operator.
            alone: whether all that use the weight use what is made of it.
        """
        if not isinstance(operand, Known) or (operand.trains and not alone):
            return self.call(op, operand, *args)[0]
        key = (operand, op, repr(args))
        if key not in self._changed:
            (made,) = self._computed(op, (replace(operand, trains=False), *args), {})
            assert isinstance(made, Known)
            self._changed[key] = replace(operand, tensor=made.tensor)
        return self._changed[key]

    def renamed(self, operand: Operand, name: str) -> Operand:
        """Return an operand under another name that the file gives it, if that is one of a module and it is uniform."""
        known = isinstance(operand, Known) and operand.trains and bool(module_of(name)) and name != operand.name
        if known and isinstance(operand, Known) and is_uniform(operand.tensor):
            return self.parameter(Known(operand.tensor), name)
        return operand

    def equal(self, tensor: torch.Tensor) -> Known | None:
        """Return the parameter that is stored with exactly these elements, if there is one and they are not all one."""
        if tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
            return None
        for known in self._stored:
            same = known.trains and known.tensor.shape == tensor.shape and known.tensor.dtype == tensor.dtype
            if same and torch.equal(known.tensor, tensor):
                return known
        return None

    def size(self, size: Size) -> int | Value:
        """Return a size as an argument: a number, or what is computed of the sizes of the inputs.

        Raises:
            Refusal: no input tells it.
        """
        size = _plain(size)
        if isinstance(size, int):
            return size
        if size not in self._sizes:
            self._sizes[size] = self._computed_size(size)
        return self._sizes[size]

    def _computed_size(self, size: sympy.Expr) -> int | Value:
        kinds: dict[type, str] = {sympy.Add: "operator.add", sympy.Mul: "operator.mul", sympy.Mod: "operator.mod"}
        kinds |= {sympy.Max: "torch.sym_max", sympy.Min: "torch.sym_min"}
        if size.is_Symbol:
            return self._symbol(size)
        if isinstance(size, sympy.floor):
            above, under = sympy.fraction(sympy.together(size.args[0]))
            return self._number("operator.floordiv", self.size(above), self.size(under))
        if isinstance(size, sympy.Pow) and size.exp.is_Integer and int(size.exp) > 1:
            return self._number("operator.mul", self.size(size.base), self.size(size.base ** (size.exp - 1)))
        above, under = sympy.fraction(sympy.together(size))
        if under != 1:
            return self._number("operator.floordiv", self.size(above), self.size(under))
        op = kinds.get(type(size))
        if op is None:
            raise Refusal(f"the size {size} cannot be computed")
        # Numbers come last: the batch size times 4.
        first, *rest = sorted(size.args, key=lambda part: (bool(part.is_number), str(part)))
        if op == "operator.mod":
            first, *rest = size.args
        found: int | Value = self.size(first)
        for part in rest:
            found = self._number(op, found, self.size(part))
        return found

    def _symbol(self, symbol: sympy.Symbol) -> int | Value:
        source = sources([self.builder.type_of(value) for value in self._inputs]).get(symbol.name)
        if source is None or source.axis is None:
            raise Refusal(f"no input tells the size {symbol}")
        found: int | Value = self.builder.call("aten.sym_size.int", self._inputs[source.input], source.axis)
        found = self._number("operator.sub", found, source.offset) if source.offset else found
        return self._number("operator.floordiv", found, source.factor) if source.factor != 1 else found

    def _number(self, op: str, one: int | Value, other: int | Value) -> int | Value:
        return self.builder.call(op, one, other)

    def _computed(self, op: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Operand, ...]:
        """Run an operator on what is known."""
        arguments = ops.normalise(op, args, kwargs)
        typed = {name: _mapped(argument, self.type_of) for name, argument in arguments.items()}
        try:
            made = ops.infer_types(op, typed, self.builder.guards)
        except ops.NotInferable:
            made = ()  # its size depends on the elements, of which it has no more
        size = sum(math.prod(t.at({})) * t.dtype.itemsize for t in made if isinstance(t, TensorType))
        if why := too_large(size):
            raise Refusal(f"{op} makes a tensor that is too large: {why}")
        given = {name: _mapped(argument, lambda part: part.tensor) for name, argument in arguments.items()}
        names = ops.schema(op)
        keywords = {n: given[n] for n in names.names[names.keyword_from :] if n in given}
        with torch.no_grad():
            try:
                out = ops.function(op)(*ops.positional(op, given), **keywords)
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                raise Refusal(f"{op} rejects its operands: {str(error).splitlines()[0]}") from error
        several = isinstance(out, list | tuple)
        return tuple(Known(t.contiguous()) for t in (out if several else (out,)))

    def _argument(self, argument: Any) -> Argument:
        if isinstance(argument, Known | Sizes):
            return self.value(argument)
        return tuple(map(self._argument, argument)) if isinstance(argument, list | tuple) else argument

    def _store(self, known: Known) -> Value:
        kind = "parameter" if known.trains else "buffer" if known.buffer else "constant"
        name = "constant" if is_anonymous(known.name) and not known.trains else known.name
        trains = known.trains and known.tensor.is_floating_point()
        self._named[known] = self.names.take(name) if kind != "constant" else ""
        return self.builder.parameter(self._named[known] or self.names.take(name), known.tensor, kind, trainable=trains)

    def _place(self, operands: Sequence[Operand]) -> Location | None:
        """Return the module a call belongs to: that of its weights if they say one, or that of the node."""
        for operand in operands:
            path = module_of(self._named.get(operand, "")) if isinstance(operand, Known) else ""
            if path:
                return self.location if self.location and self.location.module == path else Location(path)
        return self.location


def _operands(arguments: Sequence[Any]) -> Any:
    for argument in arguments:
        if isinstance(argument, Known | Sizes | Value):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _operands(argument)


def _mapped(argument: Any, to: Any) -> Any:
    if isinstance(argument, Known | Sizes | Value):
        return to(argument)
    return tuple(_mapped(part, to) for part in argument) if isinstance(argument, list | tuple) else argument


def is_uniform(tensor: torch.Tensor) -> bool:
    """Say whether a tensor is a row of equal numbers, as weights are that have not been trained."""
    return tensor.dim() == 1 and tensor.numel() > 0 and bool((tensor == tensor[0]).all())


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _plain(size: Size) -> Size:
    if isinstance(size, int):
        return size
    try:
        return canonical(sympy.expand(size))
    except GraphError as error:
        raise Refusal(f"{error.what}{f': {error.why}' if error.why else ''}") from error
