"""Every morphism that is no change of a width, on every model: the function at θ = 0, and Δ at any other."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from archir.emit.python import to_python
from archir.ir.parse import parse_graph
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism, WidthMorphism
from archir.rewrite.pipeline import apply_passes, apply_together, rewrite_together
from archir.rewrite.spec import format_spec, parse_specs
from archir.scoring.combination import Combination
from archir.scoring.families import find_families
from archir.testing import evaluate, relative_difference
from passes.catalog import PASSES
from passes.residual_branch import ResidualBranch
from passes.split import Split
from passes.widen import Widen
from tests.models.captured import graph_of
from tests.models.zoo import ZOO
from tests.morphisms.every import PLACES, SPLICES, capture, inject, outputs_of, some_sites

CASES = [(morphism, name) for morphism in SPLICES for name in PLACES[morphism.name]]


@pytest.mark.parametrize(("morphism", "name"), CASES, ids=[f"{m.name}-{name}" for m, name in CASES])
def test_the_function_is_kept_and_delta_is_exact(morphism: Morphism, name: str) -> None:
    graph, inputs, before = capture(name)
    expected = outputs_of(graph, before)
    sites = some_sites(morphism, graph, 3)
    assert sites
    for site in sites:
        (member,) = site.members
        assert not isinstance(member.match(graph), Miss)
        after = member.apply(graph)
        if morphism.preserves == "the function":
            found = outputs_of(after, evaluate(after, inputs))
            assert relative_difference(found, expected) < 1e-9, format_spec(member)
        perturbation = morphism.perturbation(graph, site)
        assert not isinstance(perturbation, Miss), perturbation
        assert perturbation.needs <= before.keys()
        theta = perturbation.initial_theta(before, 1)
        deltas = perturbation.delta(before, theta)
        changed = apply_together(graph, [(member, theta or None)])
        assert theta.keys() == perturbation.theta.keys()
        moved = outputs_of(changed, evaluate(changed, inputs))
        assert relative_difference(moved, expected) > 1e-9, "θ changes nothing"
        assert relative_difference(inject(graph, before, deltas), moved) < 1e-9, format_spec(member)


@pytest.mark.parametrize("morphism", SPLICES, ids=lambda m: m.name)
def test_elsewhere_there_are_no_sites(morphism: Morphism) -> None:
    elsewhere = sorted(ZOO.keys() - PLACES[morphism.name])
    assert elsewhere
    assert [name for name in elsewhere if list(morphism.sites(graph_of(name)))] == []


@pytest.mark.parametrize("morphism", SPLICES, ids=lambda m: m.name)
def test_text_and_specification_come_back(morphism: Morphism) -> None:
    for name in PLACES[morphism.name][1:4] or PLACES[morphism.name]:
        graph, _, _ = capture(name)
        sites = some_sites(morphism, graph, 2)
        assert sites
        for site in sites:
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
    found = outputs_of(rewriting.after, evaluate(rewriting.after, inputs))
    assert relative_difference(found, outputs_of(graph, before)) < 1e-9
    carried = rewriting.carry(dict(graph.tensors))
    assert all(t.shape == rewriting.after.tensors[i].shape for i, t in carried.items())
    assert carried.keys() == graph.tensors.keys() & rewriting.after.tensors.keys()


@pytest.mark.parametrize("morphism", [m for m in SPLICES if m.name != "dilate"], ids=lambda m: m.name)
def test_what_is_new_is_where_the_rest_is(morphism: Morphism) -> None:
    """A graph whose tensors are on another device than the CPU, here that of no numbers at all.

    `dilate` reads the numbers of kernels.
    """
    for name in PLACES[morphism.name][1:3] or PLACES[morphism.name]:
        graph, _, _ = capture(name)
        sites = some_sites(morphism, graph, 2)
        assert sites
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
