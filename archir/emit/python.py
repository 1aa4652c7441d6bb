"""Writes a graph as PyTorch source a person would have written, with the weights beside it as safetensors."""

from __future__ import annotations

import keyword
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from archir.emit.check import Emitted, compare, compare_training
from archir.emit.files import place
from archir.emit.layouts import LAYOUTS, Draft, draft
from archir.errors import EmitError, FileError
from archir.ir.graph import Graph

TOLERANCE = 1e-5
_NOT_STORED = frozenset({torch.complex32, torch.complex128})


def to_python(
    graph: Graph, directory: str | Path, *, name: str = "net", flat: bool = False, tolerance: float = TOLERANCE
) -> Emitted:
    """Write `<name>.py` and `<name>.safetensors`, which together are the network, and check them.

    The source needs torch and safetensors only. It has a class for each kind of module, under the names the modules
    had, so that old state dicts still fit, and a function `load()` that returns the network with its weights.

    Args:
        graph: the program.
        directory: where to write; made if it is not there.
        name: name of the files.
        flat: write the calls of all modules into one `forward`.
        tolerance: largest difference from the graph allowed, relative to the largest output where that exceeds 1.

    Returns:
        The source file, and the largest absolute difference found on random inputs.

    Raises:
        EmitError: the graph cannot be written, or what is written computes something else; no file is left or changed.
        FileError: the directory cannot be written.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise EmitError(f"{name!r} is not a name a Python module can have")
    target = Path(directory)
    failure: EmitError | None = None
    for found in drafts(graph, name, flat):
        try:
            return Emitted(target / f"{name}.py", _write(graph, found, target, name, tolerance))
        except EmitError as error:
            failure = error
    assert failure is not None
    raise failure


def _write(graph: Graph, found: Draft, target: Path, name: str, tolerance: float) -> float:
    """Write the files, check them, put them in their place, and return the difference."""
    kinds = {tensor.dtype for tensor in found.tensors.values()} & _NOT_STORED
    if kinds:
        raise EmitError(
            f"tensors of {', '.join(sorted(map(str, kinds)))} cannot be written",
            why="safetensors has no such element type",
            hint="let the model hold their real and imaginary parts (torch.view_as_real)",
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target) as folder:
            written = Path(folder) / f"{name}.py"
            written.write_text(found.text, encoding="utf-8")
            save_file(dict(found.tensors), written.with_suffix(".safetensors"))
            difference = check(graph, written, tolerance=tolerance)
            place((written.with_suffix(".safetensors"), written), target)
    except (OSError, SafetensorError) as error:
        raise FileError(
            f"cannot write into {target}", why=str(error), hint="give a directory that can be written"
        ) from error
    return difference


def source(graph: Graph, *, name: str = "net", flat: bool = False) -> str:
    """Return the Python source of a graph, in the first layout that can say it.

    Args:
        graph: the program.
        name: name of the file with the weights, without its ending.
        flat: write the calls of all modules into one `forward`.

    Raises:
        EmitError: the graph cannot be written.
    """
    return next(drafts(graph, name, flat)).text


def drafts(graph: Graph, name: str, flat: bool) -> Iterator[Draft]:
    """Yield what a graph can be written as, the layout that reads best first.

    Raises:
        EmitError: not even the last layout can say it.
    """
    *others, last = LAYOUTS[1:] if flat else LAYOUTS
    for layout in others:
        try:
            found = draft(graph, layout, name)
        except Exception:  # a layout that cannot be recovered, for whatever reason, must not refuse the program
            continue
        yield found
    yield draft(graph, last, name)


def check(graph: Graph, path: str | Path, *, tolerance: float = TOLERANCE) -> float:
    """Load an emitted file and compare it with the graph it was made from.

    Args:
        graph: the graph.
        path: the Python file; the weights are beside it.
        tolerance: largest difference allowed, relative to the largest output where that exceeds 1.

    Returns:
        The largest absolute difference on random inputs, in eval mode.

    Raises:
        EmitError: the file cannot be loaded, its state dict has other keys, or it computes something else in eval or
            training mode.
    """
    file = Path(path)
    net = _loaded(file)
    wanted = {name for n in graph.parameters if (p := n.parameter) and p.persistent for name in p.names}
    found = set(net.state_dict())
    counters = {key for key in found if key.endswith("num_batches_tracked")}
    if wanted - found or found - wanted - counters:
        missing, more = sorted(wanted - found), sorted(found - wanted - counters)
        raise EmitError(f"the state dict of {file.name} has other keys", why=f"missing {missing}, unexpected {more}")

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        try:
            return net(*args, **kwargs)
        except (RuntimeError, TypeError, AttributeError, NameError, ValueError, IndexError, KeyError) as error:
            raise EmitError(f"{file.name} does not run", why=f"{type(error).__name__}: {error}") from error

    difference = compare(graph, run, tolerance, file.name)
    compare_training(graph, net, tolerance, file.name)
    return difference


def _loaded(file: Path) -> nn.Module:
    """Run an emitted file, its bytecode not cached, and return the network it loads."""
    module = ModuleType(f"_archir_emitted_{file.stem}")
    module.__file__ = str(file)
    try:
        exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), module.__dict__)
        net: nn.Module = module.load()
    except Exception as error:
        raise EmitError(f"{file.name} does not load", why=f"{type(error).__name__}: {error}") from error
    return net.eval()
