"""Copies of blocks: where they are the identity, how they are written, and what their scores are worth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

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
from archir.rewrite.pipeline import apply_passes
from archir.rewrite.spec import parse_specs
from archir.scoring.losses import find_loss
from archir.testing import outputs, relative_difference
from frontends.pytorch import trace
from passes.catalog import PASSES
from passes.duplicate_block import DuplicateBlock
from tests.models.vision import resnet20
from tests.morphisms.block_models import Images, Odd, RawBlock, capture, images, tokens


def zero(graph: Graph, path: str) -> set[str]:
    """Return the names of the trainable tensors under a path that are zero."""
    stored = {name: graph.tensors[node.id] for name, node in graph.by_name.items() if name.startswith(f"{path}.")}
    trained = {n: t for n, t in stored.items() if (p := graph.by_name[n].parameter) and p.trainable}
    return {name.removeprefix(f"{path}.") for name, t in trained.items() if not t.any()}


def test_the_last_layer_of_every_branch_is_zero() -> None:
    graph, inputs = images()
    assert [s.label for s in DuplicateBlock().sites(graph)] == ["gated.0", "gated.1", "parallel"]
    gated = DuplicateBlock("gated.0").apply(graph)
    assert zero(gated, "gated.2") == {"norm.weight", "norm.bias"}
    parallel = DuplicateBlock("parallel").apply(graph)
    assert zero(parallel, "parallel_copy") == {"left.weight", "left.bias", "right.weight", "last.weight", "last.bias"}
    assert parallel.by_name["parallel_copy.last.weight"] is parallel.by_name["parallel_copy.left.weight"]
    for after in (gated, parallel):
        assert relative_difference(outputs(after, inputs), outputs(graph, inputs)) == 0
    twice = DuplicateBlock("parallel").apply(parallel)
    assert "parallel_copy2.inner.weight" in twice.by_name
    graph, inputs = tokens()
    after = DuplicateBlock("blocks.1").apply(graph)
    last = {"attention.out.weight", "attention.out.bias", "mlp.2.weight", "mlp.2.bias"}
    assert zero(after, "blocks.3") == last
    assert relative_difference(outputs(after, inputs), outputs(graph, inputs)) == 0


def test_it_is_the_identity_in_training_too() -> None:
    torch.manual_seed(0)
    graph = trace(resnet20(4), (torch.randn(4, 3, 16, 16),)).to(torch.float64)
    before, after = graph.module().train(), DuplicateBlock("blocks.1").apply(graph).module().train()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(after(x), before(x), rtol=0, atol=0)
    after(x).sum().backward()
    gradient = after.get_parameter("blocks.9.bn2.weight").grad
    assert gradient is not None and bool(gradient.any())


def test_widths_inside_are_free_and_those_outside_stay_so() -> None:
    for graph, path in ((images()[0], "parallel"), (tokens()[0], "blocks.0")):
        old, new = infer_widths(graph), infer_widths(DuplicateBlock(path).apply(graph))
        assert len(new) > len(old)
        assert {w.places[0].parameter for w in old} <= {w.places[0].parameter for w in new}
    names = {p.parameter for w in infer_widths(DuplicateBlock("blocks.0").apply(tokens()[0])) for p in w.places}
    assert {"blocks.3.mlp.0.weight", "blocks.3.attention.qkv.weight"} <= names


def test_a_stock_transformer_layer_whose_norms_come_first_can_be_copied() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=True)
    graph, inputs = capture(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(3, 5, 16))
    assert [s.label for s in DuplicateBlock().sites(graph)] == ["layers.0", "layers.1"]
    after = DuplicateBlock("layers.1").apply(graph)
    assert zero(after, "layers.2") == {
        *("self_attn.out_proj.weight", "self_attn.out_proj.bias", "linear2.weight", "linear2.bias")
    }
    assert relative_difference(outputs(after, inputs), outputs(graph, inputs)) == 0


def test_raw_weights_and_reshaped_tokens_are_seen_through() -> None:
    torch.manual_seed(0)
    graph, inputs = capture(nn.Sequential(nn.Linear(5, 6), RawBlock(6), nn.Linear(6, 2)), torch.randn(3, 4, 5))
    after = DuplicateBlock("1").apply(graph)
    assert zero(after, "3") == {"two", "bias", "three"}
    assert relative_difference(outputs(after, inputs), outputs(graph, inputs)) == 0


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("plain", "no residual connection"),
        ("post_norm", "layer_norm changes what its residual connections let through"),
        ("cosine", "a branch of it ends in no layer"),
        ("activated", None),
        ("two", "2 of its results are used outside it"),
        ("both", "no residual connection"),
        ("idle", "no layer that could be zero"),
    ],
)
def test_what_cannot_be_copied_is_said(kind: str, reason: str | None) -> None:
    torch.manual_seed(0)
    graph, _ = capture(Odd(kind), torch.randn(3, 4))
    found = DuplicateBlock("block").match(graph)
    if reason is None:
        assert not isinstance(found, Miss)
        return
    assert isinstance(found, Miss)
    assert reason in found.reason
    with pytest.raises(PassError, match=reason):
        DuplicateBlock("block").apply(graph)


def test_other_modules_are_no_blocks() -> None:
    graph, _ = images()
    for path, reason in {"nowhere": "no call belongs to", "head": "no value of the type", "": "no call"}.items():
        found = DuplicateBlock(path).match(graph)
        assert isinstance(found, Miss)
        assert reason in found.reason


def test_an_activation_that_would_cut_something_off_is_seen() -> None:
    """A ReLU lets through what has been through one; a block that ends otherwise may hand on negative numbers."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = torch.relu(x) + self.linear(x)
            return found

    graph, _ = capture(nn.Sequential(nn.Linear(4, 6), Block(), nn.Linear(6, 3)), torch.randn(2, 4))
    found = DuplicateBlock("1").match(graph)
    assert isinstance(found, Miss)
    assert "no residual connection" in found.reason


def test_what_is_written_reads_as_if_it_had_been_there(tmp_path: Path) -> None:
    for (graph, _), path, line in (
        (images(), "gated.1", "self.gated = nn.Sequential(*(Gated() for _ in range(3)))"),
        (tokens(), "blocks.2", "self.blocks = nn.ModuleList(TokenBlock() for _ in range(4))"),
    ):
        after = DuplicateBlock(path).apply(graph).to(torch.float32)
        assert line in to_python(after, tmp_path).path.read_text()
        assert to_onnx(after, tmp_path / "net.onnx").difference < 1e-5


def test_its_removal_gives_the_old_program_back() -> None:
    for (graph, _), path, copy in ((images(), "parallel", "parallel_copy"), (tokens(), "blocks.1", "blocks.3")):
        specs = f"duplicate-block{{block={path}}}; remove-block{{block={copy}}}"
        back = apply_passes(graph, parse_specs(specs, PASSES))
        assert str(back) == str(graph)


def test_predictions_are_right_for_what_is_learned() -> None:
    torch.manual_seed(0)
    graph = trace(Images(), (torch.randn(3, 1, 8, 8),))
    on = Examples(torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,)))
    found = score(graph, Batches(on, 32), morphisms=(DuplicateBlock(),), steps=40, refine=10)
    loss = find_loss("cross_entropy")
    before = evaluate_on(graph.module(), on, loss).loss
    true = [evaluate_on(found.apply([s]).module(), on, loss).loss - before for s in found]
    assert len(true) == 3
    assert all(found.additive([s]) < 0 for s in found)
    assert true == pytest.approx([s.predicted for s in found], rel=0.3)
    assert spearmanr([s.predicted for s in found], true).statistic > 0.9
