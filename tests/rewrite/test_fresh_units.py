"""Fresh units under normalisations and means: the function stays, whatever the wiring, and what cannot be says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from archir import apply, trace
from archir.axes.infer import infer_widths
from archir.axes.widths import Width
from archir.ir.graph import Graph
from archir.ir.inputs import random_inputs
from archir.rewrite.changes import Change
from archir.rewrite.fresh_perturbation import FreshPerturbation
from archir.rewrite.fresh_units import solve_fresh
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Site
from archir.rewrite.reindex import plan_reindexing, reindex
from archir.testing import randomise, relative_difference
from passes.widen import Widen

EXACT = 1e-13


class Stream(nn.Module):
    """Tokens, positions and a class token on a stream, with a branch that is normalised before, and a last norm."""

    def __init__(self, norm: Callable[[int], nn.Module], width: int = 6, *, tied: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(7, width)
        self.places = nn.Parameter(torch.randn(5, width))
        self.first = nn.Parameter(torch.randn(1, 1, width))
        self.before, self.after = norm(width), norm(width)
        self.up, self.down = nn.Linear(width, 5), nn.Linear(5, width)
        self.head = nn.Linear(width, 7, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        x = torch.cat([self.first.expand(x.shape[0], 1, -1), x], 1) + self.places
        x = x + 0.5 * self.down(torch.sigmoid(self.up(self.before(x))))
        return cast(Tensor, self.head(self.after(x)))


class RMS(nn.Module):
    """An RMS norm that is written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3))


class NoScale(nn.Module):
    """Norms without weights, made up for by the layers after them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down, self.head = (nn.Linear(*n) for n in ((4, 6), (6, 5), (5, 6), (6, 2)))
        self.square = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.square(nn.functional.layer_norm(x, x.shape[-1:]))
        x = x + self.down(torch.tanh(self.up(nn.functional.layer_norm(x, x.shape[-1:]))))
        return cast(Tensor, self.head(nn.functional.layer_norm(x, x.shape[-1:])))


class ChannelsLast(nn.Module):
    """A convolutional stream that is normalised with its channels last, and pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 6, 2, stride=2), nn.ConvTranspose2d(5, 6, 1)
        self.norm, self.up, self.head = nn.LayerNorm(6), nn.Conv2d(6, 5, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return cast(Tensor, self.head((x + self.body(torch.relu(self.up(y)))).mean((2, 3))))


class NormedQueries(nn.Module):
    """Attention that normalises queries and keys within each head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 12) for _ in range(3))
        self.out = nn.Linear(12, 6)
        self.norms = nn.ModuleList([nn.LayerNorm(4), nn.LayerNorm(4)])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (3, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = (norm(part) for norm, part in zip(self.norms, (q, k), strict=True))
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        return cast(Tensor, self.out(found.transpose(1, 2).flatten(2)))


class FusedQueries(nn.Module):
    """Attention whose queries, keys and values are parts of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 3 * 3 * 4), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        return cast(Tensor, self.out(found.transpose(1, 2).flatten(2)))


TOKENS = torch.randint(7, (3, 4))
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor, set[int]]] = {
    "layer norm": (lambda: Stream(nn.LayerNorm), TOKENS, {6}),
    "layer norm without bias": (lambda: Stream(lambda n: nn.LayerNorm(n, bias=False)), TOKENS, {6}),
    "layer norm, tied": (lambda: Stream(nn.LayerNorm, tied=True), TOKENS, {6}),
    "RMS norm": (lambda: Stream(nn.RMSNorm), TOKENS, {6}),
    "RMS norm, tied": (lambda: Stream(nn.RMSNorm, tied=True), TOKENS, {6}),
    "RMS norm with an epsilon": (lambda: Stream(lambda n: nn.RMSNorm(n, eps=1e-2)), TOKENS, {6}),
    "written RMS norm": (lambda: Stream(RMS), TOKENS, {6}),
    "written RMS norm, tied": (lambda: Stream(RMS, tied=True), TOKENS, {6}),
    "no scale": (NoScale, torch.randn(3, 4), {6}),
    "channels last": (ChannelsLast, torch.randn(2, 3, 6, 6), {6, 5}),
    "normed queries": (NormedQueries, torch.randn(2, 5, 6), {4, 3}),
    "fused queries": (FusedQueries, torch.randn(2, 5, 6), {4, 3}),
    "norm of hidden units": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6, eps=1e-2), nn.GELU(), nn.Linear(6, 2)),
        torch.randn(3, 4),
        {6},
    ),
}


def _graph(model: nn.Module, *inputs: Tensor) -> Graph:
    torch.manual_seed(0)
    return randomise(trace(model, inputs).to(torch.float64), 0)


def _outputs(graph: Graph, args: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [graph.module().eval()(*args)]


@pytest.mark.parametrize("name", MODELS)
def test_any_number_of_units_may_come_again_and_again(name: str) -> None:
    make, inputs, sizes = MODELS[name]
    graph = _graph(make(), inputs)
    args, _ = random_inputs(graph, 3)
    wanted = _outputs(graph, args)
    widths = {width.name: width.size for width in infer_widths(graph)}
    assert sizes <= set(widths.values())
    for width, size in widths.items():
        one = apply(graph, f"widen{{width={width}}}")
        more = apply(one, f"widen{{width={width}, count=3}}")
        assert infer_widths(more)[width].size == size + 4
        for grown in (one, more):
            assert relative_difference(_outputs(grown, args), wanted) < EXACT, width
    all_of_them = {name: Change(tuple(range(size + 2)), fresh=2) for name, size in widths.items()}
    together = reindex(plan_reindexing(infer_widths(graph), all_of_them), by="all").after
    assert relative_difference(_outputs(together, args), wanted) < EXACT


def test_what_is_stored_carries_the_mean_and_makes_up_for_the_number_of_units() -> None:
    graph = _graph(Stream(nn.LayerNorm), TOKENS)
    width = next(w for w in infer_widths(graph) if w.size == 6)
    wide = apply(graph, f"widen{{width={width.name}, count=2}}")
    for name, axis in (("table.weight", 1), ("places", 1), ("first", 2), ("down.weight", 0), ("down.bias", 0)):
        old, new = graph.tensor(name), wide.tensor(name)
        kept, fresh = new.narrow(axis, 0, 6), new.narrow(axis, 6, 2)
        assert torch.equal(kept, old)
        torch.testing.assert_close(fresh, old.mean(axis, keepdim=True).expand_as(fresh), rtol=1e-14, atol=1e-15)
    for name in ("before", "after"):
        weight = graph.tensor(f"{name}.weight")
        torch.testing.assert_close(wide.tensor(f"{name}.weight")[:6], weight * 0.75**0.5, rtol=1e-15, atol=0)
        assert not wide.tensor(f"{name}.bias")[6:].any() and wide.tensor(f"{name}.weight")[6:].all()
    assert wide.tensor("up.weight")[:, 6:].all() and wide.tensor("head.weight")[:, 6:].all()
    assert [n.argument("eps") for n in wide.calls if "layer_norm" in n.op] == pytest.approx([0.75e-5] * 2, rel=1e-12)


def test_under_an_rms_norm_they_are_zero_and_what_reads_them_is_not() -> None:
    graph = _graph(Stream(RMS), TOKENS)
    width = next(w for w in infer_widths(graph) if w.size == 6)
    wide = apply(graph, f"widen{{width={width.name}, count=2}}")
    assert not any(wide.tensor(n)[..., 6:].any() for n in ("table.weight", "places", "first", "down.bias"))
    assert wide.tensor("up.weight")[:, 6:].all() and wide.tensor("head.weight")[:, 6:].all()
    added = [n.argument("other") for n in wide.calls if n.op == "aten.add.Tensor" and len(n.values) == 1]
    assert added == pytest.approx([0.75e-3] * 2, rel=1e-12)
    assert [n.op for n in wide.calls] == [n.op for n in graph.calls]


def test_a_mask_of_fresh_units_is_looked_at_as_the_truth_values_it_holds() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return cast(Tensor, self.head(x.masked_fill(torch.bitwise_not(x > 0.1), 0.0)))

    graph = _graph(Masked(), torch.randn(3, 4))
    args, _ = random_inputs(graph, 3)
    wide = apply(graph, "widen{width=w0, count=2}")
    assert relative_difference(_outputs(wide, args), _outputs(graph, args)) < EXACT


def test_units_that_leave_at_once_are_in_no_mean() -> None:
    graph = _graph(Stream(nn.LayerNorm), TOKENS)
    widths = infer_widths(graph)
    width = next(w for w in widths if w.size == 6)
    args, _ = random_inputs(graph, 3)
    fewer = reindex(plan_reindexing(widths, {width.name: Change((0, 2, 3, 5))}), by="fewer").after
    change = Change((0, 2, 3, 5, 6, 7), fresh=2)
    found = reindex(plan_reindexing(widths, {width.name: change}), by="both").after
    assert relative_difference(_outputs(found, args), _outputs(fewer, args)) < EXACT


def test_what_is_gathered_of_gradients_goes_with_the_scale() -> None:
    """The gradient of a loss that is kept, with respect to a weight that is s times as large, is 1/s times as large."""
    graph = _graph(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)), torch.randn(3, 4))
    plan = plan_reindexing(infer_widths(graph), {"w0": Change(tuple(range(9)), fresh=3)})
    wide = reindex(plan, by="wide").after
    args, _ = random_inputs(graph, 3)

    def gradient(of: Graph) -> Tensor:
        module = of.module()
        module(*args).square().sum().backward()
        found = module.get_parameter("1.weight").grad
        assert found is not None
        return found

    (id_,) = [n.id for n in graph.parameters if "1.weight" in n.names]
    by, old, new = plan.map(id_), gradient(graph), gradient(wide)
    torch.testing.assert_close(by.gradient(old)[:6], new[:6], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(by.gradient(old.square(), 2)[:6], new[:6].square(), rtol=1e-12, atol=1e-14)
    assert torch.equal(by.unscaled(old)[:6], old) and not by.gradient(old)[6:].any()


def _between(middle: Callable[[nn.Module, Tensor], Tensor]) -> tuple[Graph, Width]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
            self.norm, self.other = nn.LayerNorm(6), nn.Linear(4, 6)
            self.scale = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            return cast(Tensor, self.head(middle(self, x)))

    graph = _graph(Net(), torch.randn(3, 4))
    return graph, next(w for w in infer_widths(graph) if w.size == 6)


def _plain(net: Any, x: Tensor) -> Tensor:
    return nn.functional.layer_norm(net.stem(x), (6,))


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (
            lambda n, x: n.norm(torch.relu(n.stem(x))),
            "a layer norm runs over it, and aten.relu makes no means of means",
        ),
        (
            lambda n, x: n.norm(n.stem(x) * n.other(x)),
            "a layer norm runs over it, and aten.mul.Tensor makes no means of means",
        ),
        (
            lambda n, x: n.norm(n.norm(n.stem(x))),
            "a layer norm runs over it, and aten.layer_norm makes no means of means",
        ),
        (
            lambda n, x: torch.cos(n.norm(n.stem(x))) + n.norm(n.stem(x)).sum(1, keepdim=True),
            "aten.sum.dim_IntList (<root> (Net) {file}) would see fresh units, whatever is zero for them",
        ),
        (
            lambda n, x: n.norm(n.stem(x)) + n.norm.weight,
            "what would make up for the number of its units does something else, too",
        ),
        (
            lambda n, x: torch.tanh(_plain(n, x)),
            "aten.tanh depends on the number of its units, and nothing makes up for that",
        ),
        (
            lambda n, x: n.norm(torch.tensor_split(torch.cat([n.stem(x), n.other(x)], 1), [6], 1)[0]),
            "what a layer norm runs over is concatenated somewhere on its way",
        ),
        (
            lambda n, x: n.norm(n.stem(x) + n.scale) * n.scale.sum(),
            "aten.sum (<root> (Net) {file}) would see fresh units, whatever is zero for them",
        ),
    ],
)
def test_what_cannot_be_says_why(middle: Callable[[nn.Module, Tensor], Tensor], reason: str) -> None:
    graph, width = _between(middle)
    found = solve_fresh(infer_widths(graph), width)
    assert isinstance(found, Miss)
    where = str(graph.node(found.nodes[0]).location or "")
    assert found.reason == reason.replace("<root> (Net) {file}", where)
    assert Widen(width.name).match(graph) == found


class Parts(nn.Module):
    """Parts for a forward that is given."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.middle = middle
        self.stem, self.other, self.head, self.wide = (nn.Linear(*n) for n in ((4, 6), (4, 6), (6, 2), (12, 2)))
        self.norm, self.gate = nn.LayerNorm(6), nn.Linear(6, 1)
        self.p, self.one = nn.Parameter(torch.randn(1, 6)), nn.Parameter(torch.tensor(1.3))
        self.register_buffer("whole", torch.tensor([1, 2, 3, 4, 5, 7]))

    def forward(self, x: Tensor) -> Tensor:
        return self.middle(self, x)


def _bare(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return nn.functional.layer_norm(x, (6,), weight, bias)


def _square(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True)


HARD: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a bias without a weight": lambda n, x: n.head(_bare(n.stem(x), None, n.p[0])),
    "a weight that is computed": lambda n, x: n.head(_bare(n.stem(x), 1 + n.p[0], n.norm.bias)),
    "a computed weight alone": lambda n, x: n.head(_bare(n.stem(x), 1 + n.p[0])),
    "concatenated with others": lambda n, x: n.wide(torch.cat([_bare(n.stem(x)), n.other(x)], -1)),
    "stored ones beside": lambda n, x: n.head(torch.cat([_bare(n.stem(x)), n.p], 0)),
    "stacked": lambda n, x: n.head(torch.stack([_bare(n.stem(x)), n.other(x)])),
    "padded": lambda n, x: n.head(nn.functional.pad(_bare(n.stem(x)), (0, 0, 1, 0), value=1.0)),
    "ones like it": lambda n, x: n.head(torch.ones_like(_bare(n.stem(x))) + n.other(x)),
    "ones like a mean": lambda n, x: torch.ones_like(_square(n.stem(x))) * n.head(n.other(x)),
    "written into": lambda n, x: n.head(_bare(n.stem(x)).slice_scatter(n.p, 0, 0, 1)),
    "rounded": lambda n, x: n.head(n.other(x)) + (_square(n.stem(x)) * 10).to(torch.int32).to(x.dtype),
    "a bias of a layer": lambda n, x: n.head(
        nn.functional.linear(x, n.other.weight, nn.functional.rms_norm(n.p[0], (6,)))
    ),
    "divided and rounded down": lambda n, x: n.head(n.norm(torch.div(n.stem(x), 0.3, rounding_mode="floor"))),
    "divided by": lambda n, x: n.head(n.norm(x[:, :1] / n.stem(x))),
    "made whole": lambda n, x: n.head(n.norm((n.stem(x) * 5).to(torch.int32).to(x.dtype))),
    "whole numbers on the stream": lambda n, x: n.head(n.norm(n.stem(x) + n.whole)),
    "a scale without axes": lambda n, x: n.head(n.one * nn.functional.rms_norm(n.stem(x), (6,))),
    "scaled by whole numbers": lambda n, x: n.head(_bare(n.stem(x)) * n.whole),
    "gated by itself": lambda n, x: n.head(n.stem(x) * n.gate(n.stem(x))),
}


@pytest.mark.parametrize("name", HARD)
def test_what_is_not_refused_keeps_the_function(name: str) -> None:
    graph = _graph(Parts(HARD[name]), torch.randn(3, 4))
    args, _ = random_inputs(graph, 3)
    wanted, tried = _outputs(graph, args), 0
    for width in infer_widths(graph):
        tried += 1
        for count in (1, 3):
            candidate = Widen(width.name, count)
            if not isinstance(candidate.match(graph), Miss):
                assert relative_difference(_outputs(candidate.apply(graph), args), wanted) < EXACT, width.name
    assert tried


def test_an_rms_norm_without_epsilon_takes_that_of_what_it_computes_in() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 2))
    for dtype in (torch.float32, torch.bfloat16):
        wide = apply(trace(net, torch.randn(3, 4)).to(dtype), "widen{width=w0, count=2}")
        (norm,) = [n for n in wide.calls if "rms_norm" in n.op]
        assert norm.argument("eps") == pytest.approx(0.75 * torch.finfo(torch.float32).eps, rel=1e-12)


def test_a_gate_that_reads_what_it_gates_is_seen_as_it_is() -> None:
    """What fresh units do is exact where a call of theirs reads what they are summed into."""
    graph = _graph(Parts(lambda n, x: n.head((h := n.stem(x)) * n.gate(h))), torch.randn(3, 4))
    widths = infer_widths(graph)
    width = next(w for w in widths if any(p.parameter == "stem.weight" for p in w.places))
    found = Widen().perturbation(graph, Site(width.name, (Widen(width.name),), widths))
    assert isinstance(found, FreshPerturbation)
