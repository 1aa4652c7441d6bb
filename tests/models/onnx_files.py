"""ONNX files of the models of the zoo, as `torch.onnx.export` writes them."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx.experimental import _config as symbolic_config
from torch.utils import _pytree as pytree

from archir.testing import leaves_of
from tests.models.zoo import ZOO


def export_model(
    name: str, file: Path, *, optimize: bool = False, opset: int | None = None
) -> tuple[nn.Module, list[Tensor]]:
    """Write a model of the zoo with a dynamic batch, and return it with the inputs it was exported with.

    Args:
        name: the model.
        file: the file.
        optimize: fold constants and BatchNorm into convolutions, and store equal tensors once.
        opset: the operator set; the exporter's own choice if not given.
    """
    example = ZOO[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = example.build().eval()
        args, kwargs = example.inputs(), example.kwargs()
    export(model, args, kwargs, file, optimize=optimize, opset=opset)
    return model, [t.float() if t.is_floating_point() else t for t in leaves_of(args, kwargs)]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what the exporter notes of packages that are not installed to itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def export(
    model: nn.Module,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    file: Path,
    *,
    optimize: bool = False,
    opset: int | None = None,
) -> None:
    """Write a model with a dynamic batch."""
    names = inspect.signature(model.forward).parameters
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    axes = pytree.tree_map(lambda leaf: {0: Dim.DYNAMIC} if isinstance(leaf, Tensor) else None, given)
    with quiet(), warnings.catch_warnings(), symbolic_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            args,
            kwargs=kwargs,
            dynamo=True,
            verbose=False,
            optimize=optimize,
            opset_version=opset,
            dynamic_shapes=axes,
        )
        assert program is not None
        program.save(str(file))
