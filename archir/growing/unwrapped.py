"""Modules as they are inside of what PyTorch wraps around them for several processes, or to compile them."""

from __future__ import annotations

from torch import nn

from archir.errors import GrowError

GATHER = "gather its weights into the model as it was made, and share out anew what comes back: see docs/loop.md"
"""What is to be done with a model of which each process holds shards."""

WRAPPED = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "FSDPModule": "",
    "OptimizedModule": "_orig_mod",
}
"""Classes of PyTorch's that stand for another module, by name, and the attribute under which it is; none where the
module itself was changed."""


def check_unwrapped(model: nn.Module) -> None:
    """Check that a model is no other's wrapping, whose parameters it would hide or share out.

    Raises:
        GrowError: it is wrapped in `DistributedDataParallel`, compiled, or the like; it says what to give instead.
    """
    for kind in type(model).__mro__:
        if kind.__name__ in WRAPPED and kind.__module__.partition(".")[0] == "torch":
            inner = WRAPPED[kind.__name__]
            hint = f"give model.{inner}, and wrap what comes back anew" if inner else GATHER
            raise GrowError(f"the model is wrapped in {kind.__name__}", hint=hint)
