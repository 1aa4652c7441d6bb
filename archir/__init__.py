"""archir: a compiler whose programs are neural-network architectures.

    graph = archir.trace(model, (x,))
    for width in archir.widths(graph): ...
    run = archir.grow(graph, train=(x, y), validation=(x, y), budget=60_000)
    run = archir.compress(run.graph, train=(x, y), validation=(x, y), budget=archir.Budget(flops=0.5))
    plan = archir.propose(model, batches, budget=60_000); model, optimizer = plan.apply(model, optimizer)
    archir.to_python(run.graph, "out")

Public names are loaded when they are first used, so that `import archir` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from archir.errors import (
    ArchirError,
    CaptureError,
    CaptureWarning,
    EmitError,
    FileError,
    GraphError,
    GrowError,
    ParseError,
    PassError,
    ProcessError,
    ScoreError,
)

if TYPE_CHECKING:
    from archir.api import apply, candidates, compress, grow, passes, prune_with_compensation, score, widths
    from archir.axes.widths import Width, Widths
    from archir.comparison import Difference, compare
    from archir.emit.onnx import to_onnx
    from archir.emit.python import to_python
    from archir.growing.batches import Augmentation
    from archir.growing.data import load_data
    from archir.growing.grow import Run
    from archir.growing.optimisers import OptimiserOptions
    from archir.growing.options import GrowOptions
    from archir.growing.plan import Plan
    from archir.ir.builder import GraphBuilder
    from archir.ir.edit import Edit
    from archir.ir.graph import Graph, Patch
    from archir.ir.load import load
    from archir.ir.node import Value
    from archir.ir.registry import admit
    from archir.kinds import morphisms
    from archir.rewrite.compose import Compose
    from archir.rewrite.insertion import Insertion, Start, splice
    from archir.rewrite.miss import Miss
    from archir.rewrite.morphism import Morphism, Site
    from archir.rewrite.passes import Pass
    from archir.rewrite.reference import Reference, find_value, refer
    from archir.rewrite.spec import format_spec
    from archir.rewrite.surroundings import layer_ends, look_around
    from archir.scoring.budget import Budget, Prices
    from archir.scoring.families import Candidate
    from archir.scoring.losses import Loss, coupled
    from archir.scoring.options import ScoreOptions
    from archir.scoring.scores import Score, Scores, Selection
    from archir.scoring.sets import CandidateSet
    from archir.steps import propose, write_back
    from frontends.onnx.read import from_onnx
    from frontends.pytorch import trace

__all__ = [
    "ArchirError",
    "Augmentation",
    "Budget",
    "Candidate",
    "CandidateSet",
    "CaptureError",
    "CaptureWarning",
    "Compose",
    "Difference",
    "Edit",
    "EmitError",
    "FileError",
    "Graph",
    "GraphBuilder",
    "GraphError",
    "GrowError",
    "GrowOptions",
    "Insertion",
    "Loss",
    "Miss",
    "Morphism",
    "OptimiserOptions",
    "ParseError",
    "Pass",
    "PassError",
    "Patch",
    "Plan",
    "Prices",
    "ProcessError",
    "Reference",
    "Run",
    "Score",
    "ScoreError",
    "ScoreOptions",
    "Scores",
    "Selection",
    "Site",
    "Start",
    "Value",
    "Width",
    "Widths",
    "admit",
    "apply",
    "candidates",
    "compare",
    "compress",
    "coupled",
    "find_value",
    "format_spec",
    "from_onnx",
    "grow",
    "layer_ends",
    "load",
    "load_data",
    "look_around",
    "morphisms",
    "passes",
    "propose",
    "prune_with_compensation",
    "refer",
    "score",
    "splice",
    "to_onnx",
    "to_python",
    "trace",
    "widths",
    "write_back",
]

_HOMES = {
    **dict.fromkeys(
        (
            "apply",
            "candidates",
            "compress",
            "grow",
            "passes",
            "prune_with_compensation",
            "score",
            "widths",
        ),
        "archir.api",
    ),
    **dict.fromkeys(("Width", "Widths"), "archir.axes.widths"),
    **dict.fromkeys(("Difference", "compare"), "archir.comparison"),
    "to_onnx": "archir.emit.onnx",
    "to_python": "archir.emit.python",
    "Augmentation": "archir.growing.batches",
    **dict.fromkeys(("Budget", "Prices"), "archir.scoring.budget"),
    "load_data": "archir.growing.data",
    "Run": "archir.growing.grow",
    "OptimiserOptions": "archir.growing.optimisers",
    "GrowOptions": "archir.growing.options",
    "Plan": "archir.growing.plan",
    "GraphBuilder": "archir.ir.builder",
    "Edit": "archir.ir.edit",
    "Graph": "archir.ir.graph",
    "load": "archir.ir.load",
    "morphisms": "archir.kinds",
    "Value": "archir.ir.node",
    "admit": "archir.ir.registry",
    "Compose": "archir.rewrite.compose",
    "Miss": "archir.rewrite.miss",
    **dict.fromkeys(("Insertion", "Start", "splice"), "archir.rewrite.insertion"),
    **dict.fromkeys(("Morphism", "Site"), "archir.rewrite.morphism"),
    "Pass": "archir.rewrite.passes",
    "Patch": "archir.ir.graph",
    **dict.fromkeys(("Reference", "find_value", "refer"), "archir.rewrite.reference"),
    "format_spec": "archir.rewrite.spec",
    **dict.fromkeys(("layer_ends", "look_around"), "archir.rewrite.surroundings"),
    "Candidate": "archir.scoring.families",
    **dict.fromkeys(("Loss", "coupled"), "archir.scoring.losses"),
    "ScoreOptions": "archir.scoring.options",
    **dict.fromkeys(("Score", "Scores", "Selection"), "archir.scoring.scores"),
    "CandidateSet": "archir.scoring.sets",
    **dict.fromkeys(("propose", "write_back"), "archir.steps"),
    "from_onnx": "frontends.onnx.read",
    "trace": "frontends.pytorch",
}
"""The modules the names are loaded from."""


def __getattr__(name: str) -> object:
    """Load a public name."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
