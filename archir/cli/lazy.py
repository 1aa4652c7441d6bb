"""Imports a module when it is first used, so that `archir --help` does not wait for PyTorch."""

from __future__ import annotations

import importlib
from typing import Any


class LazyModule:
    """Stands for a module, which is imported when an attribute of it is first read."""

    def __init__(self, name: str) -> None:
        """Remember the full name of the module."""
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        """Return an attribute of the module."""
        return getattr(importlib.import_module(self._name), attribute)
