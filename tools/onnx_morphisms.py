"""Random rewrites of networks that were read from ONNX files, and what both exports of them make."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.errors import ArchirError, PassError
from archir.ir.graph import Graph
from archir.ir.inputs import random_inputs
from archir.rewrite.morphism import Morphism
from archir.rewrite.passes import Pass
from archir.rewrite.spec import format_spec
from archir.testing import leaves_of, outputs, randomise, relative_difference
from frontends.onnx.read import from_onnx
from passes.catalog import PASSES
from tests.models.onnx_files import export_model

MODELS = ("resnet", "mobilenet", "vit", "gpt", "mlp", "unet", "shufflenet", "lstm")
KINDS = tuple(name for name in PASSES if name != "compose")
LARGEST = 60_000
"""Parameters beyond which nothing is added any more, so that it stays quick."""

SAME = 1e-9
"""The largest relative difference in float64 of what keeps the function."""


@dataclass(frozen=True)
class Trial:
    """What came of a network that was read, rewritten and written.

    Attributes:
        model: the model of the zoo.
        seed: the seed of its rewrites.
        rewrites: how many there were.
        problems: what went wrong, in words.
    """

    model: str
    seed: int
    rewrites: int
    problems: tuple[str, ...]


def trial(model: str, seed: int, rewrites: int) -> Trial:
    """Export a model, read it back, rewrite it at random, and write it as source and as ONNX, which check themselves.

    Args:
        model: the model of the zoo.
        seed: seed of the rewrites.
        rewrites: how many to carry out.
    """
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.onnx"
        export_model(model, file, optimize=bool(seed % 2))
        graph, done, problems = rewritten(from_onnx(file), dice, rewrites)
        for write in (to_python, lambda g, f: to_onnx(g, Path(f) / "again.onnx")):
            try:
                write(graph, folder)
            except ArchirError as error:
                problems.append(str(error))
    return Trial(model, seed, done, tuple(problems))


def rewritten(graph: Graph, dice: random.Random, rewrites: int) -> tuple[Graph, int, list[str]]:
    """Return a graph after random rewrites, how many there were, and which changed what they say they keep."""
    done = randomise(graph.to(torch.float64))
    args, kwargs = random_inputs(done)
    inputs = leaves_of(args, kwargs)
    right, count = outputs(done, inputs), 0
    problems: list[str] = []
    for _ in range(10 * rewrites):
        if count == rewrites:
            break
        drawn = _draw(done, dice)
        if drawn is None:
            continue
        try:
            after = drawn.apply(done)
        except PassError:
            continue  # it says why it does not apply
        if after.parameter_count > max(LARGEST, done.parameter_count):
            continue
        done, found, count = after, outputs(after, inputs), count + isinstance(drawn, Morphism)
        keeps = drawn.preserves == "the function" or not isinstance(drawn, Morphism)
        if keeps and relative_difference(found, right) > SAME:
            problems.append(f"{format_spec(drawn)} changes the function")
        right = found
    return done.to(torch.float32), count, problems


def _draw(graph: Graph, dice: random.Random) -> Pass | None:
    """Return a random rewrite, None if the kind drawn has no place."""
    kind = PASSES[dice.choice(KINDS)]
    if not issubclass(kind, Morphism):
        return kind()
    sites = list(kind().sites(graph))
    return dice.choice(dice.choice(sites).members) if sites else None
