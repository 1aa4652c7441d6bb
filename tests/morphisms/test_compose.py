"""Composites: one score for a sequence, and what becomes of one when other rewrites go before it."""

from __future__ import annotations

import pytest
import torch

from archir.axes.infer import infer_widths
from archir.errors import PassError
from archir.rewrite.compose import Compose
from archir.rewrite.miss import Miss
from archir.rewrite.pipeline import Rewrites, apply_together, rewrite_together
from archir.rewrite.reference import Later
from archir.rewrite.spec import format_spec, parse_specs
from archir.rewrite.theta import Added
from archir.testing import evaluate, relative_difference
from passes.catalog import PASSES
from passes.prune import Prune
from passes.residual_branch import ResidualBranch
from passes.split import Split
from passes.widen import Widen
from tests.morphisms.every import capture, inject, outputs_of

NESTED = Compose((ResidualBranch("%2", hidden=6), ResidualBranch("%4"), Split("w0", (1,)), Widen("w1", 2)))
"""A branch, a branch within it, and changes of the old width and of the new one."""


def test_delta_is_exact_for_all_steps_together() -> None:
    graph, inputs, before = capture("resnet")
    (site,) = NESTED.sites(graph)
    perturbation = NESTED.perturbation(graph, site)
    assert not isinstance(perturbation, Miss)
    start = perturbation.initial_theta(before, 1)
    assert all(isinstance(key, Added) for key in start) and len(start) == 8
    theta = {key: torch.randn_like(t) * 0.1 for key, t in start.items()}
    changed = apply_together(graph, [(NESTED, theta)])
    moved = outputs_of(changed, evaluate(changed, inputs))
    assert relative_difference(moved, outputs_of(graph, before)) > 1e-3
    assert relative_difference(inject(graph, before, perturbation.delta(before, theta)), moved) < 1e-9


def test_a_composite_follows_its_graph() -> None:
    """After another rewrite its steps have other numbers, and do the same."""
    graph, inputs, before = capture("resnet")
    composite = Compose((ResidualBranch("%10", hidden=3), ResidualBranch("%12"), Split("w0")))
    after = ResidualBranch("%2").apply(graph)
    moved = composite.followed(Later(graph, after))
    assert [format_spec(s) for s in moved.steps[:2]] == [
        "residual-branch{after=%14, hidden=3}",
        "residual-branch{after=%16}",
    ]
    both = moved.apply(after)
    assert relative_difference(outputs_of(both, evaluate(both, inputs)), outputs_of(graph, before)) < 1e-9
    without = Compose(composite.steps[:2]).apply(graph), Compose(moved.steps[:2]).apply(after)
    assert without[1].parameter_count - after.parameter_count == without[0].parameter_count - graph.parameter_count


def test_two_composites_and_a_change_of_a_width_go_together() -> None:
    graph, inputs, before = capture("resnet")
    other = Compose((ResidualBranch("%10", hidden=3), ResidualBranch("%12")))
    width = infer_widths(graph).free[-1]
    members: Rewrites = [(NESTED, None), (Split(width.name, (0,)), None), (other, None)]
    rewriting = rewrite_together(graph, members)
    found = outputs_of(rewriting.after, evaluate(rewriting.after, inputs))
    assert relative_difference(found, outputs_of(graph, before)) < 1e-9
    assert len(rewriting.after.history) == len(NESTED.steps) + len(other.steps) + 1


def test_specifications_nest() -> None:
    text = "compose{steps=[deepen{after=%2}, compose{steps=[prune{width=w0, units=[1]}]}]}"
    if "deepen" not in PASSES:
        text = text.replace("deepen", "residual-branch")
    (found,) = parse_specs(text, PASSES)
    assert isinstance(found, Compose) and format_spec(found) == text
    assert found.steps[1] == Compose((Prune("w0", (1,)),))


@pytest.mark.parametrize(
    ("steps", "reason"),
    [((), "needs steps"), ((ResidualBranch("%99"),), "there is no value %99"), ((Split("w99"),), "there is no width")],
)
def test_why_a_composite_does_not_apply(steps: tuple[ResidualBranch | Split, ...], reason: str) -> None:
    graph, _, _ = capture("resnet")
    found = Compose(steps).match(graph)
    assert isinstance(found, Miss) and reason in found.reason
    assert not list(Compose(steps).sites(graph))
    with pytest.raises(PassError):
        Compose(steps).apply(graph)
