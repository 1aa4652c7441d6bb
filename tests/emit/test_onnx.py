"""ONNX files compute what the graph computes, for any batch size."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from archir.api import apply
from archir.emit.check import Agreement, coarse
from archir.emit.onnx import check, to_onnx
from archir.errors import CaptureWarning, EmitError, FileError
from frontends.onnx.read import from_onnx
from frontends.pytorch import trace
from tests.emit import hard_models as hard
from tests.models.captured import graph_of

CHOSEN = [
    "resnet",
    "shufflenet",
    "unet",
    "vit",
    "gpt",
    "grouped_query_attention",
    "gru",
    "nested",
    "two_heads",
    "siamese",
]


@pytest.mark.parametrize("name", CHOSEN)
def test_same_function(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    graph = graph_of(name)
    capfd.readouterr()
    emitted = to_onnx(graph, tmp_path / "net.onnx")
    assert emitted.difference < 1e-5
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert capfd.readouterr() == ("", "")
    model = onnx.load(emitted.path)
    assert [i.name for i in model.graph.input] == [n.name for n in graph.inputs]
    assert {i.type.tensor_type.shape.dim[0].dim_param for i in model.graph.input} == {"B"}
    assert not any(n.metadata_props or n.doc_string for n in model.graph.node)


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    graph = graph_of("gpt_tied")
    model = onnx.load(to_onnx(graph, tmp_path / "net.onnx", optimize=False).path)
    elements = sum(torch.Size(t.dims).numel() for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    assert elements < graph.parameter_count + 100


def test_batch_norm_is_folded_unless_asked(tmp_path: Path) -> None:
    graph = graph_of("resnet")
    kinds = []
    for optimize in (True, False):
        emitted = to_onnx(graph, tmp_path / "net.onnx", optimize=optimize)
        kinds.append({n.op_type for n in onnx.load(emitted.path).graph.node})
    assert "BatchNormalization" not in kinds[0] and "BatchNormalization" in kinds[1]


@pytest.mark.parametrize("name", ["siamese", "mlp"])
def test_batch_norm_may_be_kept_with_its_tensors_in_a_file_that_is_optimised(name: str, tmp_path: Path) -> None:
    graph = graph_of(name)
    norms = sum("batch_norm" in node.op for node in graph.calls)
    folded = onnx.load(to_onnx(graph, tmp_path / "net.onnx").path).graph
    kept = onnx.load(to_onnx(graph, tmp_path / "net.onnx", batch_norm="keep").path).graph
    assert sum(n.op_type == "BatchNormalization" for n in kept.node) == norms > 0
    assert len(folded.node) <= len(kept.node) <= len(folded.node) + norms
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in kept.initializer}
    for node in kept.node:
        for tensor in node.input[1:] if node.op_type == "BatchNormalization" else ():
            assert torch.equal(torch.tensor(stored[tensor]), graph.tensor(tensor))
    assert [i.name for i in kept.input] == [n.name for n in graph.inputs]


def test_what_cannot_become_of_batch_norm_is_told(tmp_path: Path) -> None:
    graph = graph_of("mlp")
    with pytest.raises(EmitError, match=r'no batch_norm .fuse.\n.*give "fold" or "keep"'):
        to_onnx(graph, tmp_path / "net.onnx", batch_norm="fuse")  # type: ignore[arg-type]
    with pytest.raises(EmitError, match=r"not optimised\n(.*\n)*.*fold-batch-norm"):
        to_onnx(graph, tmp_path / "net.onnx", batch_norm="fold", optimize=False)
    assert list(tmp_path.iterdir()) == []
    folded = apply(graph, "fold-batch-norm")
    emitted = to_onnx(folded, tmp_path / "net.onnx", optimize=False)
    assert "BatchNormalization" not in {n.op_type for n in onnx.load(emitted.path).graph.node}


def test_one_batch_size_stays_one(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(4, 6).softmax(1)

    graph = trace(Fixed(), torch.randn(2, 12), static_batch=True)
    model = onnx.load(to_onnx(graph, tmp_path / "net.onnx").path)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


@pytest.mark.parametrize("opset", [13, 18, 25])
def test_the_opset_asked_for_stands_in_the_file(opset: int, tmp_path: Path) -> None:
    graph = graph_of("resnet")
    emitted = to_onnx(graph, tmp_path / "net.onnx", opset=opset)
    model = onnx.load(emitted.path)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]
    assert emitted.difference < 1e-5 and check(graph, emitted.path) == Agreement(emitted.difference, 2 * 10 + 3 * 10)


@pytest.mark.parametrize("opset", [0, -1, 12, 26, 999])
def test_opsets_that_cannot_be_written_are_refused(opset: int, tmp_path: Path) -> None:
    graph = trace(nn.Linear(3, 2), torch.randn(2, 3))
    with pytest.raises(EmitError, match=f"operator set {opset} cannot be written.*\n.*13 to 25 can"):
        to_onnx(graph, tmp_path / "net.onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_stock_gpt2_with_a_mask_is_compared_where_it_is_defined(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=8)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.config.use_cache = False
    tokens, mask = torch.randint(0, 20, (2, 5)), torch.ones(2, 5, dtype=torch.long)
    graph = trace(model, (), {"input_ids": tokens, "attention_mask": mask})
    emitted = to_onnx(graph, tmp_path / "net.onnx")
    assert emitted.difference < 1e-5
    assert 0 < emitted.undefined < 5 * 5 * 20 / 2 and "attend to nothing" in emitted.why
    other = graph.with_tensors({"transformer.ln_f.bias": graph.tensor("transformer.ln_f.bias") + 0.1})
    with pytest.raises(EmitError, match="computes something else"):
        check(other, emitted.path)


def test_operators_an_opset_does_not_have_are_named(tmp_path: Path) -> None:
    graph = trace(nn.Sequential(nn.LayerNorm(6), nn.Softmax(-1)), torch.randn(2, 6))
    to_onnx(graph, tmp_path / "net.onnx", opset=17)
    before = (tmp_path / "net.onnx").read_bytes()
    with pytest.raises(EmitError, match="LayerNormalization is not in it"):
        to_onnx(graph, tmp_path / "net.onnx", opset=16)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_bytes() == before


def test_splits_and_reductions_go_back_to_their_older_forms(tmp_path: Path) -> None:
    class Parts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            one, two = x.chunk(2, 1)
            y: torch.Tensor = (
                (one * two).sum(1) + x.amax((1, 2))[:, None] + nn.functional.pad(x, (1, 2)).prod(1).mean(1)[:, None]
            )
            return y

    graph = trace(Parts(), torch.randn(2, 4, 5))
    emitted = to_onnx(graph, tmp_path / "net.onnx", opset=13)
    nodes = {n.op_type: n for n in onnx.load(emitted.path).graph.node}
    assert emitted.difference < 1e-5 and len(nodes["ReduceMax"].input) == 1


def test_complex_numbers_are_pairs_of_real_ones(tmp_path: Path) -> None:
    class Spectrum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = torch.fft.fft(x * x.conj())
            return y

    graph = trace(Spectrum(), torch.randn(2, 4, dtype=torch.complex64))
    emitted = to_onnx(graph, tmp_path / "net.onnx")
    assert emitted.difference < 1e-5
    shape = onnx.load(emitted.path).graph.input[0].type.tensor_type.shape.dim
    assert (shape[0].dim_param, shape[1].dim_value, shape[2].dim_value) == ("B", 4, 2)


def test_inputs_may_be_named_like_outputs(tmp_path: Path) -> None:
    class Named(nn.Module):
        def forward(self, output: torch.Tensor, output_0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return output + output_0, output

    graph = trace(Named(), (torch.randn(2, 3), torch.randn(2, 3)))
    model = onnx.load(to_onnx(graph, tmp_path / "net.onnx").path)
    assert [o.name for o in model.graph.output] == ["output__0", "output__1"]


def test_a_view_that_no_longer_fits_is_a_reshape(tmp_path: Path) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(5, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = x.reshape(-1, 5, 2, 2).transpose(1, 2)
            y = nn.functional.scaled_dot_product_attention(q, q, q, self.bias)
            return y.transpose(1, 2).reshape(x.shape[0], 5, -1)

    graph = trace(Heads(), torch.randn(2, 5, 4))
    assert to_onnx(graph, tmp_path / "net.onnx").difference < 1e-5


def test_chance_is_a_difference(tmp_path: Path) -> None:
    class Noise(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand_like(x)

    graph = trace(Noise(), torch.randn(2, 3))
    with pytest.raises(EmitError, match="largest difference"):
        to_onnx(graph, tmp_path / "net.onnx")


def test_a_full_disk_is_told_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = trace(nn.Linear(3, 2), torch.randn(2, 3))
    old = to_onnx(graph, tmp_path / "net.onnx").path.read_bytes()

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left on device"):
        to_onnx(graph, tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_bytes() == old and len(list(tmp_path.iterdir())) == 1


def test_weights_beside_the_model_come_with_it_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archir.emit.onnx.LARGEST", 0)
    torch.manual_seed(0)
    graph = trace(nn.Linear(40, 20), torch.randn(2, 40))
    names = ["net.onnx", "net.onnx.data"]
    to_onnx(graph, tmp_path / "net.onnx")
    old = {name: (tmp_path / name).read_bytes() for name in names}
    assert len(old["net.onnx.data"]) >= 4 * 40 * 20
    check(graph, tmp_path / "net.onnx")
    other = graph.with_tensors({"bias": graph.tensor("bias") + 1, "weight": graph.tensor("weight") * 2})
    replace = os.replace

    def fail(source: Path, goal: Path) -> None:
        if Path(goal) == tmp_path / "net.onnx" and Path(source).parent.name != "replaced":
            raise OSError(errno.EROFS, "Read-only file system")
        replace(source, goal)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(FileError, match="Read-only file system"):
        to_onnx(other, tmp_path / "net.onnx")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old
    monkeypatch.setattr(os, "replace", replace)
    to_onnx(other, tmp_path / "net.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    check(other, tmp_path / "net.onnx")


def test_weights_go_beside_the_model_if_asked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = trace(nn.Linear(40, 20), torch.randn(2, 40))
    emitted = to_onnx(graph, tmp_path / "net.onnx", external_data=True)
    (weight,) = (t for t in onnx.load(emitted.path, load_external_data=False).graph.initializer if t.name == "weight")
    assert {entry.key: entry.value for entry in weight.external_data}["location"] == "net.onnx.data"
    assert emitted.difference < 1e-6 and torch.equal(from_onnx(emitted.path).tensor("weight"), graph.tensor("weight"))


def test_errors_name_the_operator_and_the_line(tmp_path: Path) -> None:
    class Distances(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cdist(x, x)

    graph = trace(Distances(), torch.randn(2, 3, 4))
    with pytest.raises(EmitError, match=r"where: aten.cdist.*test_onnx.py:\d+\n  why:   DispatchError"):
        to_onnx(graph, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_errors_leave_nothing_behind(tmp_path: Path) -> None:
    graph = trace(hard.Loops(), (torch.randn(3, 5, 8), torch.randn(3, 1, 8)))
    with pytest.raises(EmitError, match="largest difference"):
        to_onnx(graph, tmp_path / "net.onnx", tolerance=-1.0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "net.onnx").write_text("not a model")
    with pytest.raises(EmitError, match="cannot load"):
        check(graph, tmp_path / "net.onnx")
    with pytest.raises(FileError, match="cannot write"):
        to_onnx(graph, tmp_path / "net.onnx" / "net.onnx")


def test_what_onnx_cannot_say_is_an_error(tmp_path: Path) -> None:
    class Spectrum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values: torch.Tensor = torch.linalg.svdvals(x)
            return values

    graph = trace(Spectrum(), torch.randn(2, 3, 3))
    with pytest.raises(EmitError, match="cannot be written as ONNX"):
        to_onnx(graph, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


class Pooled(nn.Module):
    """Pools whatever is tall enough to a fixed size."""

    def __init__(self, pool: nn.Module, least: int) -> None:
        super().__init__()
        self.pool, self.least = pool, least

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.pool(x)
        return pooled if x.shape[2] >= self.least else pooled + 1.0


@pytest.mark.parametrize("least", [2, 8])
def test_a_file_that_is_right_for_the_size_of_the_example_only_is_refused(least: int, tmp_path: Path) -> None:
    sizes = ({axis: torch.export.Dim.DYNAMIC for axis in (0, 2)},)
    graph = trace(Pooled(nn.AdaptiveAvgPool2d(2), least), (torch.randn(2, 3, 8, 9),), dynamic_shapes=sizes)
    with pytest.raises(EmitError):
        to_onnx(graph, tmp_path / "net.onnx")
    graph = trace(Pooled(nn.AdaptiveAvgPool2d(1), least), (torch.randn(2, 3, 8, 9),), dynamic_shapes=sizes)
    assert to_onnx(graph, tmp_path / "net.onnx").difference < 1e-6


def test_sizes_a_graph_itself_has_no_answer_for_are_not_tried(tmp_path: Path) -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.table(torch.arange(x.shape[1])) + x
            return found

    sizes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    graph = trace(Positions(), (torch.randn(2, 6, 4),), dynamic_shapes=sizes)
    assert to_onnx(graph, tmp_path / "net.onnx").difference < 1e-6


@pytest.mark.parametrize("mixed", [False, True])
def test_half_precision_may_be_rounded_otherwise(mixed: bool, tmp_path: Path) -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(6)).half()
            self.norm = nn.LayerNorm(64).half()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = x.half()
            for layer in self.layers:
                y = y + layer(self.norm(y)).relu()
            return y.to(x.dtype), x.exp()

    torch.manual_seed(0)
    kind = torch.float32 if mixed else torch.float16
    graph = trace(Halves(), torch.randn(3, 64, dtype=kind))
    emitted = to_onnx(graph, tmp_path / "net.onnx")
    assert 1e-4 < emitted.difference < 0.02
    other = graph.with_tensors({"norm.bias": graph.tensor("norm.bias") + 0.1})
    with pytest.raises(EmitError, match="computes something else"):
        check(other, emitted.path)
    assert coarse(graph) == [2**-10, 0.0 if mixed else 2**-10]


def test_what_the_runtime_has_no_kernels_for_says_how_to_go_on(tmp_path: Path) -> None:
    graph = trace(nn.Linear(4, 4).bfloat16(), torch.randn(2, 4, dtype=torch.bfloat16))
    with pytest.raises(EmitError, match=r"graph\.to\(torch\.float32\)"):
        to_onnx(graph, tmp_path / "net.onnx")
    assert to_onnx(graph.to(torch.float32), tmp_path / "net.onnx").difference < 1e-6


@pytest.mark.parametrize("opset", [13, 14])
def test_parts_of_shapes_and_hard_swish_are_said_in_older_operators(opset: int, tmp_path: Path) -> None:
    class Cropped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.clone()
            y[:, 0, 1:-1] = 0.0
            least = torch.sym_min(x.shape[1], x.shape[2])  # type: ignore[no-untyped-call]
            most = torch.sym_max(x.shape[1], x.shape[2])  # type: ignore[no-untyped-call]
            found: torch.Tensor = nn.functional.hardswish(y)[:, :least].sum(1) / most
            return found

    sizes = ({axis: torch.export.Dim.DYNAMIC for axis in (0, 1, 2)},)
    graph = trace(Cropped(), (torch.randn(2, 5, 7),), dynamic_shapes=sizes)
    emitted = to_onnx(graph, tmp_path / "net.onnx", opset=opset)
    model = onnx.load(emitted.path)
    onnx.checker.check_model(model, full_check=True)
    assert [o.version for o in model.opset_import] == [opset]
    assert "Shape" in {n.op_type for n in model.graph.node} and emitted.difference < 1e-5


def test_complex_operators_without_an_onnx_form_are_refused(tmp_path: Path) -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 5, dtype=torch.complex64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            modes = torch.fft.rfft(x)
            kept = torch.zeros_like(modes)
            kept[:, :, :5] = torch.einsum("bim,iom->bom", modes[:, :, :5], self.weight)
            y: torch.Tensor = torch.fft.irfft(kept, n=x.shape[-1])
            return y

    with pytest.warns(CaptureWarning, match="slice_scatter does not support automatic differentiation"):
        graph = trace(Spectral(), torch.randn(2, 4, 16))
    for opset in (None, 13):
        with pytest.raises(EmitError, match=r"where: aten\.\w+\.default, .*test_onnx.py:\d+"):
            to_onnx(graph, tmp_path / "net.onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []
