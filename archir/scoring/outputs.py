"""What a model returns where that is a mapping, as a loss gets it."""

from __future__ import annotations

from typing import Any

from torch.utils import _pytree as pytree


class Outputs(dict[str, Any]):
    """What a model returns where that is a mapping, as a loss gets it: entries may be asked for as attributes, too.

    So a loss that was written for a `ModelOutput` of the package `transformers` takes what the graph of it returns.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"the model returns no {name!r}: it returns {', '.join(self)}")
        return self[name]


# Functions such as `tree_map` take a class that is not registered for a leaf, one that is derived from dict, too.
pytree.register_pytree_node(
    Outputs,
    lambda outputs: (list(outputs.values()), list(outputs)),
    lambda values, names: Outputs(zip(names, values, strict=True)),
    serialized_type_name="archir.scoring.outputs.Outputs",
)
