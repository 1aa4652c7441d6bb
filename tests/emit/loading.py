"""Loads what would be written, without the check that `to_python` makes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from safetensors.torch import save_file
from torch import nn

from archir.emit.layouts import Draft


def load_draft(draft: Draft, folder: Path) -> nn.Module:
    """Return the network of a draft, in evaluation mode."""
    module = ModuleType("net")
    module.__file__ = str(folder / "net.py")
    save_file(dict(draft.tensors), folder / "net.safetensors")
    exec(compile(draft.text, module.__file__, "exec"), module.__dict__)
    net = module.load()
    assert isinstance(net, nn.Module)
    return net
