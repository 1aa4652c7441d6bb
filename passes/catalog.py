"""The passes that come with archir, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from archir.rewrite.compose import Compose
from archir.rewrite.morphism import Morphism
from archir.rewrite.passes import Pass
from passes.add_bias import AddBias
from passes.blend_activation import BlendActivation
from passes.common_subexpressions import CommonSubexpressions
from passes.dead_code import DeadCode
from passes.deepen import Deepen
from passes.dilate import Dilate
from passes.duplicate_block import DuplicateBlock
from passes.enlarge_kernel import EnlargeKernel
from passes.fold_batch_norm import FoldBatchNorm
from passes.fold_constants import FoldConstants
from passes.fold_pad import FoldPad
from passes.fold_scale import FoldScale
from passes.fuse_parallel_linear import FuseParallelLinear
from passes.fuse_sequential_linear import FuseSequentialLinear
from passes.merge import Merge
from passes.mixture_branch import MixtureBranch
from passes.parallel_branch import ParallelBranch
from passes.prune import Prune
from passes.remove_block import RemoveBlock
from passes.remove_identity import RemoveIdentity
from passes.residual_branch import ResidualBranch
from passes.self_attention import SelfAttention
from passes.shrink_kernel import ShrinkKernel
from passes.simplify import Simplify
from passes.skip_connection import SkipConnection
from passes.split import Split
from passes.squeeze_excite import SqueezeExcite
from passes.widen import Widen

SIMPLIFICATIONS: tuple[type[Pass], ...] = (
    CommonSubexpressions,
    DeadCode,
    FoldBatchNorm,
    FoldConstants,
    FoldPad,
    FoldScale,
    FuseParallelLinear,
    FuseSequentialLinear,
    RemoveIdentity,
    Simplify,
)
"""Passes that keep the function in evaluation mode and have no candidates."""

MORPHISMS: tuple[type[Pass], ...] = (
    AddBias,
    BlendActivation,
    Compose,
    Deepen,
    Dilate,
    DuplicateBlock,
    EnlargeKernel,
    Merge,
    MixtureBranch,
    ParallelBranch,
    Prune,
    RemoveBlock,
    ResidualBranch,
    SelfAttention,
    ShrinkKernel,
    SkipConnection,
    Split,
    SqueezeExcite,
    Widen,
)
"""Passes that have candidates."""

PASSES: Mapping[str, type[Pass]] = MappingProxyType({p.name: p for p in (*MORPHISMS, *SIMPLIFICATIONS)})
"""Every pass by the name it has in specifications."""


def morphisms() -> tuple[Morphism, ...]:
    """Return the morphisms whose candidates are scored unless others are asked for."""
    return (Split(), Prune())
