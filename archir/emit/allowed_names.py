"""What may stand in emitted source, whatever the program: lists that are written down."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from archir.emit.expressions import FUNCTIONAL, MODES, TORCH
from archir.ir import ops
from archir.ir.arithmetic import ARITHMETIC
from archir.ir.layers import BARE, KINDS

IMPORTS = frozenset(
    {
        "import math",
        "import operator",
        "import torch",
        "import torch.nn.functional as F",
        "from pathlib import Path",
        "from safetensors.torch import load_file",
        "from torch import Tensor",
        "from torch import nn",
        "from torch import Tensor, nn",
    }
)
CONSTANTS = frozenset(
    f"torch.{name}"
    for name, v in vars(torch).items()
    if isinstance(v, torch.dtype | torch.layout | torch.memory_format)
)
"""What is read from libraries."""

_CONTAINERS = ("Identity", "Module", "ModuleDict", "ModuleList", "Parameter", "ParameterList", "Sequential")
CALLED = frozenset(
    {f"torch.{name}" for name in TORCH}
    | {f"F.{name}" for name in FUNCTIONAL}
    | {f"nn.{name}" for name in (*_CONTAINERS, *KINDS, *BARE)}
    | {op for op in ARITHMETIC if not op.startswith("builtins.")}
)
"""What is called of libraries, besides the operators of the program under their full names."""

BUILTINS = frozenset({"complex", "float", "len", "max", "min", "round"})
"""What is called of Python itself."""

REPEATING = frozenset({"nn.ModuleList", "nn.ParameterList", "nn.Sequential"})
"""What is made of an expression that is repeated."""

TEXTS: Mapping[str, frozenset[int | str]] = MappingProxyType(
    {
        "F.interpolate": frozenset({"mode"}),
        "F.pad": frozenset({"mode"}),
        "F.gelu": frozenset({"approximate"}),
        "nn.GELU": frozenset({0, "approximate"}),
        "torch.einsum": frozenset({0}),
        "torch.meshgrid": frozenset({"indexing"}),
        "torch.device": frozenset({0}),
        "float": frozenset({0}),
        ".scatter": frozenset({"reduce"}),
        **{f"F.conv{d}d": frozenset({"padding"}) for d in (1, 2, 3)},
        **{f"nn.Conv{d}d": frozenset({"padding"}) for d in (1, 2, 3)},
    }
)
"""The arguments that are texts, by position or name; those of operators follow from their schemas."""

OWN_TEXTS = frozenset({"cpu", "meta", "inf", "-inf", "nan", *MODES})
TYPES = frozenset({"Tensor", "dict", "int", "list", "object", "tuple"})
REGISTERS = frozenset({"add_module", "register_buffer", "register_parameter"})
LIBRARIES = frozenset({"torch", "nn", "F", "math", "operator"})
RESERVED = LIBRARIES | {"complex", "float", "range", "super"}
"""Names no variable takes."""


def text_arguments(name: str) -> set[int | str]:
    """Return which arguments of an operator are texts, by position and by name."""
    found: set[int | str] = set()
    target = ops.function(name.removeprefix("torch.ops."))
    for at, argument in enumerate(target._schema.arguments if isinstance(target, torch._ops.OpOverload) else ()):
        found |= {at, argument.name} if "str" in str(argument.type) else set()
    return found
