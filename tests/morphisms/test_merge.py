"""Merging of units: the inverse of a split, sets, what cannot be merged, and what the prediction is worth."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr

from archir.api import score
from archir.axes.infer import infer_widths
from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.errors import PassError
from archir.growing.batches import Batches
from archir.growing.examples import Examples
from archir.growing.training import evaluate as evaluate_on
from archir.ir.graph import Graph
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import UnitMorphism
from archir.rewrite.pipeline import apply_together, rewrite_together
from archir.rewrite.spec import format_spec, parse_specs
from archir.scoring.losses import find_loss
from archir.testing import evaluate, outputs, relative_difference
from frontends.pytorch import trace
from passes.catalog import PASSES
from passes.merge import Merge, nearest_pairs
from passes.prune import Prune
from passes.split import Split
from tests.models.vision import VGG
from tests.models.zoo import FROZEN, ZOO
from tests.morphisms.every import capture, outputs_of


def pairs_of(graph: Graph, width: str) -> list[tuple[int, ...]]:
    """Return the pairs of the family of a width."""
    (site,) = (s for s in Merge().sites(graph) if s.label == width)
    return [m.units for m in site.members if isinstance(m, Merge)]


@pytest.mark.parametrize("name", sorted(ZOO.keys() - FROZEN - {"permutation", "outer_product"}))
def test_it_takes_a_split_back(name: str) -> None:
    """The tensors are as they were, and so is the text once sizes are spelled as rewrites spell them."""
    graph, _, _ = capture(name)
    dice = random.Random(0)
    sites = list(Split().sites(graph))
    assert sites
    for site in sites:
        member = dice.choice(site.members)
        assert isinstance(member, Split)
        grown = member.apply(graph)
        size = infer_widths(graph)[member.width].size
        assert infer_widths(grown)[member.width].size == size + 1
        merge = Merge(member.width, (*member.units, size))
        assert not isinstance(merge.match(grown), Miss)
        back = merge.apply(grown)
        assert str(merge.apply(member.apply(back))) == str(back)
        assert str(back) == str(graph) or name not in ("vgg", "resnet", "densenet", "mobilenet", "unet", "mlp", "lstm")
        assert all(torch.equal(t, graph.tensors[i]) for i, t in back.tensors.items())


@pytest.mark.parametrize("name", ["vgg", "resnet", "gpt", "lstm", "shufflenet", "grouped_query_attention"])
def test_all_units_split_and_merged_again_leave_the_function(name: str) -> None:
    graph, inputs, before = capture(name)
    for site in list(Split().sites(graph))[:4]:
        size = infer_widths(graph)[site.label].size
        grown = Split(site.label).apply(graph)
        assert sorted(pairs_of(grown, site.label)) == [(u, u + size) for u in range(size)]
        back = Merge(site.label, tuple(n for u in range(size) for n in (u, u + size))).apply(grown)
        assert relative_difference(outputs_of(back, evaluate(back, inputs)), outputs_of(graph, before)) < 1e-9


def test_weights_are_averaged_and_outgoing_ones_added_up() -> None:
    graph, _, _ = capture("vgg")
    merged = Merge("w0", (3, 1)).apply(graph)
    old, new = graph.tensor("features.0.0.weight"), merged.tensor("features.0.0.weight")
    assert torch.equal(new[1], (old[1] + old[3]) / 2)
    assert torch.equal(new[3], old[4])
    old, new = graph.tensor("features.2.0.weight"), merged.tensor("features.2.0.weight")
    assert torch.equal(new[:, 1], old[:, 1] + old[:, 3])
    assert torch.equal(new[:, 0], old[:, 0])


def test_sets_of_merges_splits_and_prunes_are_carried_out_as_one() -> None:
    graph, inputs, _ = capture("vgg")
    one = apply_together(graph, [(Merge("w0", (0, 5)), None), (Merge("w0", (7, 2)), None), (Prune("w0", (4,)), None)])
    merged = Merge("w0", (0, 5, 7, 2)).apply(graph)
    two = Prune("w0", (4,)).apply(merged)
    assert relative_difference(outputs(one, inputs), outputs(two, inputs)) < 1e-12
    both = rewrite_together(graph, [(Merge("w0", (0, 5)), None), (Split("w0", (1,)), None)])
    expected = Split("w0", (1,)).apply(Merge("w0", (0, 5)).apply(graph))
    assert relative_difference(outputs(both.after, inputs), outputs(expected, inputs)) < 1e-12
    carried = both.carry(dict(graph.tensors))
    assert all(t.shape == both.after.tensors[i].shape for i, t in carried.items())
    others: list[UnitMorphism] = [Merge("w0", (5, 6)), Prune("w0", (5,)), Prune("w0", (0,)), Split("w0", (5,))]
    for other in others:
        with pytest.raises(PassError, match="merged and changed otherwise"):
            apply_together(graph, [(Merge("w0", (0, 5)), None), (other, None)])


def test_what_cannot_be_merged_is_said() -> None:
    graph, _, _ = capture("vgg")
    for units in ((), (1,), (1, 2, 3)):
        found = Merge("w0", units).match(graph)
        assert isinstance(found, Miss)
        assert "no pairs" in found.reason
        with pytest.raises(PassError, match="no pairs"):
            Merge("w0", units).apply(graph)
        with pytest.raises(PassError, match="needs pairs"):
            apply_together(graph, [(Merge("w0", units), None)])
    with pytest.raises(PassError, match="units 0 to"):
        Merge("w0", (1, 99)).apply(graph)
    with pytest.raises(PassError, match="named twice"):
        Merge("w0", (1, 1)).apply(graph)
    for name, reason in {
        "gpt": "a layer norm",
        "outer_product": "two factors",
        "encoder": "can take the division",
    }.items():
        graph, _, _ = capture(name)
        sites = {s.label for s in Merge().sites(graph)}
        missed = {w.name: Merge(w.name, (0, 1)).match(graph) for w in infer_widths(graph) if w.name not in sites}
        assert all(isinstance(m, Miss) and m.reason for m in missed.values())
        assert any(isinstance(m, Miss) and reason in m.reason for m in missed.values())


def test_the_specification_comes_back_and_what_is_written_is_the_same(tmp_path: Path) -> None:
    for name in ("vgg", "gpt"):
        graph, _, _ = capture(name)
        site = next(iter(Merge().sites(graph)))
        after = site.members[0].apply(graph)
        assert parse_specs(format_spec(site.members[0]), PASSES) == [site.members[0]]
        to_python(after.to(torch.float32), tmp_path)
        assert to_onnx(after.to(torch.float32), tmp_path / "net.onnx").difference < 1e-4


def test_pairs_are_disjoint_and_nearest_first() -> None:
    points = torch.randn(31, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distance = torch.cdist(points, points)
    expected: list[tuple[int, int]] = []
    left = set(range(31))
    while len(left) > 1:
        pair = min(((i, j) for i in left for j in left if i < j), key=lambda p: float(distance[p]))
        expected.append(pair)
        left -= set(pair)
    assert nearest_pairs(points) == expected
    assert sorted(nearest_pairs(torch.zeros(5, 2))) == [(0, 1), (2, 3)]


def test_predictions_rank_pairs_as_the_truth_does() -> None:
    torch.manual_seed(0)
    graph = trace(VGG(), (torch.randn(2, 3, 32, 32),))
    for width in infer_widths(graph):
        graph = Split(width.name, tuple(range(4))).apply(graph)
    noisy = {n: 0.02 * torch.randn_like(graph.tensor(n)) + graph.tensor(n) for n in graph.by_name if "weight" in n}
    graph = graph.with_tensors(noisy)
    on = Examples(torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,)))
    found = score(graph, Batches(on, 32), morphisms=(Merge(),), steps=1, refine=30)
    loss = find_loss("cross_entropy")
    before = evaluate_on(graph.module(), on, loss).loss
    best = [s for s in found if s.refined]
    true = [evaluate_on(found.apply([s]).module(), on, loss).loss - before for s in best]
    assert len(best) == 30
    assert spearmanr([s.predicted for s in best], true).statistic > 0.9
