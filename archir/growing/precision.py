"""The precision that the outputs of training steps are computed in, and the scale of the loss that float16 needs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from archir.errors import GrowError
from archir.growing.device import device_of
from archir.growing.shards import whole

PRECISIONS = ("auto", "float32", "bfloat16", "float16")

PREFIX = "scale/"
"""What the names of the state of a scale begin with in a checkpoint."""

LEAST = 1.0
"""The scale below which gradients that are not finite are a divergence: a smaller one would lose what is small."""


def half_type(module: nn.Module, precision: str) -> torch.dtype | None:
    """Return the element type that the outputs of training steps are computed in where that is safe.

    Args:
        module: what is trained.
        precision: one of `PRECISIONS`.

    Returns:
        The type; None for float32, or whatever the module has.
    """
    return half_type_on(device_of(module), precision)


def half_type_on(device: torch.device, precision: str) -> torch.dtype | None:
    """Return that element type for what is trained on a device; see `half_type`."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)


def check_precision(module: nn.Module, precision: str) -> None:
    """Check that the weights of a module can be trained in a precision.

    Raises:
        GrowError: it is float16, and a weight has that type already: gradients in it cannot be scaled back.
    """
    found = next((n for n, p in module.named_parameters() if p.requires_grad and p.dtype is torch.float16), None)
    if found is not None and half_type(module, precision) is torch.float16:
        raise GrowError(
            "weights in float16 cannot be trained in float16",
            where=found,
            why="what is small in their gradients is lost",
            hint="keep the weights in float32: their outputs are computed in float16 all the same",
        )


def make_scaler(module: nn.Module, precision: str) -> torch.amp.GradScaler:
    """Return what scales the loss so that small gradients are no zeros in float16; it does nothing in other types."""
    return torch.amp.GradScaler(device_of(module).type, enabled=half_type(module, precision) is torch.float16)


def scaler_tensors(scaler: torch.amp.GradScaler) -> dict[str, torch.Tensor]:
    """Return the state of a scaler as named tensors: its scale, and how many steps have gone well with it."""
    if not scaler.is_enabled():
        return {}
    state = scaler.state_dict()
    scale, steps = float(state["scale"]), int(state["_growth_tracker"])
    return {f"{PREFIX}factor": torch.tensor(scale, dtype=torch.float64), f"{PREFIX}steps": torch.tensor(steps)}


def restore_scaler(scaler: torch.amp.GradScaler, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a scaler the state that `scaler_tensors` returned, which may come from a file.

    Raises:
        GrowError: there is another number of tensors, or they are no scale and no count.
    """
    wanted = scaler_tensors(scaler)
    if tensors.keys() != wanted.keys():
        raise GrowError(f"the scale of the loss is {sorted(tensors)}, not {sorted(wanted)}")
    if not wanted:
        return
    factor, steps = (tensors[name] for name in wanted)
    fits = all((tensors[n].shape, tensors[n].dtype) == (t.shape, t.dtype) for n, t in wanted.items())
    if not fits or not 0 < float(factor) < torch.finfo(torch.float32).max or not 0 <= int(steps) < 2**31:
        raise GrowError("the scale of the loss is damaged", why="it is no positive number with a count of steps")
    scaler.load_state_dict({**scaler.state_dict(), "scale": float(factor), "_growth_tracker": int(steps)})


def overflows(scaler: torch.amp.GradScaler, gradients: list[torch.Tensor]) -> bool:
    """Say whether gradients whose norm is not finite are so only since the loss was scaled up too far for float16."""
    return (
        scaler.is_enabled()
        and scaler.get_scale() >= LEAST
        and not all(bool(whole(torch.isfinite(gradient).all())) for gradient in gradients)
    )
