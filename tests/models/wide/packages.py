"""Makes examples out of the models of other packages, which are imported only where a model is built."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter
from typing import Any

from torch import nn

from tests.models.example import Example


class Result(nn.Module):
    """Calls a model with fixed options, and returns some of the tensors it returns."""

    def __init__(self, model: nn.Module, fields: tuple[str, ...], options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.model = model
        self.fields = fields
        self.options = options or {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = self.model(*args, **kwargs, **self.options)
        found = tuple(attrgetter(name)(result) for name in self.fields)
        return found[0] if len(found) == 1 else found


def installed(package: str) -> bool:
    """Say whether a package can be imported."""
    return find_spec(package) is not None


def build(package: str, name: str, *args: Any, **kwargs: Any) -> nn.Module:
    """Make a model of another package, in evaluation mode; what the package warns of is its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = attrgetter(name)(import_module(package))(*args, **kwargs)
    assert isinstance(made, nn.Module)
    return made.eval()


def from_transformers(
    name: str,
    arguments: Callable[[int], tuple[Any, ...]],
    *fields: str,
    config: str = "",
    options: dict[str, Any] | None = None,
    keywords: Callable[[int], dict[str, Any]] = lambda batch: {},
    **settings: Any,
) -> Example:
    """Return an example of a model of `transformers`.

    Args:
        name: its class.
        arguments: makes its positional arguments.
        fields: what it returns of what the model returns.
        config: class of its configuration, if not named like the model.
        options: constant keyword arguments.
        keywords: makes its keyword arguments.
        settings: of the configuration.
    """
    family = config or name.removesuffix("Model").partition("For")[0] + "Config"

    def make() -> nn.Module:
        configuration = attrgetter(family)(import_module("transformers"))(**settings)
        return Result(build("transformers", name, configuration), fields, options)

    return Example(make, arguments, keywords, batch=2)


def from_package(
    package: str, name: str, arguments: Callable[[int], tuple[Any, ...]], *args: Any, batch: int = 2, **kwargs: Any
) -> Example:
    """Return an example of a model of a package that is made with the given arguments."""
    return Example(partial(build, package, name, *args, **kwargs), arguments, batch=batch)
