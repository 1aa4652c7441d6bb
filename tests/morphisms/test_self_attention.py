"""Self-attention: what it computes, masks, where it can be, and what it is predicted to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from archir.axes.infer import infer_widths
from archir.errors import PassError
from archir.ir.graph import Graph
from archir.rewrite.miss import Miss
from archir.testing import randomise
from frontends.pytorch import trace
from passes.self_attention import SelfAttention, has_causal_mask
from tests.models.captured import graph_of
from tests.morphisms.checks import emit, predictions
from tests.morphisms.wiring import Images, change, change_in_training, reason, traced, value_after


def attend(graph: Graph, tokens: Tensor, heads: int) -> Tensor:
    """Return what `nn.MultiheadAttention` with the weights of the spliced block makes of tokens, `[B, T, C]`."""

    def stored(name: str) -> Tensor:
        return graph.tensor(f"attention.{name}")

    features = tokens.shape[-1]
    twin = nn.MultiheadAttention(features, heads, batch_first=True, dtype=torch.float64)
    norm = nn.LayerNorm(features, dtype=torch.float64)
    norm.load_state_dict({n: stored(f"norm.{n}") for n in ("weight", "bias")})
    state = {f"out_proj.{n}": stored(f"out.{n}") for n in ("weight", "bias")}
    state |= {
        f"in_proj_{n}": torch.cat([stored(f"{m}.{n}") for m in ("query", "key", "value")]) for n in ("weight", "bias")
    }
    twin.load_state_dict(state)
    x = norm(tokens)
    found: Tensor = twin(x, x, x, need_weights=False)[0].detach()
    return found


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_the_positions_of_an_image_attend_to_each_other(spatial: int) -> None:
    graph, inputs = traced(Images(spatial), 2, *[6, 4, 2][:spatial])
    after = SelfAttention("%1", heads=2).apply(graph)
    assert change(graph, after, inputs) == 0
    moved = randomise(after)
    x = value_after(moved, inputs, 1)
    added = attend(moved, x.flatten(2).transpose(1, 2), 2).transpose(1, 2).reshape(x.shape)
    last = max(i for i, n in enumerate(moved.calls) if n.op == "aten.add.Tensor")
    torch.testing.assert_close(value_after(moved, inputs, last), x + added, rtol=1e-12, atol=1e-12)


class Grid(nn.Module):
    """Tokens on a grid, features last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.tanh(self.first(x)))
        return found


@pytest.mark.parametrize("grid", [(5,), (3, 2)])
def test_tokens_attend_to_each_other(grid: tuple[int, ...]) -> None:
    graph, inputs = traced(Grid(), *grid, 4)
    (site,) = SelfAttention(heads=3).sites(graph)
    after = site.members[0].apply(graph)
    assert change(graph, after, inputs) == 0
    moved = randomise(after)
    x = value_after(moved, inputs, 1)
    added = attend(moved, x.flatten(1, -2), 3).reshape(x.shape)
    last = max(i for i, n in enumerate(moved.calls) if n.op == "aten.add.Tensor")
    torch.testing.assert_close(value_after(moved, inputs, last), x + added, rtol=1e-12, atol=1e-12)


def test_no_token_of_a_causal_model_sees_a_later_one() -> None:
    graph = graph_of("gpt")
    sites = list(SelfAttention().sites(graph))
    assert len(sites) >= 5
    tokens = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0))
    other = torch.cat([tokens[:, :9], (tokens[:, 9:] + 7) % 50], 1)
    for site in sites:
        module = randomise(site.members[0].apply(graph)).to(torch.float64).module().eval()
        one, two = module(tokens), module(other)
        torch.testing.assert_close(one[:, :9], two[:, :9], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(one[:, 9:], two[:, 9:])


class Masked(nn.Module):
    """Tokens, and a mask of some kind."""

    allowed: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        stored = torch.ones(5, 5, dtype=torch.bool)
        self.register_buffer("allowed", stored.tril() if kind == "stored" else stored)

    def _mask(self) -> Tensor:
        if self.kind == "triangle":
            return torch.ones(5, 5).tril() > 0
        if self.kind == "compared":
            at = torch.arange(5)
            return at[:, None] >= at
        return self.allowed

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        if self.kind == "fused":
            x = nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=self.allowed)
        else:
            x = (x @ x.transpose(1, 2)).masked_fill(~self._mask(), -1e9).softmax(-1) @ x
        found: Tensor = self.last(x)
        return found


@pytest.mark.parametrize("kind", ["stored", "triangle", "compared", "fused", "none"])
def test_a_mask_is_seen(kind: str) -> None:
    graph = trace(Masked(kind), (torch.randn(3, 5, 4),))
    assert has_causal_mask(graph) == (kind != "none")
    sites = list(SelfAttention().sites(graph))
    assert sites
    assert all(s.members == (SelfAttention(s.label, causal=kind != "none"),) for s in sites)


def test_the_heads_and_their_sizes_are_free_widths() -> None:
    graph, _ = traced(Images(2), 2, 6, 4)
    before, after = infer_widths(graph), infer_widths(SelfAttention("%3", heads=2).apply(graph))
    assert sorted(w.size for w in after) == sorted([*(w.size for w in before), 2, 3, 3])
    assert SelfAttention("%3", heads=8).apply(graph).tensor("attention.query.weight").shape == (8, 6)


class Odd(nn.Module):
    """Values without tokens: rows, sequences before the batch, sizes known at run time only, heads."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.conv = nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        rows = torch.tanh(self.layer(x[:, 0]))
        first = torch.tanh(self.layer(x.transpose(0, 1)))
        one = x[:, None]
        heads = nn.functional.scaled_dot_product_attention(one, one, one)
        deep = torch.tanh(self.conv(x.transpose(1, 2)))[:, None] * 2
        grid = torch.tanh(self.layer(x[:, None]))
        return rows.sum(), first.sum(), heads.sum(), deep.sum(), grid.sum()


def test_reasons_it_does_not_apply() -> None:
    graph, _ = traced(Odd(), 5, 4)
    rows, first, conv, grid = (f"%{i}" for i, n in enumerate(graph.calls) if n.op == "aten.tanh.default")
    (heads,) = (f"%{i}" for i, n in enumerate(graph.calls) if "attention" in n.op)
    assert "number of heads" in reason(SelfAttention(conv, heads=0), graph)
    assert "cannot be told" in reason(SelfAttention("x"), graph)
    assert "no axis of tokens" in reason(SelfAttention(rows), graph)
    assert "not that of the batch" in reason(SelfAttention(first), graph)
    assert "heads of another attention" in reason(SelfAttention(heads), graph)
    assert "no order" in reason(SelfAttention(grid, causal=True), graph)
    assert not isinstance(SelfAttention(conv).match(graph), Miss)
    with pytest.raises(PassError, match="no axis of tokens"):
        SelfAttention(rows).apply(graph)


class Folded(nn.Module):
    """Batches of tokens repeated, and tokens as many as there are examples."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        long = torch.tanh(self.line(x.flatten(2).repeat(2, 1, 1)))
        mixed = torch.tanh(self.line(x.flatten(2).permute(2, 1, 0).repeat(x.shape[0], 1, 1)))
        return long.sum(), mixed.sum()


def test_reasons_that_depend_on_sizes() -> None:
    graph, _ = traced(Folded(), 4, 3, 2)
    long, mixed = (f"%{i}" for i, n in enumerate(graph.calls) if n.op == "aten.tanh.default")
    assert not isinstance(SelfAttention(long).match(graph), Miss)
    assert "only at run time" in reason(SelfAttention(mixed), graph)


def test_candidates_are_proposed_where_tokens_are_few() -> None:
    graph = graph_of("resnet")
    assert len(list(SelfAttention(limit=255).sites(graph))) < len(list(SelfAttention(limit=256).sites(graph)))


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_the_function_is_kept_in_training(name: str) -> None:
    assert change_in_training(SelfAttention(), name) < 1e-12


def test_it_is_emitted_as_a_module(tmp_path: Path) -> None:
    source = emit(SelfAttention("%9").apply(graph_of("resnet")), tmp_path)
    assert "self.attention = SelfAttention()" in source
    assert "self.query = nn.Linear(16, 16)" in source
    source = emit(SelfAttention("%18", causal=True).apply(graph_of("gpt")), tmp_path)
    assert "F.scaled_dot_product_attention(y2, y3, y, is_causal=True)" in source


def test_predictions_agree_with_the_truth() -> None:
    found = predictions(SelfAttention(heads=2))
    predicted, true = zip(*found, strict=True)
    assert len(found) == 3
    assert spearmanr(predicted, true).statistic > 0.9
    assert predicted == pytest.approx(true, rel=0.35, abs=1e-4)
