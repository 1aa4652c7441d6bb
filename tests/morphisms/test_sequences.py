"""Sequences of twenty random rewrites of all kinds, on random nets and on models of the zoo."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.errors import PassError
from archir.ir.graph import Graph
from archir.ir.parse import parse_graph
from archir.rewrite.morphism import Morphism
from archir.rewrite.passes import Pass
from archir.rewrite.pipeline import apply_passes
from archir.rewrite.spec import format_spec, parse_specs
from archir.testing import leaves_of, outputs, randomise, relative_difference
from passes.catalog import PASSES
from passes.split import Split
from tests.models.random_nets import STEPS
from tests.models.random_nets import capture as capture_random
from tests.morphisms.every import capture

KINDS = tuple(name for name in PASSES if name != "compose")
LARGEST = 60_000
"""Parameters beyond which only removals and simplifications are drawn, so that the test stays quick."""


def draw(graph: Graph, dice: random.Random) -> Pass | None:
    """Return a random rewrite of a graph, None if the kind drawn has no place in it."""
    kind = PASSES[dice.choice(KINDS)]
    if not issubclass(kind, Morphism):
        return kind()
    sites = list(kind().sites(graph))
    if not sites:
        return None
    site = dice.choice(sites)
    return Split(site.label) if kind is Split and dice.random() < 0.1 else dice.choice(site.members)


def rewrite(graph: Graph, inputs: list[Tensor], dice: random.Random, steps: int = 20) -> Graph:
    """Return a graph after random rewrites, each held to what it says it preserves."""
    done, right = graph, outputs(graph, inputs)
    for _ in range(steps):
        pass_ = draw(done, dice)
        if pass_ is None:
            continue
        try:
            after = pass_.apply(done)
        except PassError as error:
            assert error.why, format_spec(pass_)
            continue
        if after.parameter_count > LARGEST and after.parameter_count > done.parameter_count:
            continue
        done, found = after, outputs(after, inputs)
        if pass_.preserves == "the function" or not isinstance(pass_, Morphism):
            assert relative_difference(found, right) < 1e-9, format_spec(pass_)
        right = found
    return done


def check(graph: Graph, done: Graph) -> None:
    """Check that text comes back, and that the record of a graph made of another makes it again."""
    assert str(parse_graph(str(done))) == str(done)
    replayed = apply_passes(graph, parse_specs("; ".join(done.history), PASSES))
    assert str(replayed) == str(done)
    assert replayed.history == done.history


@pytest.mark.slow
@settings(max_examples=12)
@given(STEPS, st.randoms(use_true_random=False))
def test_twenty_rewrites_of_a_random_net(steps: list[tuple[str, int, int]], dice: random.Random) -> None:
    graph, x = capture_random(steps)
    graph = randomise(graph.to(torch.float64))
    check(graph, rewrite(graph, leaves_of((x,)), dice))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "gpt", "mobilenet", "vit", "unet", "densenet", "mlp", "lstm", "swin"])
def test_twenty_rewrites_of_a_model(name: str, tmp_path: Path) -> None:
    graph, inputs, _ = capture(name)
    done = rewrite(graph, list(inputs), random.Random(len(name)))
    assert len(done.history) > 5
    check(graph, done)
    single = done.to(torch.float32)
    assert to_python(single, tmp_path).difference < 1e-5
    if name in ("resnet", "gpt", "mobilenet"):
        to_onnx(single, tmp_path / "net.onnx")
