"""FoldConstants: what does not depend on inputs or trainable parameters is computed once and stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from archir.errors import PassError
from archir.ir.edit import Edit
from archir.ir.execute import call, mode_argument
from archir.ir.graph import Graph, Patch
from archir.ir.node import PARAMETER, Node, Parameter, Value
from archir.ir.patch import no_patch
from archir.ir.types import TensorType
from archir.rewrite.passes import Pass
from archir.rewrite.spec import format_spec
from passes.common_subexpressions import is_pure
from passes.sweep import written_in_training


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Store the results of calls whose operands are stored tensors that are never trained, or that have none.

    Random calls are left alone, and so are those that read what training writes, such as running statistics. Training
    is the same afterwards. The values are computed in the precision of the graph.

    Attributes:
        limit: largest number of elements of a stored result.

    Source: the standard optimisation of compilers.
    """

    name: ClassVar[str] = "fold-constants"
    summary: ClassVar[str] = "compute once what depends on no input and nothing trained"
    preserves: ClassVar[str] = "the function, in training too"

    limit: int = 1 << 20

    def patch(self, graph: Graph) -> Patch:
        """Return a patch with constants stored; an empty one if there are none.

        Raises:
            PassError: the limit is negative.
        """
        if self.limit < 0:
            raise PassError("fold-constants needs a limit of at least 0 elements", why=f"limit is {self.limit}")
        constants = self._constants(graph)
        stored = [v for v in constants if self._is_needed(graph, v, constants)]
        if not stored:
            return no_patch(graph)
        with graph.edit(by=format_spec(self)) as edit:
            for value in stored:
                node = graph.node(value.node)
                tensor = constants[value].clone(memory_format=torch.contiguous_format)
                new = edit.add_parameter(_name(graph, node), tensor, kind="constant", location=node.location)
                known = edit.node(new.node).parameter
                assert known is not None
                edit.update(new.node, parameter=Parameter(known.names, known.kind, False, persistent=False))
                edit.replace_uses(value, new)
            _drop_unused(edit, graph, constants)
        return edit.patch

    def _constants(self, graph: Graph) -> Mapping[Value, torch.Tensor]:
        """Return the results of all calls that can be computed now."""
        written = written_in_training(graph)
        known: dict[Value, torch.Tensor] = {}
        for node in graph.parameters:
            if not node.is_trainable and node.id not in written:
                known[Value(node.id)] = graph.tensors[node.id]
        found: dict[Value, torch.Tensor] = {}
        for node in graph.calls:
            if all(v in known for v in node.values) and self._is_foldable(node):
                with torch.no_grad():
                    results = call(node, known.__getitem__, device=graph.device)
                made = {Value(node.id, i): r for i, r in enumerate(results)}
                known |= made
                found |= made
        return found

    def _is_foldable(self, node: Node) -> bool:
        sizes = [_numel(t) if isinstance(t, TensorType) else None for t in node.results]
        return is_pure(node) and mode_argument(node) is None and all(s is not None and s <= self.limit for s in sizes)

    def _is_needed(self, graph: Graph, value: Value, constants: Mapping[Value, torch.Tensor]) -> bool:
        """Say whether a call that is not computed now uses a value."""
        return any(Value(use.node) not in constants for use in graph.uses(value))


def _numel(type_: TensorType) -> int | None:
    sizes = [s for s in type_.shape if isinstance(s, int)]
    return torch.Size(sizes).numel() if len(sizes) == len(type_.shape) else None


def _name(graph: Graph, node: Node) -> str:
    """Return a name under the module a call belongs to that no submodule has."""
    module = node.location.module if node.location else ""
    name = f"{module}.constant" if module else "constant"
    modules = {n.rpartition(".")[0] for n in graph.by_name} | {c.location.module for c in graph.calls if c.location}
    while any(m == name or m.startswith(f"{name}.") for m in modules):
        name += "_"
    return name


def _drop_unused(edit: Edit, graph: Graph, constants: Mapping[Value, torch.Tensor]) -> None:
    """Remove the calls that were computed, and the stored tensors that only they used."""
    made = {v.node for v in constants}
    read = {v.node for i in made for v in graph.node(i).values}
    for node in _latest_first(graph, made | read):
        if not any(map(edit.uses, node.made)):
            edit.remove(node.id)


def _latest_first(graph: Graph, ids: set[int]) -> Iterator[Node]:
    return (n for n in reversed(graph.nodes) if n.id in ids and (n.is_call or n.op == PARAMETER))
