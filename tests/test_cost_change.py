"""What a patch adds to the cost of a graph, read off what it affects, is the difference between the two graphs."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archir import memory
from archir.cost import Cost, cost, cost_change
from archir.errors import GraphError, PassError
from archir.ir.builder import GraphBuilder
from archir.ir.graph import Patch
from archir.ir.patch import no_patch
from archir.memory import Memory
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism, WidthMorphism
from archir.rewrite.pipeline import apply_together
from archir.rewrite.set_cost import cost_of_set
from passes.catalog import PASSES
from passes.merge import Merge
from passes.prune import Prune
from passes.residual_branch import ResidualBranch
from passes.split import Split
from passes.squeeze_excite import SqueezeExcite
from passes.widen import Widen
from tests.models.captured import graph_of
from tests.models.random_patches import random_graph, random_patch
from tests.models.zoo import ZOO
from tests.morphisms.every import SPLICES

EVERY: tuple[Morphism, ...] = (*SPLICES, Split(), Prune(), Widen(count=3), Merge())


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_change_of_the_cost_is_the_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, seen = graph_of(name), Counter[bool]()
    insertion = Memory._insertion

    def look(self: Memory, patch: Patch, new: list[int]) -> int | None:
        found = insertion(self, patch, new)
        seen[found is not None] += 1
        return found

    monkeypatch.setattr(memory.Memory, "_insertion", look)
    costs = {batch: cost(graph, batch) for batch in (1, 3)}
    for morphism in EVERY:
        sites = list(morphism.sites(graph))
        for site in sites[:: max(1, len(sites) // 3)]:
            patch = site.members[0].rewrite(graph, site.found)
            for batch, before in costs.items():
                assert cost_change(patch, batch) == cost(patch.after, batch) - before, f"{morphism.name} {site.label}"
    if name in ("resnet", "gpt", "mlp", "vgg", "mobilenet"):
        assert seen[True] > 4 * seen[False], seen
    if name in ("vit", "siamese", "encoder"):
        assert seen[False], seen


@pytest.mark.parametrize("name", ["resnet", "gpt", "mobilenet", "shufflenet", "unet", "densenet", "lstm", "encoder"])
def test_the_cost_of_a_set_is_read_off_sizes(name: str) -> None:
    """Sets of changes of widths, with and without splices, on weights that hold no numbers."""
    graph, dice = graph_of(name), random.Random(0)
    hollow = graph.with_stored({i: t.to("meta") for i, t in graph.tensors.items()})
    widths = [m for morphism in (Split(), Prune(), Widen(count=2)) for s in morphism.sites(graph) for m in s.members]
    splices = [s.members[0] for morphism in (ResidualBranch(), SqueezeExcite()) for s in morphism.sites(graph)]
    counted = 0
    for count in (1, 3, 8, 20, 50):
        chosen = dice.sample(widths, min(count, len(widths))) + dice.sample(splices, min(count % 3, len(splices)))
        try:
            expected = cost(apply_together(graph, [(m, None) for m in chosen]))
        except PassError:
            continue
        assert cost_of_set(graph, chosen) == expected
        counted += 1
        of_widths = [m for m in chosen if isinstance(m, WidthMorphism)]
        assert cost_of_set(hollow, of_widths) == cost(apply_together(graph, [(m, None) for m in of_widths]))
    assert counted > 2


def test_simplifications_and_sequences_are_counted_alike() -> None:
    for name in ("resnet", "gpt", "unet"):
        graph = graph_of(name)
        found = PASSES["simplify"]().patch(graph)
        for morphism in (*SPLICES, Split()):
            site = next(iter(morphism.sites(found.after)), None)
            if site is not None:
                found = found.then(site.members[0].rewrite(found.after, site.found))
        assert len(found.after.history) > 3
        assert cost_change(found) == cost(found.after) - cost(graph)
        assert not isinstance(found, Miss) and cost_change(found) != Cost()


@given(st.randoms(use_true_random=False))
def test_the_change_of_the_cost_of_random_patches(dice: random.Random) -> None:
    """Splices, views of views, calls taken out, other operands, and all of it one after another."""
    graph = random_graph(dice, dice.randrange(3, 14))
    total = no_patch(graph)
    for _ in range(5):
        try:
            patch = random_patch(total.after, dice)
        except GraphError:
            continue
        total = total.then(patch)
        for found in (patch, total):
            for batch in (1, 3):
                assert cost_change(found, batch) == cost(found.after, batch) - cost(found.before, batch)


def test_a_splice_into_a_splice_runs_before_it() -> None:
    """The call that is made second runs first, and is much larger."""
    b = GraphBuilder()
    x = b.call("aten.relu.default", b.input("x", "f32[B, 4]"))
    graph = b.graph(b.call("aten.neg.default", x))
    with graph.edit(by="one") as e:
        inner = e.call("aten.tanh.default", x)
        e.replace_uses(x, inner, graph.uses(x))
    with e.graph.edit(by="two") as later:
        wide = later.call("aten.cat.default", (x,) * 9, 1)
        later.update(inner.node, arguments={"self": later.call("aten.slice.Tensor", wide, 1, 0, 4)})
        last = later.call("aten.relu.default", inner)
        later.replace_uses(inner, last, e.graph.uses(inner))
    patch = e.patch.then(later.patch)
    assert [n.id for n in patch.after.calls] != sorted(n.id for n in patch.after.calls)
    assert cost_change(patch) == cost(patch.after) - cost(graph)


def test_a_call_that_waits_for_less_runs_earlier() -> None:
    """What one call waited for is taken out: it now runs before a large one on another branch, and is kept then."""
    b = GraphBuilder()
    x = b.input("x", "f32[B, 4]")
    start = b.call("aten.relu.default", x)
    early = b.call("aten.cat.default", (start,) * 3, 1)
    total = b.call("aten.sum.dim_IntList", b.call("aten.cat.default", (start,) * 8, 1), (1,), True)
    graph = b.graph(b.call("aten.add.Tensor", early, total))
    with graph.edit(by="one") as e:
        waits = e.call("aten.neg.default", start)
        e.replace_uses(start, waits, [u for u in graph.uses(start) if u.node == early.node])
    with e.graph.edit(by="two") as later:
        new = later.call("aten.tanh.default", x)
        later.replace_uses(x, new, graph.uses(x))
        later.replace_uses(waits, new)
        later.remove(waits.node)
    found = cost_change(later.patch)
    assert found == cost(later.graph) - cost(e.graph) and found.peak_bytes > 0


def test_a_set_that_takes_a_run_time_size_away() -> None:
    """A size that depends on a width becomes -1: what it was read off late is then let go of earlier."""
    b = GraphBuilder()
    x = b.input("x", "f32[B, 4]")
    large = b.call("aten.cat.default", (x,) * 30, 1)
    total = b.call("aten.sum.dim_IntList", large, (1,), True)
    hidden = b.call("aten.linear.default", x, b.parameter("up.weight", "f32[6, 4]"))
    rows = b.call("operator.mul", b.call("aten.sym_size.int", large, 0), 2)
    pairs = b.call("aten.relu.default", b.call("aten.reshape.default", hidden, (rows, 3)))
    flat = b.call("aten.reshape.default", pairs, (-1, 6))
    made = b.call("aten.linear.default", flat, b.parameter("down.weight", "f32[2, 6]"))
    graph = b.graph(b.call("aten.add.Tensor", made, total))
    lengths = set()
    for morphism in (Split("w0", (0,)), Prune("w0", (0,)), Split("w1", (0,)), Prune("w1", (0,))):
        after = apply_together(graph, [(morphism, None)])
        assert cost_of_set(graph, [morphism]) == cost(after)
        lengths.add(len(after) - len(graph))
    assert lengths == {0, -2}
