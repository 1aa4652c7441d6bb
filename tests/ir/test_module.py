from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from archir.errors import GraphError
from archir.ir.graph import Graph
from archir.ir.module import LOWERED, to_module
from archir.ir.parse import parse_graph
from frontends.pytorch import trace
from tests.models.captured import graph_of
from tests.models.zoo import ZOO

NAMES = sorted(ZOO)
RUNNING = ("running_mean", "running_var")


@cache
def traced(name: str) -> tuple[nn.Module, Graph]:
    """Return a model and its graph, with running statistics that are not those of a new one."""
    graph = graph_of(name)
    changed = {n: 1 + 0.2 * torch.rand_like(graph.tensor(n)) for n in graph.by_name if n.endswith(RUNNING)}
    torch.manual_seed(0)
    model = ZOO[name].build()
    model.load_state_dict(changed, strict=False)
    return model, graph.with_tensors(changed)


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """The original and the lowered model, in float64."""
    model, graph = traced(name)
    return copy.deepcopy(model).double(), graph.module().double()


def doubles(tree: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, tree)


def arguments(name: str, batch: int | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    torch.manual_seed(1)
    found: tuple[tuple[Any, ...], dict[str, Any]] = doubles((ZOO[name].inputs(batch), ZOO[name].kwargs(batch)))
    return found


def floats(tree: Any) -> Iterator[Tensor]:
    return (t for t in pytree.tree_leaves(tree) if isinstance(t, Tensor) and t.is_floating_point())


def assert_same(found: Any, expected: Any) -> None:
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        if isinstance(b, Tensor):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        else:
            assert a == b


def backward(result: Any) -> None:
    # Weights that differ from element to element, so that no gradient cancels.
    sum((t * torch.arange(1.0, t.numel() + 1).view_as(t).cos()).sum() for t in floats(result)).backward()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_module_equals_the_original_in_eval_mode(name: str) -> None:
    model, module = pair(name)
    model.eval(), module.eval()
    args, kwargs = arguments(name)
    with torch.no_grad():
        assert_same(module(*args, **kwargs), model(*args, **kwargs))


@pytest.mark.parametrize("name", NAMES)
def test_module_equals_the_original_in_float32(name: str) -> None:
    model, graph = traced(name)
    module = graph.module().eval()
    args, kwargs = ZOO[name].inputs(), ZOO[name].kwargs()
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(*args, **kwargs)
        for a, b in zip(floats(module(*args, **kwargs)), floats(expected), strict=True):
            assert (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_module_trains_as_the_original(name: str) -> None:
    """Outputs, running statistics and gradients agree, dropout included, which draws the same random numbers."""
    model, module = pair(name)
    model.train(), module.train()
    args, kwargs = arguments(name)
    results = []
    for each in (model, module):
        torch.manual_seed(2)
        results.append(each(*args, **kwargs))
        backward(results[-1])
    assert_same(results[1], results[0])
    expected, found = model.state_dict(), module.state_dict()
    assert found.keys() == expected.keys()
    assert_same({k: found[k] for k in expected}, dict(expected))
    gradients = {n: p.grad for n, p in model.named_parameters(remove_duplicate=False)}
    for parameter_name, parameter in module.named_parameters(remove_duplicate=False):
        assert_same(parameter.grad, gradients[parameter_name])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [2, 7])
def test_batch_size_may_change(name: str, batch: int) -> None:
    model, module = pair(name)
    model.eval(), module.eval()
    args, kwargs = arguments(name, batch)
    with torch.no_grad():
        assert_same(module(*args, **kwargs), model(*args, **kwargs))


@pytest.mark.parametrize("name", NAMES)
def test_second_trace_gives_the_same_program(name: str) -> None:
    _, graph = traced(name)
    again = trace(graph.module(), ZOO[name].inputs(), ZOO[name].kwargs())
    assert [n.op for n in again.calls] == [n.op for n in graph.calls]
    assert [n.results for n in again.calls] == [n.results for n in graph.calls]
    assert [n.arguments.keys() for n in again.calls] == [n.arguments.keys() for n in graph.calls]
    assert {k: n.results for k, n in again.by_name.items()} == {k: n.results for k, n in graph.by_name.items()}
    assert again.signature == graph.signature
    for one, other in zip(again.calls, graph.calls, strict=True):
        assert (one.location is None) == (other.location is None)
        if one.location and other.location:
            assert not one.location.file.startswith(LOWERED)
            # A layer whose tensors its parent used, as `nn.MultiheadAttention` does, is called now.
            assert other.location.module in (one.location.module, one.location.module.rpartition(".")[0])


@pytest.mark.parametrize("name", NAMES)
def test_module_runs_on_the_meta_device(name: str) -> None:
    _, graph = traced(name)
    module = graph.module().to("meta").eval()
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), arguments(name))
    result = module.double()(*args, **kwargs)
    assert all(t.device.type == "meta" for t in floats(result))


def test_module_is_a_tree_of_the_original_names() -> None:
    model, graph = traced("resnet")
    module = graph.module()
    assert [n for n, _ in module.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert list(module.state_dict()) == list(model.state_dict())
    assert {n for n, _ in module.named_modules() if n} <= {n for n, _ in model.named_modules()}
    module.load_state_dict(model.state_dict())


def test_module_owns_its_tensors() -> None:
    _, graph = traced("mlp")
    before = {n: graph.tensor(n).clone() for n in graph.by_name}
    module = graph.module().train()
    module(torch.randn(4, 8)).sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(graph.tensor(n), t) for n, t in before.items())


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("gpt_tied", "tokens.weight", "head.weight"),
        ("shared_module", "first.weight", "again.weight"),
    ],
)
def test_tied_tensors_are_one_parameter(name: str, first: str, second: str) -> None:
    model, graph = traced(name)
    assert graph.by_name[first] is graph.by_name[second]
    module = graph.module()
    assert module.get_parameter(first) is module.get_parameter(second)
    assert len(list(module.parameters())) == len(list(model.parameters()))
    assert graph.parameter_count == sum(p.numel() for p in model.parameters())


def test_modes_are_read_from_each_submodule() -> None:
    _, graph = traced("mlp")
    module = graph.module().train()
    x = torch.randn(4, 8)
    module.get_submodule("layers.1").eval()
    before = module.get_buffer("layers.1.running_mean").clone()
    module(x)
    assert torch.equal(module.get_buffer("layers.1.running_mean"), before)
    torch.manual_seed(0)
    dropped = module(x)
    module.get_submodule("layers.3").eval()
    assert not torch.equal(module(x), dropped)
    assert torch.equal(module(x), module(x))


def test_batches_are_counted_and_averaged_cumulatively() -> None:
    class Cumulative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3, momentum=None)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)  # type: ignore[no-any-return]

    model = Cumulative().double()
    x = torch.randn(5, 3, dtype=torch.float64)
    module = trace(model, (x,)).module().train()
    for step in range(1, 4):
        batch = step * x + step
        assert_same(module(batch), model(batch))
        assert_same(module.state_dict(), model.state_dict())
    assert int(module.get_buffer("norm.num_batches_tracked")) == 3


def test_modules_without_running_statistics_stay_as_they_are() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    module = trace(model, (x,)).module().eval()
    assert_same(module(x), model.eval()(x))


def test_deepcopy_and_compile() -> None:
    model, module = pair("resnet")
    copied = copy.deepcopy(module)
    args, _ = arguments("resnet")
    with torch.no_grad():
        assert_same(copied.eval()(*args), model.eval()(*args))
        compiled = torch.compile(module.eval(), backend="eager", fullgraph=True)
        assert_same(compiled(*args), model(*args))
    assert list(copied.state_dict()) == list(module.state_dict())
    assert copied.get_parameter("fc.weight") is not module.get_parameter("fc.weight")


def test_compiled_module_follows_the_mode() -> None:
    _, graph = traced("mlp")
    module = graph.module().double()
    compiled = torch.compile(module, backend="eager")
    args, _ = arguments("mlp")
    module.eval()
    first = compiled(*args)
    module.train()
    assert not torch.equal(compiled(*args), first)
    assert int(module.get_buffer("layers.1.num_batches_tracked")) == 1


def test_hooks_on_the_root_run() -> None:
    _, graph = traced("mlp")
    module = graph.module()
    seen: list[tuple[int, ...]] = []
    module.register_forward_hook(lambda _, __, result: seen.append(tuple(result.shape)))
    module(torch.randn(4, 8))
    assert seen == [(4, 4)]


def test_frozen_parameters_stay_frozen() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    module = trace(model, (torch.randn(2, 3),)).module()
    assert {n: p.requires_grad for n, p in module.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }


def test_submodules_may_be_called_what_modules_call_their_own() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph = nn.Linear(3, 4)
            self.code = nn.Linear(4, 2)

        def forward(self, input: Tensor) -> Tensor:
            return self.code(self.graph(input))  # type: ignore[no-any-return]

    model = Odd()
    module = trace(model, (torch.randn(2, 3),)).module()
    x = torch.randn(5, 3)
    assert_same(module(input=x), model(x))


def test_a_constant_argument_has_to_stay_what_it_was() -> None:
    _, graph = traced("nested")
    module = to_module(graph)
    args, kwargs = ZOO["nested"].inputs(), ZOO["nested"].kwargs()
    with pytest.raises(GraphError, match=r"argument scale is 3.0, and the program was captured for 2.0"):
        module(*args, **{**kwargs, "scale": 3.0})
    assert module(*args, pair=kwargs["pair"])["scale"] == 2.0


def test_a_graph_in_float64_makes_a_float64_module() -> None:
    model, graph = traced("lstm")
    args, _ = arguments("lstm")
    with torch.no_grad():
        assert_same(graph.to(torch.float64).module().eval()(*args), copy.deepcopy(model).double().eval()(*args))


def test_tracebacks_show_the_generated_source() -> None:
    _, graph = traced("mlp")
    module = graph.module().eval()
    next(module.parameters()).data = torch.randn(3, 3)
    with pytest.raises(RuntimeError) as caught:
        module(torch.randn(4, 8))
    lines = [f.line or "" for f in traceback.extract_tb(caught.value.__traceback__)]
    assert any(line.startswith("linear = self.") and line.endswith("(x)") for line in lines)


def test_names_that_are_keywords_of_python() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("lambda", nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)))
            self.register_parameter("class", nn.Parameter(torch.randn(4)))
            self.register_buffer("in", torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = self.get_submodule("lambda")(x)
            return hidden * self.get_parameter("class") + self.get_buffer("in")

    model = Named().double()
    x = torch.randn(5, 4, dtype=torch.float64)
    lowered = trace(model, (x,)).module()
    assert set(lowered.state_dict()) == set(model.state_dict())
    assert torch.equal(lowered.eval()(x), model.eval()(x))
    lowered.train()
    model.train()
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert torch.allclose(lowered(x), expected, rtol=1e-12)


@pytest.mark.parametrize("strict", [False, True])
def test_a_module_is_captured_by_torch_in_both_ways(strict: bool) -> None:
    graph = parse_graph("graph net(x: f32[B, 4]) {\n  %0 = aten.linear(x, @w[4, 4])\n  return %0\n}")
    module, x = graph.module().eval(), torch.randn(3, 4)
    program = torch.export.export(module, (x,), strict=strict)
    assert torch.equal(program.module()(x), module(x))
