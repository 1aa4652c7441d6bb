"""A node of an ONNX graph as the function that translates it sees it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype

from archir.ir.node import Value
from archir.ir.types import Size, TensorType
from frontends.onnx.names import is_anonymous
from frontends.onnx.operands import Known, Operand, Refusal, Series, Sizes
from frontends.onnx.translation import Translation

Results = Operand | Series | Sequence[Operand | None]
"""What a node makes: its first result, or all of them."""


class Call:
    """One node: its operands, its attributes, and the graph that what it makes is added to.

    Attributes:
        node: the node.
        operands: its operands, None where one is left out.
        opset: the operator set of its domain.
        graph: the graph in the making.
    """

    def __init__(
        self, node: ir.Node, operands: Sequence[Operand | Series | None], opset: int, graph: Translation
    ) -> None:
        """Remember them."""
        self.node = node
        self.operands = operands
        self.opset = opset
        self.graph = graph

    def __getitem__(self, index: int) -> Operand:
        """Return an operand.

        Raises:
            Refusal: it is left out.
        """
        found = self.get(index)
        if found is None:
            raise Refusal(f"it has no input {index}")
        return found

    def get(self, index: int) -> Operand | None:
        """Return an operand, None if it is left out.

        Raises:
            Refusal: it is a sequence.
        """
        found = self.operands[index] if index < len(self.operands) else None
        if isinstance(found, Series):
            raise Refusal(f"its input {index} is a sequence")
        return found

    def series(self, index: int) -> tuple[Operand, ...]:
        """Return the tensors of an operand that is a sequence.

        Raises:
            Refusal: it is none.
        """
        found = self.operands[index] if index < len(self.operands) else None
        if not isinstance(found, Series):
            raise Refusal(f"its input {index} is no sequence whose tensors are known")
        return found.items

    @property
    def given(self) -> list[Operand]:
        """All operands, none of which is left out."""
        return [self[i] for i in range(len(self.operands))]

    def uses(self, index: int) -> bool:
        """Say whether anything uses a result."""
        outputs = self.node.outputs
        return index < len(outputs) and bool(outputs[index].uses() or outputs[index].is_graph_output())

    def call(self, op: str, *args: Any, **kwargs: Any) -> Operand:
        """Call an operator of ATen, and return its first result."""
        return self.calls(op, *args, **kwargs)[0]

    def calls(self, op: str, *args: Any, **kwargs: Any) -> tuple[Operand, ...]:
        """Call an operator of ATen, and return all of its results."""
        name = f"aten.{op}" if "." in op else f"aten.{op}.default"
        return self.graph.call(name, *args, **kwargs)

    def places(self, count: int, axis: int, rank: int) -> Operand:
        """Return the numbers from 0 on along an axis of so many axes, `[1, ..., count, ..., 1]`."""
        return self.call("reshape", self.call("arange", count), [count if i == axis else 1 for i in range(rank)])

    def type(self, operand: Operand) -> TensorType:
        """Return the type of an operand."""
        return self.graph.type_of(operand)

    def shape(self, operand: Operand) -> tuple[Size, ...]:
        """Return the shape of an operand."""
        return self.type(operand).shape

    def rank(self, operand: Operand) -> int:
        """Return the number of axes of an operand."""
        return len(self.shape(operand))

    def fixed(self, operand: Operand, *axes: int) -> tuple[int, ...]:
        """Return sizes of an operand that have to be numbers; all of them if no axes are given.

        Raises:
            Refusal: one of them depends on the sizes of the inputs.
        """
        shape = self.shape(operand)
        found = [shape[axis] for axis in axes] if axes else list(shape)
        numbers = [size for size in found if isinstance(size, int)]
        if len(numbers) < len(found):
            shown = ", ".join(map(str, shape))
            raise Refusal(f"it needs sizes that are fixed, and has [{shown}]")
        return tuple(numbers)

    def same(self, operand: Operand, dtype: torch.dtype) -> Operand:
        """Return an operand as another element type, itself if it is of it already."""
        return operand if self.type(operand).dtype == dtype else self.call("to.dtype", operand, dtype)

    def known(self, index: int, what: str = "") -> torch.Tensor:
        """Return the elements of an operand that has to be known when the file is read.

        Raises:
            Refusal: they are computed.
        """
        found = self.graph.elements(self[index])
        if found is None:
            raise Refusal(f"its {what or f'input {index}'} has to be constant, and is computed")
        return found

    def numbers(self, index: int, what: str = "") -> list[Any]:
        """Return the elements of an operand that has to be known, as numbers."""
        return list(self.known(index, what).reshape(-1).tolist())

    def number(self, index: int, what: str = "") -> Any:
        """Return the one element of an operand that has to be known.

        Raises:
            Refusal: it is computed, or has more elements.
        """
        found = self.numbers(index, what)
        if len(found) != 1:
            raise Refusal(f"its {what or f'input {index}'} has {len(found)} elements instead of one")
        return found[0]

    def sizes(self, index: int, what: str = "") -> tuple[Size, ...]:
        """Return the elements of an operand that are sizes: numbers, or what follows from the sizes of the inputs.

        Raises:
            Refusal: they depend on data.
        """
        found = self[index]
        if isinstance(found, Sizes):
            return found.entries
        return tuple(int(n) for n in self.numbers(index, what))

    def size(self, size: Size) -> int | Value:
        """Return a size as an argument."""
        return self.graph.size(size)

    def scalar(self, operand: Operand) -> Any:
        """Return the number that an operand of one known element is, None if it is another.

        Numbers of half precision stay tensors: as a number it would not be rounded.
        """
        if not isinstance(operand, Known) or operand.trains or operand.buffer or operand.tensor.numel() != 1:
            return None
        return _exact(operand.tensor)

    def weight(self, index: int, leaf: str) -> Operand:
        """Return an operand that is a weight: what is known of it trains, under the name of its layer."""
        return self.trained(self[index], leaf)

    def trained(self, operand: Operand, leaf: str) -> Operand:
        """Return an operand as a weight of this node."""
        return self.graph.parameter(operand, f"{self.home}.{leaf}")

    def changed(self, index: int, op: str, *args: Any) -> Operand:
        """Return what an operator makes of a weight: at once where every user of the weight wants it so.

        Args:
            index: which operand the weight is.
            op: operator of ATen.
            args: its further arguments.
        """
        value = self.node.inputs[index]
        uses = value.uses() if value is not None else ()
        alone = all((use.node.op_type, use.idx) == (self.node.op_type, index) for use in uses)
        return self.graph.changed(self[index], f"aten.{op}" if "." in op else f"aten.{op}.default", args, alone=alone)

    def layer(self, weight: int, bias: int | None, stem: str = "weight") -> tuple[str, str]:
        """Return what the weight and the bias of a layer are called: as in the file, or one after the other.

        Args:
            weight: which operand the weight is.
            bias: which one the bias is, None if there is none.
            stem: the name of the weight in its module.
        """
        names = [_name(self.get(i)) if i is not None else "" for i in (weight, bias)]
        return self.graph.layer_names(names[0], names[1], stem) or (f"{self.home}.{stem}", f"{self.home}.bias")

    def layer_of(self, weight: Operand, bias: Operand | None) -> tuple[str, str]:
        """Return what a weight and a bias of this node are called that are operands of others."""
        return Call(self.node, [None, weight, bias], self.opset, self.graph).layer(1, None if bias is None else 2)

    @property
    def home(self) -> str:
        """The path of the module this node is: as the file says, or after its name or its operator."""
        if self.graph.location and self.graph.location.module:
            return self.graph.location.module
        name = re.sub(r"\W", "_", (self.node.name or "").strip("/"))
        return name if name.isidentifier() and not name.startswith("node_") else str(self.node.op_type).lower()

    def attribute(self, name: str) -> ir.Attr | None:
        """Return an attribute, None if it is left out."""
        return self.node.attributes.get(name)

    def has(self, name: str) -> bool:
        """Say whether an attribute is given."""
        return name in self.node.attributes

    def integer(self, name: str, default: int | None = None) -> int:
        """Return an integer attribute.

        Raises:
            Refusal: it is left out and has no default, or is of another kind.
        """
        return int(self._read(name, default, ir.Attr.as_int))

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """Return an attribute of integers; likewise."""
        return list(map(int, self._read(name, default, ir.Attr.as_ints)))

    def real(self, name: str, default: float | None = None) -> float:
        """Return a floating-point attribute, as the shortest number that single precision rounds to it; likewise."""
        return shortest(self._read(name, default, ir.Attr.as_float))

    def reals(self, name: str, default: Sequence[float] | None = None) -> list[float]:
        """Return an attribute of floating-point numbers; likewise."""
        return list(map(shortest, self._read(name, default, ir.Attr.as_floats)))

    def text(self, name: str, default: str | None = None) -> str:
        """Return an attribute that is text; likewise."""
        return str(self._read(name, default, ir.Attr.as_string))

    def texts(self, name: str, default: Sequence[str] | None = None) -> list[str]:
        """Return an attribute of texts; likewise."""
        return list(self._read(name, default, ir.Attr.as_strings))

    def axis(self, rank: int, default: int | None = None, name: str = "axis") -> int:
        """Return an attribute that is an axis, counted from the front.

        Raises:
            Refusal: there is no such axis.
        """
        return axis_of(self.integer(name, default), rank)

    def axes(self, rank: int, at: int, since: int, name: str = "axes") -> list[int] | None:
        """Return axes that are an attribute, or an input in operator sets since some; None if they are left out."""
        if self.opset < since:
            return [axis_of(a, rank) for a in self.integers(name)] if self.has(name) else None
        return None if self.get(at) is None else [axis_of(a, rank) for a in self.numbers(at, name)]

    def tensor(self, name: str) -> torch.Tensor:
        """Return an attribute that is a tensor; likewise."""
        return as_tensor(self._read(name, None, ir.Attr.as_tensor))

    def dtype(self, name: str, default: torch.dtype) -> torch.dtype:
        """Return an attribute that is an element type; likewise."""
        return torch_type(self.integer(name)) if self.has(name) else default

    def only(self, name: str, usual: Any, read: Callable[[ir.Attr], Any]) -> None:
        """Refuse an attribute that says anything else than usual."""
        found = self._read(name, usual, read)
        if found != usual:
            raise Refusal(f"{name} is {found!r}, and only {usual!r} can be read")

    def _read(self, name: str, default: Any, read: Callable[[ir.Attr], Any]) -> Any:
        attribute = self.attribute(name)
        if attribute is None:
            if default is None:
                raise Refusal(f"it has no attribute {name}")
            return default
        if attribute.is_ref():
            raise Refusal(f"its attribute {name} refers to one of a function that is not given")
        try:
            return read(attribute)
        except (TypeError, ValueError) as error:
            raise Refusal(f"its attribute {name} is of another kind") from error


Function = Callable[[Call], Results]
"""What an operator of ONNX is: a function of the node."""

Table = Mapping[str, Function]
"""The operators of a family by name."""


def axis_of(axis: int, rank: int) -> int:
    """Return an axis counted from the front.

    Raises:
        Refusal: there is no such axis.
    """
    if not -rank <= axis < max(rank, 1):
        raise Refusal(f"a tensor of {rank} axes has no axis {axis}")
    return axis + rank if axis < 0 else axis


def shortest(number: float) -> float:
    """Return the shortest number that single precision rounds to the given one: 0.1 for 0.10000000149."""
    return float(str(np.float32(number))) if math.isfinite(number) else number


def torch_type(kind: ir.DataType | int | None) -> torch.dtype:
    """Return the element type of torch.

    Raises:
        Refusal: there is none, as of texts.
    """
    if kind is None:
        raise Refusal("the file does not say its element type")
    try:
        return to_torch_dtype(ir.DataType(kind))
    except (TypeError, ValueError) as error:
        shown = ir.DataType(kind).name if kind in list(ir.DataType) else kind
        raise Refusal(f"its element type is {shown}, which graphs do not have") from error


def only_use(value: ir.Value) -> tuple[ir.Node, int] | None:
    """Return the one node that uses a value, and which operand of it that is; None if there are others or none."""
    uses = list(value.uses())
    return (uses[0].node, uses[0].idx) if len(uses) == 1 and not value.is_graph_output() else None


def as_tensor(tensor: ir.TensorProtocol) -> torch.Tensor:
    """Return a tensor of the file as one of torch, with elements of its own.

    Raises:
        Refusal: its element type is none of torch's.
    """
    dtype = torch_type(tensor.dtype)
    array = tensor.numpy()
    if dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        bits = np.ascontiguousarray(array).view(np.uint16 if dtype.itemsize == 2 else np.uint8)
        return torch.from_numpy(bits.copy()).view(dtype).reshape(array.shape)
    return torch.from_numpy(np.array(array, order="C", copy=True)).to(dtype).reshape(tuple(array.shape))


def _name(operand: Operand | None) -> str:
    """Return what an operand is called in the file; empty if it has no name, or is computed."""
    named = isinstance(operand, Known) and not is_anonymous(operand.name)
    return operand.name if named and isinstance(operand, Known) else ""


def _exact(tensor: torch.Tensor) -> Any:
    if tensor.dtype in (torch.float16, torch.bfloat16) or tensor.is_complex():
        return None
    number = tensor.item()
    if isinstance(number, float) and not math.isfinite(number):
        return None
    return shortest(number) if tensor.dtype == torch.float32 else number
