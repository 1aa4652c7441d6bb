"""What a call of an accepted graph may be, said once more and without the registry of the package."""

from __future__ import annotations

import re

import torch

from tools.trust.attack import Wrong

_ARITHMETIC = re.compile(
    r"operator\.(abs|add|and_|eq|floordiv|ge|gt|invert|le|lt|mod|mul|ne|neg|not_|or_|pos|pow|sub|truediv|xor)"
    r"|math\.(ceil|floor|trunc|sqrt|prod|log|log2|exp|fabs)"
    r"|builtins\.round|torch\.(sym_(float|int|ite|max|min|not|sum|sqrt)|_sym_sqrt)"
)
_LIBRARIES = ("aten", "torchvision")
_TEXTS = frozenset(
    (
        *("UPLO", "approximate", "driver", "equation", "indexing", "interpolation", "mode", "norm", "ord", "p"),
        *("pad_mode", "padding", "padding_side", "reduce", "rounding_mode", "side"),
    )
)
"""Arguments that are words; any other text may be the name of a file."""

_OUTSIDE = re.compile(r"Stream|Storage|QScheme|torch\.classes|__torch__|Any|Future|Dict|PyObject|Layout\b")
"""Types of what is neither tensor nor number."""

_NEVER = re.compile(r"file|print|warn|record|save|load|seed|set_|manual|profil|_cuda|cudnn|barrier|open|exec|import")
"""What no name of a function of tensors holds."""

_ALTHOUGH = frozenset(("masked_fill",))
"""Packets that are functions all the same."""


def check_operator(op: str) -> None:
    """Check that a call computes from tensors and numbers, as its schema tells.

    Raises:
        Wrong: it is something else.
    """
    library, _, rest = op.partition(".")
    packet, _, overload = rest.partition(".")
    if library not in _LIBRARIES:
        if not _ARITHMETIC.fullmatch(op):
            raise Wrong(f"{op} is called, which is no operator of tensors")
        return
    if packet not in _ALTHOUGH and _NEVER.search(packet):
        raise Wrong(f"{op} is called, which by its name does more than compute")
    found = getattr(getattr(getattr(torch.ops, library), packet, None), overload or "default", None)
    if not isinstance(found, torch._ops.OpOverload):
        raise Wrong(f"{op} is called, which torch does not know")
    schema = found._schema
    if schema.is_mutable or not schema.returns:
        raise Wrong(f"{op} is called, which writes into its arguments or returns nothing")
    for argument in schema.arguments:
        kind = str(argument.type)
        if _OUTSIDE.search(kind):
            raise Wrong(f"{op} is called, which takes a {kind}")
        if "str" in kind and argument.name not in _TEXTS:
            raise Wrong(f"{op} is called, which takes a text called {argument.name}")
