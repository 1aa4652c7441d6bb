"""The node cases of ONNX: which of them are claimed, and whether what is read computes what they want.

A case is claimed if all of its operators are read, its operator set is, something in it is a floating-point tensor, and
all element types are those that torch computes with. It is read with its inputs as inputs, and with all but the first
one stored in the file, as weights, shapes and axes are in files of networks; where neither can be read, as of nodes
whose only input is a shape, with all of them stored. It passes if one of these is read, and is right wherever it is.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from archir.errors import ArchirError
from frontends.onnx.operators.table import OPERATORS
from frontends.onnx.read import OPSETS, from_onnx
from frontends.onnx.translate import CONTROL, DOMAINS

FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16})
TYPES = FLOATS | {
    onnx.TensorProto.BOOL,
    *(onnx.TensorProto.INT8, onnx.TensorProto.INT16, onnx.TensorProto.INT32, onnx.TensorProto.INT64),
    onnx.TensorProto.UINT8,
}
"""Element types that torch computes with; tests of others (texts, four bits, unsigned) are of other libraries."""

ROUNDINGS = 8
"""How many roundings to half precision may be done differently, as when ONNX is written."""


@dataclass(frozen=True)
class Case:
    """A case: a model of one node, or of the nodes its function is made of, and what it makes of some inputs.

    Attributes:
        name: its name.
        model: the model.
        data: inputs and outputs, each a pair of lists of arrays.
        relative: the relative difference allowed.
        absolute: the absolute difference allowed.
    """

    name: str
    model: onnx.ModelProto
    data: Sequence[tuple[Sequence[Any], Sequence[Any]]]
    relative: float
    absolute: float


@dataclass(frozen=True)
class Verdict:
    """What came of a case.

    Attributes:
        name: its name.
        outcome: `passed`, `refused` or `wrong`.
        why: why, if it did not pass.
    """

    name: str
    outcome: str
    why: str = ""


def cases() -> Iterator[Case]:
    """Yield the node cases that the package onnx makes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases  # noqa: PLC0415  # makes all of them when asked

        for case in collect_testcases(None):
            assert case.model is not None and case.data_sets is not None  # both are made with the case
            data = [(list(map(_array, given)), list(map(_array, made))) for given, made in case.data_sets]
            yield Case(case.name, case.model, data, case.rtol, case.atol)


def _array(value: Any) -> Any:
    """Return a tensor of a case as an array, what is none as it is."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value if isinstance(value, list | dict) or value is None else np.asarray(value)


def is_claimed(case: Case) -> bool:
    """Say whether archir claims to read a case."""
    model = case.model
    functions = {(f.domain, f.name) for f in model.functions}
    nodes = [*model.graph.node, *(node for f in model.functions for node in f.node)]
    calls = [n for n in nodes if (n.domain, n.op_type) not in functions]
    known = all(n.domain in DOMAINS and (n.op_type in OPERATORS or n.op_type in CONTROL) for n in calls)
    versions = {entry.version for entry in model.opset_import if entry.domain in DOMAINS}
    kinds = {_kind(value) for value in (*model.graph.input, *model.graph.output)}
    return known and bool(versions) and versions <= set(OPSETS) and kinds <= TYPES and bool(kinds & FLOATS)


def _kind(value: onnx.ValueInfoProto) -> int:
    """Return the element type of a value, -1 of one that is no tensor."""
    return int(value.type.tensor_type.elem_type) if value.type.HasField("tensor_type") else -1


def judge(case: Case) -> Verdict:
    """Read a case in every way and compare what it makes."""
    read, why = False, ""
    for live in (len(case.model.graph.input), 1, 0):
        if live == 0 and read:
            break
        for inputs, outputs in case.data:
            try:
                graph = _read(_with_stored(case.model, inputs, live))
            except ArchirError as error:
                why = error.why or str(error)
                continue
            with torch.no_grad():
                made = graph.module().eval()(*(torch.from_numpy(a.copy()) for a in inputs[:live]))
            problem = _difference([made] if isinstance(made, torch.Tensor) else list(made), outputs, case)
            if problem:
                return Verdict(case.name, "wrong", f"with {live} inputs: {problem}")
            read = True
    return Verdict(case.name, "passed") if read else Verdict(case.name, "refused", why)


def _with_stored(model: onnx.ModelProto, inputs: Sequence[Any], live: int) -> onnx.ModelProto:
    """Return a model with all inputs but the first ones stored."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for value, array in list(zip(model.graph.input, inputs, strict=False))[live:]:
        copied.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    kept = list(model.graph.input)[:live]
    del copied.graph.input[:]
    copied.graph.input.extend(kept)
    return copied


def _read(model: onnx.ModelProto) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "case.onnx"
        file.write_bytes(model.SerializeToString())
        return from_onnx(file)


def _difference(made: Sequence[torch.Tensor], wanted: Sequence[Any], case: Case) -> str:
    if len(made) != len(wanted):
        return f"{len(made)} results instead of {len(wanted)}"
    for tensor, array in zip(made, wanted, strict=True):
        found, right = tensor.numpy(), array
        if found.shape != right.shape or found.dtype != right.dtype:
            return f"{found.dtype} {found.shape} instead of {right.dtype} {right.shape}"
        relative = case.relative
        if right.dtype == np.float16:
            relative = max(relative, ROUNDINGS * float(np.finfo(np.float16).eps))
        if not np.allclose(found, right, rtol=relative, atol=max(case.absolute, 1e-7), equal_nan=True):
            return f"off by {np.nanmax(np.abs(found.astype(float) - right.astype(float))):.3g}"
    return ""
