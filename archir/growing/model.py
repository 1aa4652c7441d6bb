"""Finds the model a configuration or a command names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from archir.errors import GrowError
from archir.growing.importing import invoke, load_object


def load_model(spec: str, arguments: Mapping[str, Any] | None = None, *, base: Path = Path()) -> nn.Module:
    """Return the model a spec names.

    Args:
        spec: `package.module:name` or `file.py:name`, where the name is that of a function or class that makes the
            model, or of the model itself.
        arguments: keyword arguments of the function.
        base: folder that relative paths start from.

    Raises:
        FileError: there is no such file.
        GrowError: there is no such name, it fails, or what it returns is no nn.Module.
    """
    found = load_object(spec, base=base)
    if isinstance(found, nn.Module):
        if arguments:
            raise GrowError(f"{spec} is a model, which takes no arguments", hint="name a function that makes it")
        return found
    made = invoke(found, spec, arguments)
    if not isinstance(made, nn.Module):
        raise GrowError(f"{spec} makes a {type(made).__name__}, not an nn.Module")
    return made
