"""Emitted source computes what the graph computes, keeps the state dict, and reads as a person would write it."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import archir
from archir.emit.check import tensors_in
from archir.emit.python import check, source, to_python
from archir.errors import EmitError, FileError
from archir.ir.graph import Graph
from archir.ir.inputs import random_inputs
from frontends.pytorch import trace
from tests.emit import hard_models as hard
from tests.models.captured import graph_of, without_dropout
from tests.models.zoo import ZOO

HARD: dict[str, tuple[type[nn.Module], tuple[Any, ...]]] = {
    "loops": (hard.Loops, (torch.randn(3, 5, 8), torch.randn(3, 1, 8))),
    "containers": (hard.Containers, (torch.randn(3, 6),)),
    "tied": (hard.Tied, (torch.randint(0, 12, (3, 4)),)),
    "states": (hard.States, (torch.randn(3, 4, 5), (torch.randn(1, 3, 6), torch.randn(1, 3, 6)))),
    "norms": (hard.Norms, (torch.randn(3, 4, 6, 6),)),
    "stages": (hard.Stages, (torch.randn(3, 6, 8),)),
    "operators": (hard.Operators, (torch.randn(3, 8), torch.randn(3, 8))),
}


def zoo(name: str) -> Graph:
    torch.manual_seed(0)
    if name in HARD:
        model, inputs = HARD[name]
        return trace(model(), inputs, static_batch=name == "states")  # a state has its layers first
    return graph_of(name)


def load(path: Path) -> nn.Module:
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    net = module.load()
    assert isinstance(net, nn.Module)
    return net


@pytest.mark.parametrize("name", [*ZOO, *HARD])
def test_same_function_and_state_dict(name: str, tmp_path: Path) -> None:
    graph = zoo(name)
    for flat in (False, True):
        emitted = to_python(graph, tmp_path, name="flat" if flat else "nested", flat=flat)
        assert emitted.difference < 1e-6
        module, net = graph.module(), load(emitted.path)
        wanted, found = module.state_dict(), net.state_dict()
        assert set(wanted) == set(found)
        for key, tensor in wanted.items():
            assert torch.equal(tensor, found[key]), key
        trainable = {k: p.requires_grad for k, p in module.named_parameters(remove_duplicate=False)}
        assert trainable == {k: p.requires_grad for k, p in net.named_parameters(remove_duplicate=False)}
    written = ["flat.py", "flat.safetensors", "nested.py", "nested.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == written
    command = [sys.executable, "-m", "ruff"]
    options = ["--isolated", "--line-length", "120", str(tmp_path)]
    for check_ in (["format", "--diff"], ["check"]):
        result = subprocess.run([*command, *check_, *options], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", ["resnet20", "norms", "encoder", "states", "tied", "stages"])
def test_training_is_the_same(name: str, tmp_path: Path) -> None:
    graph = zoo(name)
    graph = without_dropout(graph).to(torch.float64)
    module, net = graph.module().train(), load(to_python(graph, tmp_path).path).train()
    for step in range(2):
        args, kwargs = random_inputs(graph, 3, seed=step)
        for model in (module, net):
            losses = [t.square().mean() for t in tensors_in(model(*args, **kwargs))]
            torch.autograd.backward(losses)
    gradients = dict(net.named_parameters())
    for key, parameter in module.named_parameters():
        other = gradients[key].grad
        assert (parameter.grad is None) == (other is None), key
        if parameter.grad is not None and other is not None:
            torch.testing.assert_close(other, parameter.grad, rtol=1e-10, atol=1e-12)
    for key, buffer in module.named_buffers():
        torch.testing.assert_close(net.get_buffer(key), buffer, rtol=1e-12, atol=1e-12)


def test_dropout_follows_the_mode(tmp_path: Path) -> None:
    graph = zoo("encoder")
    net = load(to_python(graph, tmp_path).path)
    args, _ = random_inputs(graph)
    assert torch.equal(net(*args), net(*args))
    net.train()
    assert not torch.equal(net(*args), net(*args))
    assert "dropout_p=0.1 if self.training else 0.0" in source(graph)


@pytest.mark.slow
def test_runs_where_archir_is_not_installed(tmp_path: Path) -> None:
    names = ["resnet20", "gpt_tied", "lstm", "nested", "swin", "stages"]
    for name in names:
        graph = zoo(name)
        to_python(graph, tmp_path, name=name)
        args, kwargs = random_inputs(graph)
        torch.save((args, kwargs, tensors_in(graph.module().eval()(*args, **kwargs))), tmp_path / f"{name}.pt")
    script = f"""
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("archir", "frontends", "passes"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import torch
def tensors(x):
    if isinstance(x, torch.Tensor): return [x]
    if isinstance(x, dict): x = x.values()
    return [t for v in x for t in tensors(v)] if isinstance(x, (tuple, list, type({{}}.values()))) else (
        [torch.tensor(x)] if isinstance(x, (int, float)) else [])
for name in {names}:
    args, kwargs, wanted = torch.load(name + ".pt")
    with torch.no_grad():
        found = tensors(importlib.import_module(name).load()(*args, **kwargs))
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
print("done")
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "done", result.stderr


@pytest.mark.parametrize(
    "name", ["mlp", "resnet", "vit", "gpt_tied", "rotary_embedding", "containers", "states", "tied"]
)
def test_follows_the_model_to_another_device(name: str, tmp_path: Path) -> None:
    graph = zoo(name)
    net = load(to_python(graph, tmp_path).path).to("meta")
    args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to("meta"), random_inputs(graph))
    found, wanted = tensors_in(net(*args, **kwargs)), tensors_in(graph.module()(*random_inputs(graph)[0]))
    assert [t.shape for t in found] == [t.shape for t in wanted]
    assert {t.device.type for t in found if t.dim()} == {"meta"}


@pytest.mark.parametrize("name", ["resnet20", "densenet", "vit", "gpt_tied", "grouped_query_attention"])
def test_rewritten_graphs(name: str, tmp_path: Path) -> None:
    graph = zoo(name)
    for at in (0, -1, 3):
        specs = [c.spec for c in archir.candidates(graph)]
        graph = archir.apply(graph, specs[at])
    emitted = to_python(graph, tmp_path)
    assert emitted.difference < 1e-6
    assert all(f"    {spec}\n" in emitted.path.read_text() for spec in graph.history)


def test_tied_weights_are_stored_and_made_once(tmp_path: Path) -> None:
    graph = zoo("gpt_tied")
    path = to_python(graph, tmp_path).path
    net = load(path)
    assert net.get_parameter("head.weight") is net.get_parameter("tokens.weight")
    assert sum(p.numel() for p in net.parameters()) == graph.parameter_count
    assert path.with_suffix(".safetensors").stat().st_size < 4 * graph.parameter_count + 3000
    assert "self.head.weight = self.tokens.weight" in path.read_text()


def test_old_state_dicts_fit(tmp_path: Path) -> None:
    model = ZOO["resnet20"].build()
    net = load(to_python(zoo("resnet20"), tmp_path).path)
    net.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(net.eval()(x), model.eval()(x), atol=1e-6)


def test_source_of_a_residual_network() -> None:
    text = source(zoo("resnet20"))
    assert "torch.ops" not in text and text.count("class ") == 3
    assert (
        """
class BasicBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.bn1(self.conv1(x))))
        return F.relu(self.bn2(y) + x)
"""
        in text
    )


def test_source_of_loops_and_classes_of_several_widths() -> None:
    text = source(zoo("stages"))
    assert text.count("class ") == 3
    assert "        for block in self.blocks:\n" in text
    assert "self.blocks = nn.ModuleList(Mixer(features, out_features) for _ in range(2))" in text
    assert "self.two = Stage(features=12, out_features=24, size=6)" in text
    loops = source(zoo("loops"))
    assert "        for layer in self.layers:\n            x = layer(x, mask)\n" in loops
    assert "self.layers = nn.ModuleList(Mixer(16) for _ in range(3))" in loops
    assert "self.others = nn.ModuleList([Mixer(12), Mixer(20)])" in loops


def test_stock_modules_and_chains() -> None:
    text = source(zoo("norms"))
    assert 'nn.Conv2d(4, 8, (3, 1), padding="same", groups=2), nn.BatchNorm2d(8, momentum=None)' in text
    assert "nn.ConvTranspose2d(8, 4, 3, stride=2, output_padding=1, bias=False)" in text
    assert "nn.BatchNorm2d(8, eps=0.001, affine=False)" in text
    text = source(zoo("containers"))
    assert "nn.Sequential(nn.Identity(), nn.Linear(8, 8), nn.Dropout(0.2), nn.Identity(), nn.ReLU())" in text
    assert "nn.ParameterList(nn.Parameter(torch.zeros(8)) for _ in range(2))" in text
    text = source(zoo("states"))
    assert "x, (h, c) = self.lstm(x, (state_0, state_1))" in text
    assert "nn.GRU(6, 4, num_layers=2, bias=False, dropout=0.3)" in text
    assert 'return {"x": x, "states": (h, [c]), "y": y, "kind": "lstm"}' in text


def test_a_chain_is_a_sequential(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 2))
    graph = trace(model, torch.randn(3, 4))
    text = to_python(graph, tmp_path).path.read_text()
    assert "super().__init__(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 2))" in text


def test_one_layer_is_a_network(tmp_path: Path) -> None:
    graph = trace(nn.Linear(4, 2), torch.randn(3, 4))
    assert "return F.linear(x, self.weight, self.bias)" in source(graph) or "F.linear(" in source(graph)
    assert to_python(graph, tmp_path).difference < 1e-6


def test_history_is_in_the_docstring() -> None:
    graph = zoo("mlp").with_history('split{width="w0"}', "prune{width=w1}")
    text = source(graph, name="grown")
    assert text.startswith(
        f'"""A neural network of {graph.parameter_count:,} parameters; weights in grown.safetensors.'
    )
    assert '    split{width="w0"}\n    prune{width=w1}\n"""' in text


def test_frozen_and_double_precision(tmp_path: Path) -> None:
    model = hard.Tied().double()
    model.head.weight.requires_grad_(False)
    net = load(to_python(trace(model, torch.randint(0, 12, (3, 4))), tmp_path).path)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert not net.get_parameter("embed.weight").requires_grad
    assert net.get_parameter("inner.0.weight").requires_grad


def test_a_wrong_file_is_found(tmp_path: Path) -> None:
    graph = zoo("two_heads")
    path = to_python(graph, tmp_path).path
    text = path.read_text()
    path.write_text(text.replace("F.relu(", "F.gelu("))
    assert path.read_text() != text
    with pytest.raises(EmitError, match="largest difference"):
        check(graph, path)
    path.write_text(text.replace("nn.Linear(", "nn.Bilinear("))
    with pytest.raises(EmitError, match="does not load"):
        check(graph, path)


def test_errors_leave_nothing_behind(tmp_path: Path) -> None:
    graph = zoo("mlp")
    with pytest.raises(EmitError, match="not a name"):
        to_python(graph, tmp_path, name="my net")
    with pytest.raises(EmitError, match="largest difference"):
        to_python(zoo("gpt"), tmp_path, tolerance=-1.0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "taken").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        to_python(graph, tmp_path / "taken")


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Regrouped()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(x.reshape(-1, 4), x.sum())
        return found


class Regrouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.second(self.first(x).relu() * y).reshape(-1, 3, 4)
        return found + x.shape[0] // 3


def test_a_size_that_is_handed_to_a_module_is_one_argument(tmp_path: Path) -> None:
    emitted = to_python(trace(Grouped(), (torch.randn(2, 3, 4),)), tmp_path)
    assert "y: Tensor, batch: int" in emitted.path.read_text()


def test_a_full_disk_is_told_and_leaves_the_old_files(tmp_path: Path) -> None:
    graph = trace(nn.Linear(200, 200), torch.randn(2, 200))
    to_python(graph, tmp_path)
    old = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    soft, hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard_limit))
    try:
        with pytest.raises(FileError, match="File too large"):
            to_python(graph, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard_limit))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old


class RawNet(nn.Module):
    """Parameters and buffers that belong to no layer."""

    ids: Tensor
    count: Tensor
    variance: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(40, 30) * 0.3)
        self.kernel = nn.Parameter(torch.randn(6, 30, 3) * 0.1)
        self.scale = nn.Parameter(1 + 0.1 * torch.randn(30))
        self.bias = nn.Parameter(0.1 * torch.randn(30))
        self.table = nn.Parameter(torch.zeros(5, 30))
        self.register_buffer("ids", torch.arange(5))
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("variance", 1 + 0.3 * torch.rand(30))

    def forward(self, x: Tensor) -> Tensor:
        x = (x @ self.weight * self.scale + self.bias) / self.variance.sqrt() + self.table[self.ids] + self.count
        return torch.conv1d(x.transpose(1, 2), self.kernel)


def test_classes_keep_their_names_and_begin_as_networks_do_without_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RawNet()
    graph = trace(model, (torch.randn(2, 5, 40),))
    text = to_python(graph, tmp_path).path.read_text()
    assert "class RawNet(nn.Module)" in text and "def load() -> RawNet:" in text
    fresh: Any = type(load(tmp_path / "net.py"))()
    assert float(fresh.weight.detach().std()) == pytest.approx(30**-0.5, rel=0.1)
    assert float(fresh.kernel.detach().std()) == pytest.approx(90**-0.5, rel=0.1)
    assert torch.equal(fresh.scale, torch.ones(30)) and torch.equal(fresh.variance, torch.ones(30))
    assert not fresh.bias.any() and not fresh.table.any() and not fresh.count.any()
    assert torch.equal(fresh.ids, torch.arange(5))
    spread = fresh(torch.randn(2, 5, 40)).detach().std()
    assert 0.3 < float(spread) < 3.0
