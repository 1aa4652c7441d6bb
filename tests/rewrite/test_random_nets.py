"""Random nets made of the operators with rules hold what the zoo holds, and so do random sequences of rewrites."""

from __future__ import annotations

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archir.axes.infer import infer_widths
from archir.errors import PassError
from archir.ir.parse import parse_graph
from archir.rewrite.morphism import WidthMorphism
from archir.rewrite.pipeline import apply_passes
from archir.rewrite.spec import parse_specs
from archir.testing import check_widths, leaves_of, outputs, randomise, relative_difference
from passes.catalog import PASSES
from passes.split import Split
from passes.widen import Widen
from tests.models.random_nets import STEPS, capture


@settings(max_examples=25)
@given(STEPS)
def test_every_free_width_of_a_random_net_is_what_it_claims_to_be(steps: list[tuple[str, int, int]]) -> None:
    graph, x = capture(steps)
    assert [p for v in check_widths(graph, (x,), units=2) for p in v.problems] == []


@settings(max_examples=12)
@given(STEPS, st.randoms(use_true_random=False))
def test_twenty_rewrites_of_a_random_net_keep_the_function(
    steps: list[tuple[str, int, int]], dice: random.Random
) -> None:
    graph, x = capture(steps)
    graph = randomise(graph.to(torch.float64))
    inputs = leaves_of((x,))
    right, done = outputs(graph, inputs), graph
    for _ in range(20):
        widths = [*infer_widths(done)]
        if not widths:
            break
        width = dice.choice(widths)
        choices: list[WidthMorphism] = [Split(width.name, (dice.randrange(width.size),)), Widen(width.name, count=2)]
        if width.size < 20:
            choices.append(Split(width.name))
        try:
            done = dice.choice(choices).apply(done)
        except PassError as error:
            assert error.why
    assert relative_difference(outputs(done, inputs), right) < 1e-9
    assert str(parse_graph(str(done))) == str(done)
    replayed = apply_passes(graph, parse_specs("; ".join(done.history), PASSES))
    assert str(replayed) == str(done)
