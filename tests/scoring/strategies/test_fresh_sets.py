"""Fresh units come in sets that double: those that add up go together, those that couple exclude each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from archir.axes.infer import infer_widths
from archir.axes.widths import Widths
from archir.cost import cost
from archir.errors import PassError
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.rewrite.morphism import Morphism, Site
from archir.rewrite.pipeline import apply_together
from archir.rewrite.theta import Theta, by_node
from archir.scoring.budget import Budget
from archir.scoring.combination import Combination
from archir.scoring.families import Candidate, Family
from archir.scoring.objective import make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.score import score
from archir.scoring.scores import Scores, Selection
from archir.scoring.strategies.context import make_context
from archir.testing import evaluate, outputs, randomise, relative_difference
from frontends.pytorch import trace
from passes.deepen import Deepen
from passes.prune import Prune
from passes.split import Split
from passes.widen import MANY, Widen, adds_up
from tests.scoring.strategies.nets import drawn, network

EXACT = 1e-12


class Sequences(nn.Module):
    """A block on a stream under layer norms, with queries, keys and values in one layer."""

    def __init__(self, width: int = 6, heads: int = 2, size: int = 2, hidden: int = 5) -> None:
        super().__init__()
        self.heads = heads
        self.table, self.places = nn.Embedding(9, width), nn.Parameter(torch.randn(4, width))
        self.before, self.between, self.after = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * heads * size), nn.Linear(heads * size, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.head = nn.Linear(width, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) + self.places
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        x = x + self.down(torch.tanh(self.up(self.between(x))))
        logits: Tensor = self.head(self.after(x))
        return logits


@cache
def sequences() -> tuple[Graph, Tensor]:
    """Return the graph of a block, and tokens."""
    torch.manual_seed(0)
    tokens = torch.randint(9, (5, 4))
    return randomise(trace(Sequences(), (tokens,)).to(torch.float64), 0), tokens


def named(graph: Graph) -> dict[str, str]:
    """Return the names of the widths by what they are."""
    found = {}
    for width in infer_widths(graph):
        held = {place.parameter: place.axis for place in width.places}
        what = "stream" if "table.weight" in held else "hidden" if "down.weight" in held else "heads"
        found["size" if "matched" in width.roles else what] = width.name
    return found


def families(graph: Graph, kinds: tuple[Morphism, ...], parameters: int) -> tuple[Family, ...]:
    """Return the families of some kinds in all sizes that a budget of parameters allows."""
    tokens = torch.zeros(2, 4, dtype=torch.long)
    batch = [(tokens, tokens)]
    options = ScoreOptions(steps=0, budget=Budget(parameters=parameters))
    context = make_context(make_objective(graph, "cross_entropy"), batch, morphisms=kinds, options=options)
    assert all(f.morphism in kinds for f in context.families)
    return context.in_sizes.families


def drawn_theta(family: Family, seed: int) -> Theta:
    """Return θ of a family at random, as large as the weights."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(like.shape, generator=generator, dtype=like.dtype) * like
        for key, like in family.perturbation.theta.items()
    }


def test_sets_double_while_each_alone_is_within_the_budget() -> None:
    graph, _ = sequences()
    now, names = cost(graph), named(graph)
    assert set(names) == {"stream", "heads", "size", "hidden"}
    for room in (0, 100, 300):
        found = families(graph, (Widen(), Split()), now.parameters + room)
        for width in names.values():
            own = [f for f in found if f.site.label == width and f.morphism == Widen()]
            counts = [m.count for f in own for m in f.site.members if isinstance(m, Widen)]
            assert counts == [2**i for i in range(len(counts))]
            assert all(f.cost.parameters <= room for f in own[1:])
            more = own[-1].doubled
            assert more is not None and more.cost.parameters > room
    assert [f.spec for f in own[1].candidates] == [f"widen{{width={width}, count=2}}"]
    most = families(graph, (Widen(count=3),), 10**9)
    counts = [m.count for f in most if f.site.label == names["hidden"] for m in f.site.members if isinstance(m, Widen)]
    assert counts == [3 * 2**i for i in range(len(counts))] and MANY / 2 < counts[-1] <= MANY


def test_only_widths_that_split_leaves_are_widened_if_asked_for() -> None:
    graph, _ = sequences()
    names = named(graph)
    rest = [site.label for site in Widen(rest=True).sites(graph)]
    assert sorted(rest) == sorted([names["stream"], names["size"]])
    members = [member for site in Widen(rest=True).sites(graph) for member in site.members]
    assert members and not any(isinstance(member, Widen) and member.rest for member in members)
    assert [*Widen(rest=True).sites(network())] == []


def test_sets_that_couple_exclude_each_other() -> None:
    graph, _ = sequences()
    names, widths = named(graph), infer_widths(graph)
    assert {what: adds_up(widths, widths[name]) for what, name in names.items()} == {
        "stream": False,
        "heads": True,
        "size": False,
        "hidden": True,
    }
    found = families(graph, (Widen(),), 2 * cost(graph).parameters)
    for what, name in names.items():
        one, two, *_ = (f.candidates[0] for f in found if f.site.label == name)
        both = Combination(graph).plus(one, two)
        assert (both is None) == (what in ("stream", "size"))
        assert (name in one.family.excluded) == (both is None)
        if both is not None:
            assert both.cost() == cost(apply_together(graph, [(c.morphism, None) for c in (one, two)]))
    with pytest.raises(PassError, match="twice in one set"):
        apply_together(graph, [(Widen(names["stream"], n), None) for n in (1, 2)])
    with pytest.raises(PassError, match="disagree about what fresh units hold"):
        hidden = [f for f in found if f.site.label == names["hidden"]]
        apply_together(
            graph, [(f.site.members[0], t) for f, t in ((hidden[0], None), (hidden[1], drawn_theta(hidden[1], 0)))]
        )


@pytest.mark.parametrize("what", ["hidden", "heads"])
def test_what_sets_that_add_up_do_is_the_sum(what: str) -> None:
    graph, tokens = sequences()
    name, values = named(graph)[what], evaluate(graph, [tokens])
    stored = {**values, **{Value(i): t for i, t in graph.tensors.items()}}
    few = [f for f in families(graph, (Widen(),), 2 * cost(graph).parameters) if f.site.label == name][:3]
    thetas = [drawn_theta(f, i) for i, f in enumerate(few)]
    for kinds in ([0, 1], [2, 0], [1, 0, 2]):
        wide = apply_together(graph, [(few[i].site.members[0], thetas[i]) for i in kinds])
        after = evaluate(wide, [tokens])
        expected: dict[Value, Tensor] = {}
        for i in kinds:
            for edge, delta in few[i].perturbation.delta(stored, thetas[i]).items():
                assert isinstance(edge, Value)
                expected[edge] = expected.get(edge, torch.zeros_like(delta)) + delta
        for edge, total in expected.items():
            assert float(total.abs().max()) > 1e-2
            torch.testing.assert_close(after[edge] - values[edge], total, rtol=0, atol=EXACT)


@pytest.mark.parametrize("what", ["stream", "size", "heads", "hidden"])
def test_nothing_changes_where_theta_is_zero(what: str) -> None:
    graph, tokens = sequences()
    name, before = named(graph)[what], outputs(graph, [tokens])
    for family in families(graph, (Widen(),), 2 * cost(graph).parameters):
        if family.site.label == name:
            theta = drawn_theta(family, 1)
            moved = [
                relative_difference(
                    outputs(apply_together(graph, [(family.site.members[0], scaled)]), [tokens]), before
                )
                for scaled in ({n: t * s for n, t in theta.items()} for s in (0.0, 1e-4, 1.0))
            ]
            assert moved[0] < EXACT and moved[1] < 1e-3 < moved[2], family.label


@pytest.mark.parametrize("what", ["stream", "size", "heads", "hidden"])
def test_the_first_units_of_a_larger_set_are_a_smaller_one(what: str) -> None:
    graph, tokens = sequences()
    stored = {**evaluate(graph, [tokens]), **{Value(i): t for i, t in graph.tensors.items()}}
    one, two, four = [
        f for f in families(graph, (Widen(),), 3 * cost(graph).parameters) if f.site.label == named(graph)[what]
    ][:3]
    theta, widths = drawn_theta(four, 2), four.site.found
    assert four.site.members[0].part_of(widths, two.site.members[0], drawn_theta(two, 0)) is None
    part = two.site.members[0].part_of(widths, four.site.members[0], theta)
    assert part is not None and {n: t.shape for n, t in part.items()} == {
        n: t.shape for n, t in two.perturbation.theta.items()
    }
    smaller = one.site.members[0].part_of(widths, two.site.members[0], part)
    straight = one.site.members[0].part_of(widths, four.site.members[0], theta)
    assert smaller is not None and straight is not None
    assert all(torch.equal(t, straight[n]) for n, t in smaller.items())
    if what in ("hidden", "heads"):
        rest = {n: t.clone() for n, t in theta.items()}
        for n, t in by_node(
            two.site.members[0].part_of(
                widths, four.site.members[0], {n: torch.arange(t.numel()).reshape(t.shape) for n, t in theta.items()}
            )
            or {}
        ).items():
            rest[n].view(-1)[t.flatten()] = 0
        whole, without, first = (f.perturbation.delta(stored, t) for f, t in ((four, theta), (four, rest), (two, part)))
        for edge, delta in whole.items():
            torch.testing.assert_close(delta - without[edge], first[edge], rtol=0, atol=EXACT)


@dataclass(frozen=True)
class Unit(Widen):
    """One fresh unit, which is told from others by its number."""

    number: int = 0

    def sites(self, graph: Graph) -> Iterator[Site[Widths]]:
        """Yield as many for each width as are asked for."""
        for site in Widen().sites(graph):
            (member,) = site.members
            assert isinstance(member, Widen)
            for number in range(self.number):
                yield replace(site, members=(Unit(member.width, number=number),))

    def doubled(self, found: Widths) -> None:
        """Return none: each comes alone."""
        return None


def chosen(kinds: tuple[Morphism, ...], times: float, refine: int) -> tuple[Scores, Selection, Budget]:
    """Return the set that is chosen to grow to some multiple of the parameters."""
    graph = network()
    budget = Budget(parameters=round(times * cost(graph).parameters))
    options = ScoreOptions(steps=40, budget=budget, refine=refine)
    objective = make_objective(graph, "cross_entropy")
    found = score(objective, drawn(4, 1), morphisms=kinds, learn=drawn(28, 2), options=options)
    return found, found.select(budget, fill=True), budget


def test_sets_gain_what_single_units_do() -> None:
    gains = {}
    for name, kind in (("one by one", Unit(number=16)), ("in sets", Widen())):
        scores, found, budget = chosen((kind,), 1.3, refine=4)
        assert 0.98 < budget.share(found.cost) <= 1
        gains[name] = -scores.together(found.path).learned(drawn(28, 3)).linearised(drawn(4, 1))
    assert gains["one by one"] > 0.02
    assert gains["in sets"] >= 0.95 * gains["one by one"], gains


def test_sets_of_one_width_are_chosen_together_with_other_rewrites() -> None:
    scores, found, budget = chosen((Split(), Prune(), Widen(), Deepen()), 1.5, refine=4)
    assert {s.candidate.morphism.name for s in scores.choice} >= {"split", "prune", "widen", "deepen"}
    assert 0.98 < budget.share(found.cost) <= 1
    assert cost(scores.apply(found.path)) == found.cost


def test_a_candidate_of_each_size_has_its_own_score() -> None:
    scores, _, _ = chosen((Widen(),), 1.4, refine=100)
    specs = {s.spec for s in scores}
    assert len(specs) == len(scores) and {"widen{width=w1}", "widen{width=w1, count=4}"} <= specs
    assert isinstance(scores["widen{width=w1, count=4}"].candidate, Candidate)
