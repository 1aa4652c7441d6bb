"""Simplify: all simplifications, again and again until nothing changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from archir.ir.graph import Graph, Patch
from archir.ir.patch import no_patch
from archir.rewrite.passes import Pass
from archir.rewrite.spec import format_spec
from passes.common_subexpressions import CommonSubexpressions
from passes.dead_code import DeadCode
from passes.fold_batch_norm import FoldBatchNorm
from passes.fold_constants import FoldConstants
from passes.fold_pad import FoldPad
from passes.fold_scale import FoldScale
from passes.fuse_parallel_linear import FuseParallelLinear
from passes.fuse_sequential_linear import FuseSequentialLinear
from passes.remove_identity import RemoveIdentity


@dataclass(frozen=True)
class Simplify(Pass):
    """Run every simplification until none finds anything.

    Parallel layers are fused last: batch normalisation goes into each of them first.

    Attributes:
        training: leave out what changes training: dropout and `detach` stay, and batch normalisation, factors and
            layers in a row are not folded.

    Source: ours.
    """

    name: ClassVar[str] = "simplify"
    summary: ClassVar[str] = "run all simplifications until nothing changes"
    preserves: ClassVar[str] = "the function in evaluation mode"

    training: bool = False

    def patch(self, graph: Graph) -> Patch:
        """Return what they change; nothing if there is nothing to simplify."""
        passes: list[Pass] = [
            RemoveIdentity(training=self.training),
            CommonSubexpressions(),
            FoldConstants(),
            FoldPad(),
        ]
        if not self.training:
            passes += [FoldBatchNorm(), FoldScale(), FuseSequentialLinear()]
        passes.append(DeadCode())
        done = no_patch(graph)
        while True:
            before = done.after
            done = _to_fixpoint(done, passes)
            done = done.then(FuseParallelLinear().patch(done.after))
            if done.after is before:
                break
        if done.after is graph:
            return done
        return replace(done, after=done.after.with_history(*graph.history, format_spec(self)))


def _to_fixpoint(done: Patch, passes: list[Pass]) -> Patch:
    while True:
        before = done.after
        for pass_ in passes:
            done = done.then(pass_.patch(done.after))
        if done.after is before:
            return done
