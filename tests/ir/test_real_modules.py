"""What PyTorch and people do with modules they have works on modules of graphs."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call, jvp, vmap
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize
from torch.optim import swa_utils
from torch.utils import _pytree as pytree

from archir import apply
from archir.comparison import compare
from archir.ir.layers import KINDS
from archir.ir.notes import program_checksum
from archir.ir.parse import parse_graph
from frontends.pytorch import trace
from tests.models.captured import graph_of
from tests.models.zoo import ZOO

NAMES = sorted(ZOO)
MADE = tuple(getattr(nn, kind) for kind in KINDS)


class Block(nn.Module):
    """A normalised residual block with dropout of its own, some of it written as functions."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(features, features, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(features)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(x + self.drop(self.norm(self.conv(x))))


class Net(nn.Module):
    """Two blocks in a sequence, and a shared activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 4, 1)
        self.act = nn.LeakyReLU(0.2)
        self.blocks = nn.Sequential(Block(4), Block(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.act(self.blocks(self.act(self.stem(x)))).mean(-1))
        return found


def made() -> tuple[Any, Any, Tensor]:
    """Return a model, the module of its graph, and inputs, in float64."""
    torch.manual_seed(0)
    model: Any = Net().double()
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    for norm in (block.norm for block in model.blocks):
        norm.running_mean.normal_()
    return model, trace(model, x).module(), x


def outputs_of_layers(module: nn.Module, names: set[str], name: str) -> dict[str, list[Tensor]]:
    """Return what each layer gives in evaluation mode, as hooks on it see it."""
    seen: dict[str, list[Tensor]] = {}
    parts = {n: part for n, part in module.named_modules() if n in names}
    for path, part in parts.items():
        part.register_forward_hook(
            lambda _, __, result, path=path: seen.setdefault(path, []).extend(
                t.clone() for t in pytree.tree_leaves(result)
            )
        )
    torch.manual_seed(1)
    with torch.no_grad():
        module.eval()(*ZOO[name].inputs(), **ZOO[name].kwargs())
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_those_of_the_model_and_give_what_they_gave(name: str) -> None:
    """Every layer with tensors the model has is there, made alike, and hooks see the same tensors go through it."""
    torch.manual_seed(0)
    model = ZOO[name].build()
    module = graph_of(name).module()
    state = model.state_dict()
    module.load_state_dict({key: state[key] for key in module.state_dict()})
    layers = dict(module.named_modules())
    called = {n for n, part in model.named_modules() if type(part) in MADE}
    wanted, found = outputs_of_layers(model, called, name), outputs_of_layers(module, called, name)
    assert called or not any(isinstance(part, MADE) for part in layers.values())
    for path in wanted:
        layer, other = layers[path], model.get_submodule(path)
        assert type(layer) is type(other), path
        assert layer.extra_repr() == other.extra_repr()
        assert len(found[path]) == len(wanted[path])
        # The layers of transformers compute otherwise in evaluation than what is captured of them.
        torch.testing.assert_close(found[path], wanted[path], rtol=1e-5, atol=1e-6)


def test_modules_stand_where_they_stood() -> None:
    model, module, _ = made()
    names = {n: type(part).__name__ for n, part in model.named_modules() if n}
    assert {n: type(part).__name__ for n, part in module.named_modules() if n} == names
    assert type(module.blocks) is nn.Sequential
    assert [type(block).__name__ for block in module.blocks] == ["Block", "Block"]
    assert str(module.blocks[1].conv) == str(model.blocks[1].conv)


@pytest.mark.parametrize(
    "evaluated", [(), ("",), ("blocks.1",), ("", "~blocks", "blocks.0.norm"), ("~", "blocks.0.drop")]
)
def test_modules_are_in_the_modes_of_the_model(evaluated: tuple[str, ...]) -> None:
    """Also where a graph was written and read, or rewritten; a path after `~` is back in training."""
    model, _, x = made()
    for path in evaluated:
        model.get_submodule(path.removeprefix("~")).train(path.startswith("~"))
    wanted = {path: part.training for path, part in model.named_modules()}
    graph = trace(model, x)
    assert parse_graph(str(graph)).signature == graph.signature
    for each in (graph, apply(graph, "split{width=w0, units=[0]}")):
        assert {path: part.training for path, part in each.module().named_modules()} == wanted
    torch.manual_seed(2)
    found = graph.module()(x)
    torch.manual_seed(2)
    torch.testing.assert_close(found, model(x), rtol=1e-12, atol=1e-12)


def test_how_modules_begin_is_no_part_of_what_a_program_is() -> None:
    model, _, x = made()
    one, other = trace(model.train(), x), trace(model.eval(), x)
    assert str(one) != str(other)
    assert program_checksum(one) == program_checksum(other)
    assert compare(one, other).same_program


def test_hooks_on_blocks_and_layers_run_and_may_change_what_goes_through() -> None:
    model, module, x = made()
    seen: list[str] = []
    for path in ("stem", "blocks", "blocks.0", "blocks.1.drop", "act"):
        for each in (model, module):
            each.get_submodule(path).register_forward_pre_hook(lambda part, given: seen.append(type(part).__name__))
    plain = module.eval()(x)
    assert torch.equal(plain, model.eval()(x))
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :] and len(seen) == 12
    for each in (model, module):
        each.get_submodule("blocks.1").register_forward_hook(lambda _, __, result: 2 * result)
        each.get_submodule("act").register_full_backward_pre_hook(lambda _, gradients: (3 * gradients[0],))
    found, wanted = module(x), model(x)
    assert torch.equal(found, wanted) and not torch.equal(found, plain)
    (one,), (other,) = (
        torch.autograd.grad(y.sum(), [each.stem.weight]) for y, each in ((found, module), (wanted, model))
    )
    assert torch.equal(one, other)


def test_each_layer_follows_its_own_mode() -> None:
    model, module, x = made()
    for each in (model, module):
        each.train()
        each.get_submodule("blocks.0.norm").eval()
        each.get_submodule("blocks.1.drop").eval()
    for _ in range(2):
        results = []
        for each in (model, module):
            torch.manual_seed(3)
            results.append(each(x))
        assert torch.equal(*results)
    found, wanted = module.state_dict(), model.state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert [int(module.get_buffer(f"blocks.{i}.norm.num_batches_tracked")) for i in (0, 1)] == [0, 2]


def test_a_shared_layer_is_one_object_called_twice() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3)
            self.same = self.one

        def forward(self, x: Tensor) -> Tensor:
            return self.same(torch.tanh(self.one(x)))  # type: ignore[no-any-return]

    x = torch.randn(2, 3)
    module: Any = trace(Shared(), x).module()
    assert module.one is module.same
    calls: list[None] = []
    hook = module.one.register_forward_hook(lambda *_: calls.append(None))
    module(x)
    assert len(calls) == 2
    hook.remove()
    copied = pickle.loads(pickle.dumps(module))
    assert copied.one is copied.same and torch.equal(copied(x), module(x))


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles_are_the_module(name: str) -> None:
    module = graph_of(name).module().eval()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    args, kwargs = ZOO[name].inputs(), ZOO[name].kwargs()
    wanted = pytree.tree_leaves(module(*args, **kwargs))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        assert [(n, type(m).__name__) for n, m in other.named_modules()] == [
            (n, type(m).__name__) for n, m in module.named_modules()
        ]
        found = pytree.tree_leaves(other(*args, **kwargs))
        assert len(found) == len(wanted)
        assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(found, wanted, strict=True))
        stored = [t.data_ptr() for t in (*other.parameters(), *other.buffers())]
        assert not {t.data_ptr() for t in (*module.parameters(), *module.buffers()) if t.numel()} & {*stored}


@pytest.mark.slow
def test_a_module_is_saved_for_another_process(tmp_path: Path) -> None:
    model, module, x = made()
    torch.save((module.eval(), x, model.eval()(x)), tmp_path / "net.pt")
    script = f"import torch; net, x, y = torch.load({str(tmp_path / 'net.pt')!r}, weights_only=False)"
    script += "; assert torch.equal(net(x), y); print(type(net.blocks[0]).__name__)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.stdout == "Block\n", ended.stderr


def test_part_of_a_module_is_pickled_alone() -> None:
    _, module, _ = made()
    block = pickle.loads(pickle.dumps(module.eval().blocks[1]))
    hidden = torch.randn(2, 4, 5, dtype=torch.float64)
    assert torch.equal(block(hidden), module.blocks[1](hidden))


def test_batch_norms_become_synchronised_ones() -> None:
    model, module, x = made()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    assert [n for n, part in converted.named_modules() if isinstance(part, nn.SyncBatchNorm)] == [
        f"blocks.{i}.norm" for i in (0, 1)
    ]
    assert torch.equal(converted.eval()(x), model.eval()(x))


def test_batch_statistics_are_updated_by_torch() -> None:
    model, module, x = made()
    batches = [x + i for i in range(3)]
    for each in (model, module):
        torch.manual_seed(5)
        swa_utils.update_bn(batches, each)
    found, wanted = module.state_dict(), model.state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert int(found["blocks.1.norm.num_batches_tracked"]) == 3


def test_weights_are_averaged_by_torch() -> None:
    model, module, x = made()
    averaged = []
    for each in (model, module):
        ema = swa_utils.get_ema_multi_avg_fn(0.5)  # type: ignore[no-untyped-call]
        average = swa_utils.AveragedModel(each, multi_avg_fn=ema)
        optimiser = torch.optim.SGD(each.parameters(), 0.1)
        for step in range(3):
            torch.manual_seed(step)
            optimiser.zero_grad()
            each.train()(x).square().mean().backward()
            optimiser.step()
            average.update_parameters(each)
        averaged.append(average.eval()(x))
    assert torch.equal(*averaged)


def test_parametrised_layers_compute_with_what_they_are_given() -> None:
    model, module, x = made()
    for each in (model, module):
        parametrizations.weight_norm(each.get_submodule("head"))
        parametrizations.orthogonal(each.get_submodule("stem"))
        each.get_submodule("head").parametrizations.weight.original0.data.mul_(2)
    assert parametrize.is_parametrized(module.get_submodule("head"))
    assert torch.allclose(module.eval()(x), model.eval()(x), rtol=0, atol=1e-12)
    parametrize.remove_parametrizations(module.get_submodule("head"), "weight")
    assert torch.allclose(module(x), model(x), rtol=0, atol=1e-12)


def test_tensors_that_are_read_where_they_stand_may_be_parametrised() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner: Any = nn.Module()
            self.inner.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = x * self.inner.scale
            return found

    class Double(nn.Module):
        def forward(self, scale: Tensor) -> Tensor:
            return 2 * scale

    x = torch.randn(2, 3)
    module: Any = trace(Scale(), x).module()
    parametrize.register_parametrization(module.inner, "scale", Double())
    assert torch.equal(module(x), 2 * x)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def step(module: Any, x: Tensor) -> list[Any]:
    """Return the gradients of a step of training."""
    torch.manual_seed(7)
    module.train()(x).square().mean().backward()
    return [p.grad for p in module.parameters()]


@pytest.mark.usefixtures("group")
def test_distributed_data_parallel_trains_it() -> None:
    model, module, x = made()
    found, wanted = step(DistributedDataParallel(module), x), step(model, x)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.usefixtures("group")
def test_fully_sharded_blocks_train_as_the_model() -> None:
    model, module, x = made()
    mesh = init_device_mesh("cpu", (1,))
    for part in (*module.get_submodule("blocks"), module):
        fully_shard(part, mesh=mesh)
    found = [g.full_tensor() for g in step(module, x)]
    wanted = step(model, x)
    assert len(found) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_linear_layers_are_quantised() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(3, 8)
    quantised = []
    for each in (model, trace(model, x).module()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it will move to another package, and of types of its own
            quantise: Any = torch.ao.quantization.quantize_dynamic
            quantised.append(quantise(each.eval(), {nn.Linear}))
    assert isinstance(quantised[1][0], torch.ao.nn.quantized.dynamic.Linear)
    assert torch.equal(quantised[1](x), quantised[0](x)) and not torch.equal(quantised[0](x), model(x))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_functional_calls_and_transforms_go_through() -> None:
    model, module, x = made()
    model.eval(), module.eval()
    weights = {n: p.detach() for n, p in model.named_parameters()}
    results: list[tuple[Tensor, ...]] = []
    for each in (model, module):

        def run(weights: dict[str, Tensor], x: Tensor, each: nn.Module = each) -> Tensor:
            return functional_call(each, weights, (x,))  # type: ignore[no-any-return]

        tangents = {n: torch.ones_like(p) for n, p in weights.items()}
        value, derivative, *_ = jvp(lambda w, run=run: run(w, x), (weights,), (tangents,))
        each_example = vmap(lambda one, run=run: run(weights, one[None])[0])(x)
        results.append((value, derivative, each_example))
    for found, wanted in zip(*results, strict=True):
        assert torch.allclose(found, wanted, rtol=0, atol=1e-12)


def test_compiled_it_trains_as_it_is() -> None:
    model, module, x = made()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    module.get_submodule("blocks.0.drop").eval(), model.get_submodule("blocks.0.drop").eval()
    module.get_submodule("blocks.1.drop").eval(), model.get_submodule("blocks.1.drop").eval()
    results = []
    for each, called in ((model, model), (module, compiled)):
        loss = called(x).square().mean()
        loss.backward()
        results.append([loss, *(p.grad for p in each.parameters()), *each.buffers()])
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(*results, strict=True))


def test_a_place_that_is_a_tensor_too_is_no_module() -> None:
    text = """graph net(x: f32[B, 4]) {
      %0 = aten.linear(x, @fc.weight[4, 4]) #: id=2 module="fc.weight"
      %1 = aten.relu(%0) #: id=3 module="fc.weight.act"
      return %1
    }"""
    module: Any = parse_graph(text).module()
    assert isinstance(module.fc.weight, nn.Parameter)
    x = torch.randn(3, 4)
    assert torch.equal(module(x), torch.relu(x @ module.fc.weight.T))
