"""Puts new widths and weights into a user's own module, in place, where nothing but widths has changed."""

from __future__ import annotations

import linecache
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from archir.errors import GrowError
from archir.growing.attributes_read import attributes_read
from archir.growing.layer_sizes import Attributes, layer_attributes, own_attributes, spoken_sizes
from archir.growing.training import evaluating
from archir.growing.trial_runs import BATCHES, Shapes, inputs_for, trained_shapes, unlike
from archir.growing.unwrapped import check_unwrapped
from archir.ir.graph import Graph
from archir.ir.node import Node
from archir.ir.types import TensorType

TOLERANCE: Mapping[torch.dtype, float] = {torch.float64: 1e-7, torch.float32: 1e-3}
"""Largest difference that rounding makes, in parts of the largest element; by element type."""

COARSE = 5e-2
"""The same for shorter element types."""

PACKAGES = (f"{Path(torch.__file__).parent.resolve()}{os.sep}", f"{Path(__file__).parents[1].resolve()}{os.sep}")
"""Where code is that is not the user's."""


@dataclass
class Writing:
    """What was put into a model, and how it is taken out again.

    Attributes:
        undo: what to do for that, in order of the writing.
    """

    undo: list[Callable[[], None]] = field(default_factory=list)

    def put(self, owner: nn.Module, name: str, value: Any) -> None:
        """Set an attribute of a module, a stored tensor for one."""
        old = getattr(owner, name)
        self.undo.append(lambda: setattr(owner, name, old))
        setattr(owner, name, value)

    def take_back(self) -> None:
        """Leave the model as it was."""
        while self.undo:
            self.undo.pop()()


def write_into(model: nn.Module, before: Graph, grown: nn.Module, after: Graph) -> Writing:
    """Put the tensors of a grown module into a model whose graph it was made from, in place.

    The parameters become those of the grown module, under all their names; the layers of `torch.nn` are told their
    sizes, and so are the user's own modules whose attributes are sizes that have changed, if its forward reads them.
    Then the model is run on random inputs in evaluation mode, and compared with the grown module; where it does not run
    so, it is tried with fewer of these attributes changed. In training mode it may do more than its graph
    tells: where it ran so before, it has to run so with the new widths, and return results of the same number and kind.

    Args:
        model: the model.
        before: its graph.
        grown: a module of the graph after.
        after: that graph.

    Returns:
        What was put in, to be taken back if something else fails.

    Raises:
        GrowError: something else than widths has changed; the graph is that of another model; or the model does not run
            with the new widths, or computes something else, because a size is written into its own code, or what it
            does in training alone does not take them: the line is named. It is as it was then.
    """
    check_unwrapped(model)
    _check_names(model, grown)
    trained = _trained_before(model, before)
    problems: list[GrowError] = []
    for own in _own_sizes(model, before, after):
        writing = Writing()
        try:
            _write(writing, model, grown, after, own)
            _check_runs(model, grown, before, after)
            _check_trains(model, after, trained)
        except GrowError as error:
            writing.take_back()
            problems.append(error)
        except BaseException:
            writing.take_back()
            raise
        else:
            return writing
    raise _another_program(model, grown, before, after, problems[0]) or problems[0]


def stored_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a module, those that have several names under each of them."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _check_names(model: nn.Module, grown: nn.Module) -> None:
    old, new = stored_tensors(model), stored_tensors(grown)
    added = sorted(new.keys() - old.keys())
    gone = sorted(name for name, tensor in old.items() if name not in new and isinstance(tensor, nn.Parameter))
    for what, names in (("adds", added), ("removes", gone)):
        if names:
            more = f", and {len(names) - 5} more" if len(names) > 5 else ""
            raise GrowError(
                "only widths can change in place",
                why=f"the rewriting {what} {', '.join(names[:5])}{more}",
                hint="take the new module: apply without in_place, or graph.module()",
            )


def _own_sizes(model: nn.Module, before: Graph, after: Graph) -> Iterator[dict[nn.Module, Attributes]]:
    """Yield what may be put into attributes of the user's own modules: all that are read, all but one name, none."""
    tried: list[dict[nn.Module, Attributes]] = []
    spoken = {
        part: spoken_sizes(before, after, path)
        for part, path in _paths(model, before).items()
        if not type(part).__module__.startswith("torch.")
    }
    every = {part: own_attributes(part, sizes, eagerly=True) for part, sizes in spoken.items()}
    read = attributes_read(model, before, [(part, name) for part, names in every.items() for name in names])
    names = sorted({name for _, name in read})
    for eagerly in (False, True):
        all_read = {
            part: {name: v for name, v in own_attributes(part, sizes, eagerly=eagerly).items() if (part, name) in read}
            for part, sizes in spoken.items()
        }
        for left_out in [set(), *({name} for name in names), set(names)]:
            own = {p: {n: v for n, v in found.items() if n not in left_out} for p, found in all_read.items()}
            if own not in tried:
                tried.append(own)
                yield own


def _paths(model: nn.Module, graph: Graph) -> dict[nn.Module, str]:
    """Return the path of every module; of one with several paths that under which it is called."""
    called = {call.location.module if call.location else "" for call in graph.calls}
    paths: dict[nn.Module, list[str]] = {}
    for path, part in model.named_modules(remove_duplicate=False):
        paths.setdefault(part, []).append(path)
    return {part: next((name for name in names if name in called), names[0]) for part, names in paths.items()}


def _write(
    writing: Writing, model: nn.Module, grown: nn.Module, after: Graph, own: Mapping[nn.Module, Attributes]
) -> None:
    """Put tensors and sizes into a model.

    Raises:
        GrowError: a layer cannot have such a shape.
    """
    new = stored_tensors(grown)
    for name, tensor in stored_tensors(model).items():
        if name in new and new[name] is not tensor:
            path, _, last = name.rpartition(".")
            writing.put(model.get_submodule(path), last, new[name])
    calls: dict[str, list[Node]] = {}
    for call in after.calls:
        calls.setdefault(call.location.module if call.location else "", []).append(call)
    for part, path in _paths(model, after).items():
        try:
            found = layer_attributes(part, calls.get(path, []))
        except GrowError as error:
            what = f"{path or 'the model'}, a {type(part).__name__}, cannot change so in place"
            raise GrowError(what, why=error.what) from error
        for name, value in (own.get(part, {}) | found).items():
            if getattr(part, name) != value:
                writing.put(part, name, value)


def _check_runs(model: nn.Module, grown: nn.Module, before: Graph, after: Graph) -> None:
    """Run a model and the module of its graph on the same random inputs, and compare what they return.

    Raises:
        GrowError: it does not run, or computes something else.
    """
    suspects = _lines(before, after)
    with evaluating(model), evaluating(grown), torch.no_grad():
        for batch in BATCHES:
            args, kwargs = inputs_for(model, after, batch)
            wanted = pytree.tree_leaves(grown(*args, **kwargs))
            try:
                found = pytree.tree_leaves(model(*args, **kwargs))
            except Exception as error:  # of code of the user's
                # What raises is often a later line than that which has the size in it.
                line = _line(error)
                where = [line] if line in suspects else [*suspects, *([line] if line else [])]
                raise _refused(f"{type(error).__name__}: {error}".splitlines()[0], where) from error
            if difference := _difference(wanted, found):
                raise _refused(difference, suspects)


def _trained_before(model: nn.Module, before: Graph) -> list[Shapes] | None:
    """Return the shapes a model returns in training mode; None if it does not run so, as where it asks for targets."""
    try:
        return trained_shapes(model, before)
    except Exception:  # of code of the user's
        return None


def _check_trains(model: nn.Module, after: Graph, before: list[Shapes] | None) -> None:
    """Run a model in training mode, where it does what its graph does not tell of, and compare shapes.

    Raises:
        GrowError: it does not run, though it did, or returns results of other shapes.
    """
    if before is None:
        return
    where = ""
    try:
        why = unlike(before, trained_shapes(model, after))
    except Exception as error:  # of code of the user's
        why, where = f"{type(error).__name__}: {error}".splitlines()[0], _line(error)
    if why:
        raise GrowError(
            "the model does not take the new widths in training",
            where=where,
            why=why,
            hint="what it does in training alone is not in its graph, and cannot change with it: do it in evaluation "
            "mode, too, or read the size off a tensor",
        )


def _another_program(
    model: nn.Module, grown: nn.Module, before: Graph, after: Graph, problem: GrowError
) -> GrowError | None:
    """Return what to say if it cannot be for the widths that a model is refused; None if it can.

    A rewriting of widths leaves the calls there were, in their order.
    """
    hint = "give a graph that rewritings of widths have made of the graph of this very module"
    calls, at = _tensor_calls(after), 0
    for call in _tensor_calls(before):
        found = next((i for i in range(at, len(calls)) if calls[i].op == call.op), None)
        if found is None:
            instead, place = calls[at].op if at < len(calls) else "nothing more", call.location
            return GrowError(
                "the graph is that of another model",
                where=f"{place.file}:{place.line}" if place is not None and place.file else "",
                why=f"the model calls {call.op} where the graph calls {instead}",
                hint=hint,
            )
        at = found + 1
    shapes = [{name: t.shape for name, t in stored_tensors(m).items()} for m in (model, grown)]
    if any(shapes[0].get(name) != shape for name, shape in shapes[1].items()):
        return None
    return GrowError("the model and the graph do not agree, and no width differs", why=problem.why, hint=hint)


def _tensor_calls(graph: Graph) -> list[Node]:
    """Return the calls of a graph that make tensors: which sizes it asks for depends on how it was captured."""
    return [call for call in graph.calls if any(isinstance(type_, TensorType) for type_ in call.results)]


def _refused(why: str, where: Sequence[str]) -> GrowError:
    return GrowError(
        "the model does not take the new widths",
        where="\n         ".join(where[:5]),
        why=why,
        hint="a size is written into its code, or follows from another: read it off a tensor, or take the new module",
    )


def _difference(wanted: list[Any], found: list[Any]) -> str:
    if len(wanted) != len(found):
        return f"it returns {len(found)} values, and the graph {len(wanted)}"
    for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
        if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
            if one != other:
                return f"result {number} is {other!r}, and that of the graph {one!r}"
            continue
        if one.shape != other.shape:
            return f"result {number} is {list(other.shape)}, and that of the graph {list(one.shape)}"
        if not one.numel():
            continue
        if not one.is_floating_point():
            if not torch.equal(one, other):
                return f"result {number} differs from that of the graph"
            continue
        largest = TOLERANCE.get(one.dtype, COARSE) * float(one[one.isfinite()].abs().max().clamp(min=1e-6))
        apart = (one - other.to(one)).abs().nan_to_num(posinf=0.0)
        if not torch.equal(one.isfinite(), other.isfinite()) or float(apart.max()) > largest:
            return f"result {number} differs by {float(apart.max()):.2g} from that of the graph"
    return ""


def _line(error: BaseException) -> str:
    """Return the last line of the user's own code that an error comes through, empty if there is none."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = frame.f_code.co_filename
        if file.startswith("<") or str(Path(file).resolve()).startswith(PACKAGES):
            continue
        return f"{file}:{line}: {linecache.getline(file, line).strip()}"
    return ""


def _lines(before: Graph, after: Graph) -> list[str]:
    """Return the lines of the user's own code whose calls take whole numbers that have changed, in order."""
    found: dict[str, None] = {}
    for old in before.calls:
        place = old.location
        if place is None or not place.file or old.id not in after or place.kind.startswith("torch."):
            continue
        if after.node(old.id).arguments != old.arguments:
            found[f"{place.file}:{place.line}: {linecache.getline(place.file, place.line).strip()}"] = None
    return list(found)


@contextmanager
def taken_back_on_failure(writings: list[Writing]) -> Iterator[None]:
    """Take back what was put into models if the block fails."""
    try:
        yield
    except BaseException:
        for writing in reversed(writings):
            writing.take_back()
        raise
