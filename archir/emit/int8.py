"""Dynamic quantisation of ONNX files by onnxruntime: weights are 8-bit integers, activations become such as they come.

What it computes is no longer what the graph computes, and by how much is measured on the inputs that any file is
checked on. Signed weights have seven bits, so that sums of two products fit into 16 bits on processors that add them
there; those of convolutions are unsigned, for which onnxruntime has the faster kernels. Every output of a product has
a scale of its own; all of a convolution have one.

Source: ours, on top of `onnxruntime.quantization`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor

from archir.emit.check import Quantised, Run, agree, tensors_in
from archir.emit.foreign import as_error, quiet
from archir.emit.neutral import free, graphs_in, rename, value_names
from archir.emit.undefined import gap
from archir.errors import EmitError
from archir.ir.graph import Graph
from archir.ir.types import dtype_name

INT8_TOLERANCE = 0.1
"""How far an output may be off, relative to its largest element: several times of what networks of some depth are."""

_UNSIGNED, _SIGNED = ("Conv",), ("MatMul", "LSTM", "Gather")
_INTEGER: Mapping[str, str] = MappingProxyType(
    {"ConvInteger": "Conv", "MatMulInteger": "MatMul", "DynamicQuantizeLSTM": "LSTM"}
)
"""Operators that compute with 8-bit integers, and what they are made of."""

_PREPARED = onnx.StringStringEntryProto(key="onnx.quant.pre_process", value="onnxruntime.quant")
"""Tells onnxruntime that a model is optimised and its shapes are known, as far as they can be."""


def refuse_quantising(graph: Graph, quantise: str | None, tolerance: float | None, *, optimize: bool) -> None:
    """Refuse a way to quantise that there is not, graphs that onnxruntime cannot quantise, and tolerances of nothing.

    Args:
        graph: the graph.
        quantise: how to quantise, if at all.
        tolerance: the tolerance that is asked for, None if none is.
        optimize: whether the file in floating point is optimised.

    Raises:
        EmitError: it is not `"int8"`, the graph is not in single precision, the file is not optimised, or the tolerance
            is no number from 0 or is given for a file in floating point.
    """
    if quantise not in (None, "int8"):
        raise EmitError(f"there is no quantisation {quantise!r}", hint='give "int8", or None')
    if tolerance is not None and quantise is None:
        raise EmitError("int8_tolerance is for quantised files only", hint='give quantise="int8", too')
    number = isinstance(tolerance, Real) and not isinstance(tolerance, bool)
    if tolerance is not None and not (number and tolerance >= 0):
        raise EmitError(f"{tolerance!r} is no tolerance", hint="give a part of the largest output, such as 0.1")
    if quantise and not optimize:
        raise EmitError(
            f"{graph.name} cannot be quantised without optimize",
            why="weights that are transposed when the file runs would stay in floating point",
            hint="leave optimize on",
        )
    kinds = {t.dtype for t in graph.tensors.values() if t.is_floating_point()} - {torch.float32}
    if quantise and kinds:
        raise EmitError(
            f"{graph.name} cannot be quantised",
            why=f"onnxruntime quantises single precision, and there are {', '.join(sorted(map(dtype_name, kinds)))}",
            hint="bring it into single precision first: graph.to(torch.float32)",
        )


def quantised(model: onnx.ModelProto, file: Path, folder: Path) -> onnx.ModelProto:
    """Return the model of an ONNX file in which operators with stored weights compute with 8-bit integers.

    Args:
        model: the model; its metadata are those of what is returned.
        file: a file of it.
        folder: for files in between.

    Raises:
        EmitError: onnxruntime cannot quantise it, or there is nothing to quantise.
    """
    with as_error(f"onnxruntime cannot quantise {file.name}", hint="write it in floating point"), quiet():
        prepared = onnx.load(str(file))
        prepared.metadata_props.append(_PREPARED)
        for name, kinds, weights, few in (
            ("convolutions.onnx", _UNSIGNED, QuantType.QUInt8, False),
            ("products.onnx", _SIGNED, QuantType.QInt8, True),
        ):
            source, goal = folder / f"float_{name}", folder / name
            mark, names = _set_names_apart(prepared)
            onnx.save(prepared, str(source), save_as_external_data=True, location=f"{source.name}.data")
            quantize_dynamic(
                source,
                goal,
                op_types_to_quantize=list(kinds),
                per_channel=True,
                reduce_range=few,
                weight_type=weights,
                use_external_data_format=True,
            )
            prepared = onnx.load(str(goal))
            _give_names_back(prepared, mark, names)
    del prepared.metadata_props[:]
    prepared.metadata_props.extend(model.metadata_props)
    prepared.doc_string = model.doc_string
    if not operators(prepared):
        raise EmitError(
            f"nothing of {file.name} can be quantised",
            why=f"none of its operators is one of Gemm, {', '.join((*_UNSIGNED, *_SIGNED))} with a stored weight",
            hint="write it in floating point",
        )
    return prepared


def _set_names_apart(model: onnx.ModelProto) -> tuple[str, list[str]]:
    """Give all values of a model names that no name onnxruntime makes of others, `<weight>_scale`, can be equal to.

    Returns:
        A character that none of the names had; and the names, which are now that character, their index, and a colon.
    """
    names = list(dict.fromkeys(value_names(model.graph)))
    used = set("".join([*names, *(node.name for part in graphs_in(model.graph) for node in part.node)]))
    mark = next(letter for letter in map(chr, count(ord("A"))) if letter not in used)
    rename(model, {name: f"{mark}{i}:" for i, name in enumerate(names)})
    return mark, names


def _give_names_back(model: onnx.ModelProto, mark: str, names: Sequence[str]) -> None:
    """Give values the names they had; what onnxruntime has named for them is named for those, and gives way to them."""

    def told(name: str) -> str:
        return re.sub(rf"{mark}(\d+):", lambda found: names[int(found[1])], name)

    new = {f"{mark}{i}:": name for i, name in enumerate(names)}
    taken = set(names)
    for name in dict.fromkeys(value_names(model.graph)):
        if name not in new and mark in name:
            new[name] = free(told(name), taken)
            taken.add(new[name])
    rename(model, new)
    for part in graphs_in(model.graph):
        for node in part.node:
            node.name = told(node.name)


def bytes_of(model: onnx.ModelProto) -> int:
    """Return the size of the stored tensors of a model."""
    return sum(tensor.ByteSize() for tensor in model.graph.initializer)


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """Return how many operators of a model compute with 8-bit integers, by the kind they were in floating point."""
    bytes_ = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type in bytes_}
    found = [_INTEGER[node.op_type] for node in model.graph.node if node.op_type in _INTEGER]
    found += [node.op_type for node in model.graph.node if node.op_type == "Gather" and node.input[0] in stored]
    return dict(sorted(Counter(found).items()))


def compare_quantised(
    graph: Graph, exact: Run, rounded: Run, tolerance: float, what: str, kinds: Mapping[str, int]
) -> tuple[float, Quantised]:
    """Compare a quantised file with the one in floating point, on the inputs that this one is checked on.

    Args:
        graph: the graph.
        exact: runs the file in floating point, which has been compared with the graph.
        rounded: runs the quantised one.
        tolerance: largest difference allowed, relative to the largest element of the output. Outputs that are whole
            numbers or truth values are not held to it: what is decided by a hair may be decided otherwise.
        what: what is compared, for the message.
        kinds: how many operators of each kind are quantised.

    Returns:
        The largest absolute difference, and what was found.

    Raises:
        EmitError: the outputs differ in shape, or by more.
    """
    found = _Comparison(tolerance, what)

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        wanted = exact(args, kwargs)
        found.add(tensors_in(wanted), tensors_in(rounded(args, kwargs)))
        return wanted

    agree(graph, run, np.inf, what)
    alike = found.same / found.rows if found.rows else None
    equal = found.equal / found.decided if found.decided else None
    return found.difference, Quantised(MappingProxyType(dict(kinds)), found.relative, alike, equal)


@dataclass
class _Comparison:
    """What was found so far."""

    tolerance: float
    what: str
    difference: float = field(default=0.0, init=False)
    relative: float | None = field(default=None, init=False)
    same: int = field(default=0, init=False)
    rows: int = field(default=0, init=False)
    equal: int = field(default=0, init=False)
    decided: int = field(default=0, init=False)

    def add(self, wanted: list[Tensor], found: list[Tensor]) -> None:
        for i, (one, other) in enumerate(zip(wanted, found, strict=True)):
            if one.shape != other.shape:
                raise EmitError(f"{self.what} returns shape {list(other.shape)} instead of {list(one.shape)}")
            if not one.numel():
                continue
            if not one.is_floating_point() and not one.is_complex():
                self.equal, self.decided = self.equal + int((one == other).sum()), self.decided + one.numel()
                continue
            most = float(gap(one, other).max())
            finite = one[torch.isfinite(one)]
            largest = float(finite.abs().max()) if finite.numel() else 0.0
            relative = most / largest if largest else most
            if not relative <= self.tolerance:
                raise EmitError(
                    f"{self.what} is too far off in 8-bit integers",
                    why=f"output {i} differs by {relative:.3g} of its largest, and {self.tolerance:.3g} is allowed",
                    hint="allow more, or write it in floating point",
                )
            self.difference, self.relative = max(self.difference, most), max(self.relative or 0.0, relative)
            if one.is_floating_point():
                self._rank(one, other)

    def _rank(self, wanted: Tensor, found: Tensor) -> None:
        axis = 1 if wanted.dim() >= 4 else -1
        if wanted.dim() < 2 or wanted.shape[axis] < 2:
            return
        same = wanted.argmax(axis) == found.argmax(axis)
        self.same, self.rows = self.same + int(same.sum()), self.rows + same.numel()
