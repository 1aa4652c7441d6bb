"""A pretend accelerator: a device of its own to PyTorch, whose tensors are kept on the CPU.

An operator refuses tensors that are on different devices, as a real accelerator does, where a CPU alone would not tell.
Importing this registers the device for the whole process, so it is for processes that do nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"


class _Module(_DummyBackendModule):
    """What PyTorch asks of the module of a device: it has no generator of its own."""

    def manual_seed_all(self, seed: int) -> None: ...

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.zeros(1)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None: ...


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())

DEVICE = torch.device(NAME, 0)


class Pretend(torch.Tensor):
    """A tensor on the pretend accelerator.

    Attributes:
        kept: the tensor on the CPU.
    """

    kept: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, kept: torch.Tensor) -> Pretend:
        found: Pretend = torch.Tensor._make_wrapper_subclass(
            cls,
            kept.size(),
            strides=kept.stride(),
            storage_offset=kept.storage_offset(),
            dtype=kept.dtype,
            device=DEVICE,
        )
        found.kept = kept
        return found

    def __init__(self, kept: torch.Tensor) -> None: ...

    # Indices that are lists become tensors of PyTorch's own making, which it does not tell of; and it lists no elements
    # of tensors of other classes.
    def __getitem__(self, index: Any) -> torch.Tensor:
        return super().__getitem__(_of_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_of_tensors(index), value)

    def tolist(self) -> Any:
        return self.kept.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})


def _of_tensors(index: Any) -> Any:
    if isinstance(index, list):
        return torch.tensor(index)
    return tuple(map(_of_tensors, index)) if isinstance(index, tuple) else index


_COPIES = {"aten::copy_", "aten::_to_copy"}
_INDEXES = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
_STRICT = {"aten::cat", "aten::stack", "aten::where", "aten::index_copy", "aten::index_add"}
"""Operators that take not even a single number of the CPU."""


_RUN: list[str] = []


def count() -> int:
    """Return how many operators have run on the device so far."""
    return len(_RUN)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator on the CPU once it is known that all its tensors are on one device."""
    name = func._schema.name
    flat, spec = pytree.tree_flatten((args, kwargs))
    there = [t for t in flat if isinstance(t, Pretend)]
    # Indices may be on the CPU.
    looked_at = [args[0], *args[2:]] if name in _INDEXES and isinstance(args[0], Pretend) else flat
    away = [t for t in looked_at if isinstance(t, torch.Tensor) and not isinstance(t, Pretend)]
    if there and name not in _COPIES and any(t.dim() or name in _STRICT for t in away):
        shown = ", ".join(f"{list(t.shape)} on {t.device}" for t in (*there, *away))
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found {shown}")
    if there:
        _RUN.append(name)
    given, options = pytree.tree_unflatten([_inside(part) for part in flat], spec)
    out = func(*given, **options)
    device = kwargs.get("device")
    is_there = bool(there) if device is None else torch.device(device).type == NAME
    same = {id(t.kept): t for t in there} | {id(t): t for t in away}

    def outside(found: Any) -> Any:
        if not isinstance(found, torch.Tensor) or id(found) in same:
            return same.get(id(found), found)
        # Forward mode has tensors of zeros without memory, which are as large as any other here.
        found = torch.zeros(found.shape, dtype=found.dtype) if found._is_zerotensor() else found
        return Pretend(found) if is_there else found

    return pytree.tree_map(outside, out)


def _inside(part: Any) -> Any:
    if isinstance(part, Pretend):
        return part.kept
    return torch.device("cpu") if isinstance(part, torch.device) else part


waits: list[torch.device] = []
"""Where the program has waited for what it told the device to do, which is done at once."""

torch.accelerator.synchronize = waits.append  # type: ignore[assignment]

_LIBRARY = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
_LIBRARY.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")  # type: ignore[no-untyped-call]
# Autocasting has nothing to do there.
_LIBRARY.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # type: ignore[no-untyped-call]
