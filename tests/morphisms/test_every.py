"""Every morphism that is no change of a width, on every model: the function at θ = 0, and Δ at any other."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from archir.emit.python import to_python
from archir.ir.parse import parse_graph
from archir.rewrite.equations import Miss
from archir.rewrite.morphism import Morphism, WidthMorphism
from archir.rewrite.pipeline import apply_passes, apply_together, rewrite_together
from archir.rewrite.spec import format_spec, parse_specs
from archir.score.combination import Combination
from archir.score.families import find_families
from archir.testing import evaluate, relative_difference
from passes.catalog import PASSES
from passes.residual_branch import ResidualBranch
from passes.split import Split
from passes.widen import Widen
from tests.morphisms.every import SPLICES, capture, cases, inject, outputs_of, some_sites

IDS = [f"{m.name}-{name}" for m, name in cases()]


@pytest.mark.parametrize(("morphism", "name"), list(cases()), ids=IDS)
def test_the_function_is_kept_and_delta_is_exact(morphism: Morphism, name: str) -> None:
    graph, inputs, before = capture(name)
    expected = outputs_of(graph, before)
    for site in some_sites(morphism, graph, 3):
        (member,) = site.members
        assert member.match(graph) is None
        after = member.apply(graph)
        if morphism.preserves == "the function":
            found = outputs_of(after, evaluate(after, inputs))
            assert relative_difference(found, expected) < 1e-9, format_spec(member)
        perturbation = morphism.perturbation(graph, site)
        if isinstance(perturbation, Miss):
            assert perturbation.reason
            continue
        assert perturbation.needs <= before.keys()
        theta = perturbation.initial_theta(before, 1)
        deltas = perturbation.delta(before, theta)
        changed = apply_together(graph, [(member, theta or None)])
        assert theta.keys() == perturbation.theta.keys()
        moved = outputs_of(changed, evaluate(changed, inputs))
        assert relative_difference(inject(graph, before, deltas), moved) < 1e-9, format_spec(member)


@pytest.mark.parametrize("morphism", SPLICES, ids=lambda m: m.name)
def test_some_model_has_sites_where_theta_moves_the_outputs(morphism: Morphism) -> None:
    moved = 0
    for name in ("resnet", "gpt", "mobilenet", "vit", "unet", "dilated_pyramid"):
        graph, inputs, before = capture(name)
        for site in some_sites(morphism, graph, 2):
            perturbation = morphism.perturbation(graph, site)
            if isinstance(perturbation, Miss):
                continue
            start = perturbation.initial_theta(before, 1)
            theta = {k: torch.ones_like(t) * t.abs().max().clamp(min=0.1) + t for k, t in start.items()}
            changed = apply_together(graph, [(site.members[0], theta or None)])
            moved += relative_difference(outputs_of(changed, evaluate(changed, inputs)), outputs_of(graph, before)) > 0
    assert moved


@pytest.mark.parametrize("morphism", SPLICES, ids=lambda m: m.name)
def test_text_and_specification_come_back(morphism: Morphism) -> None:
    for name in ("resnet", "gpt", "mobilenet"):
        graph, _, _ = capture(name)
        for site in some_sites(morphism, graph, 2):
            (member,) = site.members
            after = member.apply(graph)
            assert str(parse_graph(str(after))) == str(after)
            again = parse_specs(format_spec(member), PASSES)
            assert again == [member]
            assert str(apply_passes(graph, again)) == str(after)


@pytest.mark.parametrize("name", ["resnet", "gpt", "mobilenet", "vit", "unet", "shufflenet", "mlp", "lstm", "encoder"])
def test_rewrites_of_all_kinds_go_together(name: str) -> None:
    """A set of splices and changes of widths, found in one graph, keeps the function; its optimiser state fits."""
    graph, inputs, before = capture(name)
    keeping = [m for m in SPLICES if m.preserves == "the function"]
    families, _ = find_families(graph, [*keeping, Split(), Widen(count=2)])
    dice = random.Random(0)
    dice.shuffle(families)
    chosen = Combination(graph)
    for family in families:
        more = chosen.plus(dice.choice(family.candidates))
        if len(chosen.members) < 12 and more is not None:
            chosen = more
    members = [c.morphism for c in chosen.members]
    assert {isinstance(m, WidthMorphism) for m in members} == {True, False}
    rewriting = rewrite_together(graph, [(m, None) for m in members])
    found = outputs_of(rewriting.graph, evaluate(rewriting.graph, inputs))
    assert relative_difference(found, outputs_of(graph, before)) < 1e-9
    carried = rewriting.carry(dict(graph.tensors))
    assert all(t.shape == rewriting.graph.tensors[i].shape for i, t in carried.items())
    assert carried.keys() == graph.tensors.keys() & rewriting.graph.tensors.keys()


@pytest.mark.parametrize("morphism", [m for m in SPLICES if m.name != "dilate"], ids=lambda m: m.name)
def test_what_is_new_is_where_the_rest_is(morphism: Morphism) -> None:
    """A graph whose tensors are on another device than the CPU, here that of no numbers at all."""
    for name in ("resnet", "gpt"):
        graph, _, _ = capture(name)
        sites = some_sites(morphism, graph, 2)
        away = graph.with_tensors({n: graph.tensor(n).to("meta") for n in graph.by_name})
        for site in sites:
            after = site.members[0].apply(away)
            assert {t.device.type for t in after.tensors.values()} == {"meta"}


def test_emitted_source_stays_a_sequence_of_layers(tmp_path: Path) -> None:
    """What is spliced in after an element of an `nn.Sequential` becomes part of that element."""
    graph, _, _ = capture("vgg")
    *_, site = ResidualBranch().sites(graph)
    to_python(site.members[0].apply(graph).to(torch.float32), tmp_path)
    (source,) = tmp_path.glob("*.py")
    assert "nn.Sequential(nn.Linear(2048, 64), GrownReLU(), nn.Linear(64, 10))" in source.read_text()
