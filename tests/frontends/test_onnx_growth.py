"""Networks read from ONNX files are scored, grown, pruned and rewritten, and written as source and as ONNX again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from archir.api import apply, grow, score
from archir.axes.infer import infer_widths
from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.ir.graph import Graph
from archir.scoring.budget import Budget
from frontends.onnx.read import from_onnx
from tests.models.onnx_files import export_model
from tests.models.zoo import ZOO
from tools.onnx_morphisms import trial

OPTIONS = GrowOptions(
    steps=12,
    expansion=1.0,
    growth_steps=1,
    first_growth=0.4,
    batch_size=8,
    optimiser=OptimiserOptions("sgd", rate=0.01),
    learn_steps=4,
    score_examples=16,
    recalibrate_batches=2,
    refine=6,
    evaluate_every=12,
    checkpoint_every=12,
)


def examples(name: str, count: int) -> tuple[Tensor, Tensor]:
    """Return examples of two of ten classes: so much there is to learn on all that are held out, too."""
    torch.manual_seed(1)
    (inputs,) = ZOO[name].inputs(count)
    return inputs, torch.randint(0, 2, (count, *((16,) if name == "gpt" else ())))


def of_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none").view(len(outputs), -1).mean(1)


@pytest.mark.parametrize(
    "name", ["mobilenet", *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet", "vit", "gpt"))]
)
def test_a_network_is_grown_and_comes_back_equal(name: str, tmp_path: Path) -> None:
    model, inputs = export_model(name, tmp_path / "seed.onnx")
    seed = from_onnx(tmp_path / "seed.onnx")
    with torch.no_grad():
        torch.testing.assert_close(seed.module().eval()(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
    run = grow(
        seed,
        train=examples(name, 48),
        validation=examples(name, 32),
        budget=Budget(parameters=int(1.3 * seed.parameter_count)),
        loss=of_tokens if name == "gpt" else "cross_entropy",
        options=OPTIONS,
        morphisms="split",
    )
    grown = run.graph
    assert seed.parameter_count < grown.parameter_count <= 1.3 * seed.parameter_count
    assert to_python(grown, tmp_path).difference < 1e-5
    assert to_onnx(grown, tmp_path / "grown.onnx").difference < 1e-4
    again = from_onnx(tmp_path / "grown.onnx")
    with torch.no_grad():
        found, wanted = again.module().eval()(*inputs), grown.module().eval()(*inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert sizes(again) == sizes(grown)
    assert run.graph.history


def sizes(graph: Graph) -> list[int]:
    return sorted(width.size for width in infer_widths(graph))


def test_source_has_the_layers_of_the_model(tmp_path: Path) -> None:
    export_model("mobilenet", tmp_path / "net.onnx")
    text = to_python(from_onnx(tmp_path / "net.onnx"), tmp_path).path.read_text()
    for line in (
        "nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())",
        "nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False)",
        "self.squeeze = nn.Conv2d(16, 4, 1)",
        "self.fc = nn.Linear(16, 10)",
    ):
        assert line in text
    assert "torch.ops" not in text


def test_it_is_scored_and_pruned_as_the_traced_one(tmp_path: Path) -> None:
    export_model("two_heads", tmp_path / "net.onnx")
    graph = from_onnx(tmp_path / "net.onnx")
    width = next(iter(infer_widths(graph)))
    pruned = apply(graph, f"prune{{width={width.name}, units=[0]}}")
    assert pruned.parameter_count < graph.parameter_count
    export_model("mlp", tmp_path / "mlp.onnx")
    torch.manual_seed(0)
    batch = (torch.randn(16, 8), torch.randint(0, 4, (16,)))
    assert len(score(from_onnx(tmp_path / "mlp.onnx"), [batch], steps=2)) > 0


@pytest.mark.parametrize("name", ["mlp", pytest.param("gpt", marks=pytest.mark.slow)])
def test_random_rewrites_and_both_exports(name: str) -> None:
    found = trial(name, 0, 12)
    assert found.rewrites == 12
    assert found.problems == ()
