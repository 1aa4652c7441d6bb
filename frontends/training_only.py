"""Finds what a model does in training and its graph, captured in evaluation mode, does not.

A copy of the model whose tensors hold nothing is run in either mode, and the functions of torch it calls are compared:
what one mode alone calls, or calls with other numbers, is lost, except where the graph follows `train()` and `eval()`
itself. Gradients are followed back for functions that bring a backward of their own. Nothing is computed, so that it
costs little beside the export; the model is told that it is exported, so that it keeps none of these tensors.

Source: ours.
"""

from __future__ import annotations

import copy
import inspect
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn
from torch._export.utils import _compiling_state_context
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.autograd.graph import Node
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.functional import multi_head_attention_forward
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from archir.ir import lowering
from archir.ir.registry import operator_of
from frontends.examples import Example
from frontends.locations import TORCH
from frontends.random_states import undisturbed

_HERE = str(Path(__file__))
_COUNTING = frozenset({str(Path(TORCH, "nn", "modules", "batchnorm.py")), lowering.__file__})
"""Where batches are counted in training, as the graph does."""

_DROPPED = "dropout of attention weights that are returned (need_weights)"

_FOLLOWING: Mapping[str, str] = {
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"), "training"),
    **dict.fromkeys(("feature_dropout", "feature_alpha_dropout", "rrelu", "batch_norm"), "training"),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu", "multi_head_attention_forward"), "training"),
    **dict.fromkeys(("dropout_", "alpha_dropout_", "feature_dropout_", "feature_alpha_dropout_"), "train"),
    "rrelu_": "training",
    "instance_norm": "use_input_stats",
    "scaled_dot_product_attention": "dropout_p",
}
"""Functions of which the graph follows the mode, and the argument that says it, where it is given by name."""


class Mode(Protocol):
    """A context in which every submodule is in one mode."""

    def __call__(self, model: nn.Module, *, training: bool) -> AbstractContextManager[None]:
        """Set the mode."""
        ...


@dataclass(frozen=True)
class _Called:
    """One place that calls a function of torch.

    Attributes:
        function: name of the function.
        path: path of the module that calls it.
        file: the innermost file that is not torch's; empty if there is none.
        line: the line in it.
    """

    function: str
    path: str
    file: str
    line: int

    @property
    def where(self) -> str:
        """The place in words."""
        return (self.path or "<root>") + (f" ({self.file}:{self.line})" if self.file else "")


@dataclass
class _Run:
    """What one run of a model did.

    Attributes:
        calls: the places, with the constants of each call in order.
        dropped: calls of attention that leave out some of the weights they return, which is not captured.
        functions: classes of functions with a backward of their own.
        failed: what it raised, with the place, if it did.
    """

    calls: dict[_Called, list[tuple[object, ...]]] = field(default_factory=lambda: defaultdict(list))
    dropped: dict[_Called, None] = field(default_factory=dict)
    functions: dict[type, str] = field(default_factory=dict)
    failed: str = ""


class _Recorder(TorchFunctionMode):
    """Notes every call of a function of torch that makes or changes a tensor."""

    def __init__(self, paths: Mapping[int, str], names: Mapping[int, str], run: _Run) -> None:
        super().__init__()
        self._paths, self._names, self._run = paths, dict(names), run
        self._dropped_out: list[torch.Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        name = _name(func)
        if name in _FOLLOWING and args and id(args[0]) in self._names and isinstance(result, torch.Tensor):
            # A stored tensor that is dropped out counts as itself, as in evaluation; kept, for ids are used again.
            self._names[id(result)] = self._names[id(args[0])]
            self._dropped_out.append(result)
        if _matters(name, result, args):
            called, inner = _caller(name, self._paths)
            if name != "add_" or inner not in _COUNTING:
                self._run.calls[called].append(_constants(func, name, args, given, self._names))
            if func is multi_head_attention_forward:
                bound = inspect.signature(multi_head_attention_forward).bind(*args, **given)
                bound.apply_defaults()
                if bound.arguments["dropout_p"] and bound.arguments["training"] and bound.arguments["need_weights"]:
                    self._run.dropped[called] = None
        return result


def _name(function: Callable[..., Any]) -> str:
    """Return the name of a function of torch, that of an operator without its overload."""
    return str(function).split(".")[1] if isinstance(function, OpOverload) else getattr(function, "__name__", "")


def _matters(name: str, result: object, args: tuple[Any, ...]) -> bool:
    """Say whether a call makes or changes a tensor; one that gives back what it is given does not."""
    if name == "contiguous":
        return False  # changes how a tensor is laid out, which may differ between the modes, and nothing else
    writes = name.endswith("_") and name not in ("__get__", "__getitem__")
    unchanged = bool(args) and result is args[0] and not writes and name not in _FOLLOWING
    return name == "__setitem__" or (name != "__get__" and _has_tensor(result) and not unchanged)


def _has_tensor(result: object) -> bool:
    if isinstance(result, torch.Tensor):
        return True
    return isinstance(result, tuple | list) and any(map(_has_tensor, result))


def _constants(
    function: object, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Mapping[int, str]
) -> tuple[object, ...]:
    """Return what a function is given but activations, and the flag by which it follows the mode.

    These are numbers, texts and flags, and the names of stored tensors.
    """
    follows = _FOLLOWING.get(name)
    if isinstance(function, OpOverload):
        # An operator of a graph that became a module: the schema says which argument is the flag.
        kwargs, args = {**dict(zip((a.name for a in function._schema.arguments), args, strict=False)), **kwargs}, ()
        kwargs.pop(operator_of(str(function)).mode, None)
    elif follows is not None:
        # Functions of C++ are given the flag by position: it is the same in both modes if it is left out as a flag.
        args = tuple(a for a in args if not isinstance(a, bool))
        kwargs = {k: v for k, v in kwargs.items() if k != follows}
    leaves = pytree.tree_leaves((args, dict(sorted(kwargs.items()))))
    leaves = [names.get(id(leaf)) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    # A number that is none differs from itself.
    return tuple("nan" if leaf != leaf else leaf for leaf in leaves if isinstance(leaf, bool | int | float | str))


def _caller(name: str, paths: Mapping[int, str]) -> tuple[_Called, str]:
    """Return the place that calls a function, and the innermost file, which may be torch's."""
    frame: FrameType | None = sys._getframe(2)
    inner, path = "", None
    while frame is not None:
        file = frame.f_code.co_filename
        inner = inner or ("" if file.endswith("overrides.py") else file)
        if path is None and "self" in frame.f_code.co_varnames:
            path = paths.get(id(frame.f_locals.get("self")))
        if file == _HERE:
            break
        if not file.startswith((TORCH, "<")):
            return _Called(name, _path_above(frame, paths) if path is None else path, file, frame.f_lineno), inner
        frame = frame.f_back
    return _Called(name, path or "", "", 0), inner


def _path_above(frame: FrameType | None, paths: Mapping[int, str]) -> str:
    while frame is not None and frame.f_code.co_filename != _HERE:
        path = paths.get(id(frame.f_locals.get("self"))) if "self" in frame.f_code.co_varnames else None
        if path is not None:
            return path
        frame = frame.f_back
    return ""


def losses(model: nn.Module, examples: Iterable[Example], mode: Mode) -> Iterator[str]:
    """Yield what the model does in training only: where, and what.

    Args:
        model: the model; it is left as it was.
        examples: what to call it with; the first that the model runs on is used.
        mode: a context in which a model is in training mode, or in evaluation mode.
    """
    yield from _hooks(model)
    for example in examples:
        args, kwargs = example.args, example.kwargs
        evaluated = _run(model, args, kwargs, mode, training=False)
        if evaluated is not None and not evaluated.failed:
            yield from _compared(model, args, kwargs, mode, evaluated)
            return
    # What cannot be run without its numbers cannot be compared.


def _compared(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], mode: Mode, evaluated: _Run
) -> Iterator[str]:
    trained = _run(model, args, kwargs, mode, training=True) or _Run()
    functions = {**trained.functions, **evaluated.functions}
    if functions:
        # Where they were called is only remembered on demand, since that takes time.
        for training in (False, True):
            again = _run(model, args, kwargs, mode, training=training, traced=True)
            functions |= {kind: place for kind, place in (again or _Run()).functions.items() if place}
    for kind, place in functions.items():
        yield f"{place or kind.__module__}: {kind.__qualname__}.backward; its forward is differentiated instead"
    if trained.failed:
        yield f"{trained.failed} (in training only, and all that follows)"
        return
    found = list(_differences(evaluated, trained))
    if found:
        # What was only made the first time, and kept for later, is no difference.
        found = list(_differences(_run(model, args, kwargs, mode, training=False) or evaluated, trained))
    yield from found


def _differences(evaluated: _Run, trained: _Run) -> Iterator[str]:
    texts: dict[str, dict[str, None]] = {c.where: {_DROPPED: None} for c in trained.dropped}
    for called in _unmatched(trained, evaluated) | _unmatched(evaluated, trained):
        in_training, in_evaluation = trained.calls.get(called, []), evaluated.calls.get(called, [])
        if len(in_training) != len(in_evaluation):
            mode = "training" if len(in_training) > len(in_evaluation) else "evaluation"
            text = f"{called.function} (in {mode} only)"
        else:
            a, b = next((a, b) for a, b in zip(in_training, in_evaluation, strict=True) if a != b)
            text = f"{called.function} with {_told(a, b)} in training and {_told(b, a)} in evaluation"
        texts.setdefault(called.where, {})[text] = None
    for where, found in texts.items():
        yield f"{where}: {', '.join(found)}"


def _unmatched(run: _Run, other: _Run) -> dict[_Called, None]:
    """Return the places whose calls the other run does not make, there or on another line of the same module."""
    made: Counter[tuple[object, ...]] = Counter()
    for called, calls in other.calls.items():
        rest = Counter(calls) - Counter(run.calls.get(called, []))
        made.update((called.function, called.path, given) for given in rest.elements())
    found: dict[_Called, None] = {}
    for called, calls in run.calls.items():
        rest = Counter(calls) - Counter(other.calls.get(called, []))
        for given in rest.elements():
            call = called.function, called.path, given
            made[call] -= 1
            if made[call] < 0:
                found[called] = None
    return found


def _told(one: tuple[object, ...], other: tuple[object, ...]) -> str:
    differing = [a for a, b in zip(one, other, strict=False) if a != b] or [*one[len(other) :]] or ["nothing"]
    return ", ".join(map(str, differing))


def _hooks(model: nn.Module) -> Iterator[str]:
    """Yield the hooks on gradients."""
    for path, module in model.named_modules():
        for hook in (*module._backward_hooks.values(), *module._backward_pre_hooks.values()):
            yield f"{path or '<root>'}{_defined(hook)}: a backward hook"
    for name, parameter in model.named_parameters():
        for hooks in (parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None)):
            for hook in (hooks or {}).values():
                yield f"{name}{_defined(hook)}: a hook on its gradient"


def _defined(function: object) -> str:
    code = getattr(function, "__code__", None)
    return f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""


def _run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    mode: Mode,
    *,
    training: bool,
    traced: bool = False,
) -> _Run | None:
    """Run a copy of the model; None if it cannot be copied."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        copied, inputs, keywords = copy.deepcopy((model, args, dict(kwargs)), _hollow(fake, model, args, kwargs))
    except Exception:
        return None  # whatever a model is made of, it need not be made to be copied
    for module in copied.modules():
        if isinstance(module, _NormBase) and module.momentum is None:
            module.momentum = 0.0  # counts batches to average over all of them, as the graph does
    run = _Run()
    paths = {id(module): path for path, module in copied.named_modules()}
    names = {id(t): name for name, t in (*copied.named_parameters(), *copied.named_buffers())}
    with undisturbed(), mode(copied, training=training), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with (
                torch.autograd.set_detect_anomaly(traced),
                _compiling_state_context(),
                fake,
                _Recorder(paths, names, run),
            ):
                result = copied(*inputs, **keywords)
        except Exception as error:
            run.failed = _failure(error, paths)
            return run
    run.functions = dict(_own_backwards(result))
    return run


def _hollow(
    fake: FakeTensorMode, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[int, object]:
    """Return what stands for each tensor of a copy, by id: one that holds nothing."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, dict(kwargs))) if isinstance(leaf, torch.Tensor)]
    for module in model.modules():
        held = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        tensors += [t for t in held if isinstance(t, torch.Tensor)]
    return {id(t): fake.from_tensor(t if t.is_leaf else t.detach()) for t in tensors}


def _failure(error: Exception, paths: Mapping[int, str]) -> str:
    """Return what a run has raised, and where."""
    path, place, trace = "", "", error.__traceback__
    while trace is not None:
        code, found = trace.tb_frame.f_code, trace.tb_frame.f_locals.get("self")
        path = paths.get(id(found), path)
        if not code.co_filename.startswith((TORCH, "<", _HERE)):
            place = f" ({code.co_filename}:{trace.tb_lineno})"
        trace = trace.tb_next
    decides = isinstance(error, DataDependentOutputException | GuardOnDataDependentSymNode)
    why = "a branch on random numbers or data" if decides else f"{type(error).__name__}: {str(error).splitlines()[:1]}"
    return f"{path or '<root>'}{place}: {why}"


def _own_backwards(result: object) -> Iterator[tuple[type, str]]:
    """Yield the functions with a backward of their own that results come from, and where they were called."""
    leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    waiting: list[Node | None] = [leaf.grad_fn for leaf in leaves]
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        kind = getattr(node, "_forward_cls", None)
        if isinstance(kind, type) and not kind.__module__.startswith("torch."):
            metadata: Any = node.metadata
            yield kind, _called_at(metadata.get("traceback_") or [])


def _called_at(lines: list[str]) -> str:
    users = [t for t in lines if 'File "' in t and not t.split('File "', 1)[1].startswith((TORCH, "<", _HERE))]
    if not users:
        return ""
    file, _, rest = users[-1].split('File "', 1)[1].partition('", line ')
    return f"{file}:{rest.partition(',')[0]}"
