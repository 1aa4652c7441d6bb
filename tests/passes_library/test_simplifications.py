"""Simplifications do what the golden files say, keep the function, and leave alone what they must."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from archir.axes.infer import infer_widths
from archir.emit.check import tensors_in
from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.errors import PassError
from archir.ir.graph import Graph
from archir.ir.inputs import random_inputs
from archir.ir.parse import parse_graph
from archir.rewrite.passes import Pass
from archir.rewrite.pipeline import apply_passes
from archir.rewrite.spec import parse_specs
from archir.testing import check_widths, leaves_of, outputs, randomise, relative_difference
from frontends.pytorch import trace
from passes.catalog import PASSES, SIMPLIFICATIONS
from passes.common_subexpressions import CommonSubexpressions
from passes.fold_batch_norm import FoldBatchNorm
from passes.fold_constants import FoldConstants
from passes.fuse_parallel_linear import FuseParallelLinear
from passes.remove_identity import RemoveIdentity
from passes.simplify import Simplify
from tests.models.captured import graph_of, randomised, without_dropout
from tests.models.random_nets import STEPS
from tests.models.random_nets import capture as capture_random
from tests.models.zoo import ZOO

GOLDENS = Path(__file__).parent / "goldens"


@dataclass(frozen=True)
class Case:
    """A graph before and after a pass; equal texts mean that nothing may change."""

    title: str
    spec: str
    before: str
    after: str

    @property
    def unchanged(self) -> bool:
        return self.title.startswith("unchanged")


def cases(file: Path) -> list[Case]:
    """Read `# title`, the specification, the graph, and, after `becomes`, what becomes of it."""
    found = []
    for part in file.read_text().removeprefix("# ").split("\n\n\n# "):
        head, _, body = part.partition("\n\n")
        title, spec = head.split("\n")
        before, _, after = body.rstrip().partition("\n\nbecomes\n\n")
        found.append(Case(title, spec, before, after or before))
    return found


CASES = {f"{p.stem}: {c.title}": c for p in sorted(GOLDENS.glob("*.txt")) for c in cases(p)}


def simplified(graph: Graph, spec: str) -> Graph:
    return apply_passes(graph, parse_specs(spec, PASSES))


def test_every_simplification_has_a_golden_file() -> None:
    assert sorted(p.stem for p in GOLDENS.glob("*.txt")) == sorted(p.name for p in SIMPLIFICATIONS)


@pytest.mark.parametrize("name", CASES)
def test_before_and_after(name: str) -> None:
    case = CASES[name]
    graph = parse_graph(case.before)
    assert str(graph) == case.before
    result = simplified(graph, case.spec)
    assert str(result) == case.after
    assert (result is graph) == case.unchanged
    assert result.history == (() if case.unchanged else (case.spec,))
    assert simplified(result, case.spec) is result
    if not case.unchanged:
        exact = randomise(graph.to(torch.float64))
        inputs = leaves_of(*random_inputs(exact, 3))
        after = outputs(simplified(exact, case.spec), inputs)
        assert relative_difference(after, outputs(exact, inputs)) < 1e-12


# Calls that `simplify` removes from each model of the zoo, and those it adds.
REMOVED: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "vgg": ({"batch_norm": 2}, {}),
    "resnet": ({"batch_norm": 6}, {}),
    "resnet20": ({"batch_norm": 21}, {}),
    "densenet": ({"cat": 1}, {}),
    "mobilenet": ({"batch_norm": 4}, {}),
    "shufflenet": ({"batch_norm": 3, "contiguous": 1}, {}),
    "unet": ({"batch_norm": 3, "pad": 1}, {}),
    "vit": ({"unflatten": 1, "unsqueeze": 1, "contiguous": 1, "slice": 1}, {"reshape": 1}),
    "swin": ({"slice": 6}, {}),
    "siamese": ({"batch_norm": 2}, {}),
    "broadcast_mask": ({"conv2d": 1}, {"split_with_sizes": 1}),
    "gpt": ({"arange": 1}, {}),
    "gpt_tied": ({"arange": 1}, {}),
    "grouped_query_attention": ({"linear": 3, "slice": 2}, {"split": 1, "split_with_sizes": 1}),
    "rotary_embedding": ({"linear": 1}, {"split": 1}),
    "encoder": ({"unflatten": 2, "unsqueeze": 2, "contiguous": 2, "dropout": 6}, {"reshape": 2}),
    "lstm": ({"zeros": 1, "slice": 1}, {}),
    "mlp": ({"batch_norm": 1, "dropout": 1}, {}),
    "nested": ({"mul": 1, "slice": 2}, {}),
    "permutation": ({"slice": 1}, {}),
    "flip_cumsum": ({"linear": 1}, {"split": 1}),
    "misaligned_sums": ({"linear": 3}, {"split_with_sizes": 1}),
    "outer_product": ({"slice": 2}, {}),
    "sorted_units": ({"slice": 1}, {}),
    "two_heads": ({"linear": 1}, {"split_with_sizes": 1}),
    "dilated_pyramid": ({"batch_norm": 1}, {}),
    "weight_standardisation": ({}, {}),
    "split_cascade": ({}, {}),
    "decoder": ({}, {}),
    "gru": ({}, {}),
    "shape_branch": ({}, {}),
    "raw_parameters": ({}, {}),
    "low_rank": ({}, {}),
    "shared_module": ({}, {}),
}


def kinds(graph: Graph) -> Counter[str]:
    return Counter(node.op.split(".")[1] for node in graph.calls)


@pytest.mark.parametrize("name", ZOO)
def test_simplify_keeps_the_function_of_every_model(name: str) -> None:
    graph, inputs = randomised(name)
    result = Simplify().apply(graph)
    assert relative_difference(outputs(result, inputs), outputs(graph, inputs)) < 1e-9
    if name in REMOVED:
        removed, added = REMOVED[name]
        assert kinds(graph) - kinds(result) == removed
        assert kinds(result) - kinds(graph) == added
        assert (result is graph) == (not removed)
    assert Simplify().apply(result) is result
    assert result.history == (() if result is graph else ("simplify",))
    assert str(parse_graph(str(result))) == str(result)
    assert result.parameter_count <= graph.parameter_count
    assert len(infer_widths(result)) == len(infer_widths(graph))


@pytest.mark.parametrize("name", ZOO)
def test_simplify_can_leave_training_as_it_is(name: str) -> None:
    """Outputs, running statistics and gradients in training mode stay what they were."""
    graph, inputs = randomised(name)
    graph = without_dropout(graph)
    result = Simplify(training=True).apply(graph)
    assert relative_difference(outputs(result, inputs), outputs(graph, inputs)) < 1e-9
    args, kwargs = random_inputs(graph, 3)
    modules = [g.module().train() for g in (graph, result)]
    found: list[list[Tensor]] = []
    for module in modules:
        made = tensors_in(module(*args, **kwargs))
        floating = [t for t in made if t.is_floating_point() and t.requires_grad]
        torch.autograd.backward([t.square().sum() for t in floating])
        found.append([t.detach() for t in made])
    assert relative_difference(found[1], found[0]) < 1e-9
    old, new = (dict(m.named_buffers()) for m in modules)
    for key in old.keys() & new.keys():
        torch.testing.assert_close(new[key], old[key], rtol=1e-9, atol=1e-12)
    gradients = [dict(m.named_parameters()) for m in modules]
    for key in gradients[0].keys() & gradients[1].keys():
        one, other = gradients[0][key].grad, gradients[1][key].grad
        assert (one is None) == (other is None), key
        if one is not None and other is not None:
            torch.testing.assert_close(other, one, rtol=1e-7, atol=1e-9)
    lost = old.keys() - new.keys() | gradients[0].keys() - gradients[1].keys()
    fused = {name for node in result.parameters if node.born and node.parameter for name in node.parameter.names}
    assert not lost or fused


@pytest.mark.parametrize("name", ["resnet", "unet", "siamese", "vit", "grouped_query_attention", "misaligned_sums"])
def test_what_is_simplified_is_emitted(name: str, tmp_path: Path) -> None:
    graph = Simplify().apply(graph_of(name))
    emitted = to_python(graph, tmp_path)
    assert emitted.difference < 1e-6
    text = emitted.path.read_text()
    assert "BatchNorm" not in text
    assert "F.conv2d" not in text and "get_parameter" not in text


@pytest.mark.parametrize("name", ["resnet", "rotary_embedding", "misaligned_sums"])
def test_what_is_simplified_goes_to_onnx(name: str, tmp_path: Path) -> None:
    graph = Simplify().apply(graph_of(name))
    assert to_onnx(graph, tmp_path / "net.onnx").difference < 1e-5


@pytest.mark.parametrize("name", ["grouped_query_attention", "misaligned_sums", "siamese", "mlp"])
def test_widths_of_what_is_simplified_are_what_they_claim_to_be(name: str) -> None:
    graph, inputs = randomised(name)
    result = Simplify().apply(graph)
    assert [p for v in check_widths(result, inputs, units=2) for p in v.problems] == []


@pytest.mark.slow
@settings(max_examples=25)
@given(STEPS)
def test_random_nets_keep_their_function(steps: list[tuple[str, int, int]]) -> None:
    graph, x = capture_random(steps)
    graph = randomise(graph.to(torch.float64))
    right = outputs(graph, leaves_of((x,)))
    for spec in ("simplify", "simplify{training=true}"):
        result = simplified(graph, spec)
        assert relative_difference(outputs(result, leaves_of((x,))), right) < 1e-9
        assert simplified(result, spec) is result
        assert result.parameter_count <= graph.parameter_count


SEQUENCES = st.lists(st.sampled_from([p for p in SIMPLIFICATIONS if p is not Simplify]), min_size=1, max_size=8)


@pytest.mark.slow
@settings(max_examples=25)
@given(STEPS, SEQUENCES)
def test_simplifications_go_in_any_order(steps: list[tuple[str, int, int]], order: list[type[Pass]]) -> None:
    graph, x = capture_random(steps)
    graph = randomise(graph.to(torch.float64))
    result = apply_passes(graph, [kind() for kind in order])
    inputs = leaves_of((x,))
    assert relative_difference(outputs(result, inputs), outputs(graph, inputs)) < 1e-9
    assert str(apply_passes(graph, parse_specs("; ".join(result.history), PASSES))) == str(result)


class Branches(nn.Module):
    """Layers of one input in modules of their own, each with its normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(10, 2), nn.Linear(10, 3)])

    def forward(self, x: Tensor) -> list[Tensor]:
        joined = torch.cat([self.left(x), self.right(x)], 1).mean((2, 3))
        return [head(joined) for head in self.heads]


def test_fused_layers_get_a_place_and_a_name(tmp_path: Path) -> None:
    graph = Simplify().apply(trace(Branches(), (torch.randn(2, 3, 5, 5),)))
    fused = {n.parameter.names[0] for n in graph.parameters if n.parameter}
    assert fused == {"left_0_right_0.weight", "left_0_right_0.bias", "heads.fused.weight", "heads.fused.bias"}
    places = {
        n.op: n.location.module
        for n in graph.calls
        if n.location and n.op.endswith(("conv2d.default", "linear.default"))
    }
    assert places == {"aten.conv2d.default": "left_0_right_0", "aten.linear.default": "heads.fused"}
    text = to_python(graph, tmp_path).path.read_text()
    assert "nn.Conv2d(3, 10, 1)" in text and "nn.Linear(10, 5)" in text


class Twice(nn.Module):
    """A convolution with tied names whose result is computed twice, in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 1)
        self.b = self.a
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.a(x)) + self.b(x).relu() + self.a(x).relu()
        return y


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    graph = trace(Twice(), (torch.randn(2, 3, 5, 5),))
    once = CommonSubexpressions().apply(graph)
    assert kinds(once) == {"conv2d": 1, "batch_norm": 1, "relu": 1, "add": 2}
    assert FoldBatchNorm().apply(once) is once, "the convolution has another user"
    folded = FoldBatchNorm().apply(graph)
    assert kinds(folded) == {"conv2d": 3, "relu": 2, "add": 2}
    names = {n.parameter.names for n in folded.parameters if n.parameter}
    assert names == {("a.weight", "b.weight"), ("a.bias", "b.bias"), ("a.weight_1",), ("a.bias_1",)}
    assert torch.equal(folded.tensor("a.weight"), graph.tensor("a.weight"))
    for result in (once, folded):
        assert to_python(result, tmp_path).difference < 1e-6


def test_the_tensors_of_the_graph_before_stay_as_they_were() -> None:
    for name in ("resnet", "siamese", "two_heads"):
        graph, inputs = randomised(name)
        kept = {i: t.clone() for i, t in graph.tensors.items()}
        right = outputs(graph, inputs)
        Simplify().apply(graph)
        assert all(torch.equal(graph.tensors[i], t) for i, t in kept.items())
        assert relative_difference(outputs(graph, inputs), right) == 0.0


def test_stored_zeros_and_ones_are_recognised() -> None:
    text = """\
graph net(x: f32[B, 4]) {
  %0 = aten.mul.Tensor(buffer @ones[4], x)
  %1 = aten.add.Tensor(%0, frozen param @zeros[1])
  %2 = aten.add.Tensor(%1, @learned[4])
  %3 = aten.batch_norm(%2, None, None, buffer @mean[4], buffer @var[4], training=False, momentum=0.1, eps=1e-05, \
cudnn_enabled=True)
  %4 = aten.mul.Tensor(%3, @var)
  return %4
}"""
    ones, zeros = torch.ones(4), torch.zeros(4)
    tensors = {"ones": ones, "zeros": torch.zeros(1), "learned": zeros, "mean": zeros, "var": ones}
    graph = RemoveIdentity().apply(parse_graph(text, tensors))
    assert kinds(graph) == {"add": 1, "batch_norm": 1, "mul": 1}, "what is learned or written in training stays"


def test_frozen_weights_make_frozen_biases() -> None:
    text = """\
graph net(x: f32[B, 4]) {
  %0 = aten.linear(x, frozen param @fc.weight[3, 4])
  %1 = aten.add.Tensor(%0, 1)
  return %1
}"""
    graph = simplified(parse_graph(text), "fold-scale")
    bias = graph.by_name["fc.bias"].parameter
    assert bias is not None and bias.kind == "parameter" and not bias.trainable


def test_constants_get_a_free_name_and_are_not_saved() -> None:
    text = """\
graph net(x: f32[B, 4]) {
  %0 = aten.linear(x, @constant.weight[4, 4])
  %1 = aten.arange(end=4)
  %2 = aten.add.Tensor(%0, %1)
  return %2
}"""
    graph = FoldConstants().apply(parse_graph(text))
    assert sorted(graph.by_name) == ["constant.weight", "constant_"]
    assert list(graph.module().state_dict()) == ["constant.weight"]


def test_a_negative_limit_is_refused() -> None:
    graph = parse_graph("graph net(x: f32[B]) {\n  return x\n}")
    with pytest.raises(PassError, match="limit of at least 0"):
        FoldConstants(limit=-1).apply(graph)


def test_parallel_layers_are_trained_alike() -> None:
    """Adam moves the parts of a fused layer as it moves the layers."""
    graph, _ = randomised("two_heads")
    result = FuseParallelLinear().apply(graph)
    args, kwargs = random_inputs(graph, 5)
    modules = [g.module() for g in (graph, result)]
    for module in modules:
        optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
        for _ in range(3):
            optimiser.zero_grad()
            torch.autograd.backward([t.square().sum() for t in tensors_in(module(*args, **kwargs))])
            optimiser.step()
    with torch.no_grad():
        one, other = (tensors_in(m(*args, **kwargs)) for m in modules)
    assert relative_difference(other, one) < 1e-9


class Wrapped(nn.Module):
    """A convolution and its normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)
        self.normalisation = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.normalisation(self.convolution(x))
        return y


def test_a_module_of_which_one_layer_is_left_is_emitted(tmp_path: Path) -> None:
    model = nn.Sequential(Wrapped(3), nn.ReLU(), Wrapped(3))
    graph = Simplify().apply(trace(model, (torch.randn(2, 3, 5, 5),)))
    assert kinds(graph) == {"conv2d": 2, "relu": 1}
    emitted = to_python(graph, tmp_path)
    assert emitted.difference < 1e-6
    assert "0.convolution.weight" in graph.by_name


class Table(nn.Module):
    """Adds a table that is computed each time."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.layer = nn.Linear(40, 40)

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.arange(40.0) * self.rate
        y: Tensor = self.layer(x + angles.sin()).relu() * angles.cos()
        return y


def test_many_constants_are_emitted(tmp_path: Path) -> None:
    names = [f"{word}_part_of_the_network" for word in ("first", "second", "third")]
    model = nn.Sequential()
    for i, name in enumerate(names):
        model.add_module(name, Table(0.1 + i))
    graph = Simplify().apply(trace(model, (torch.randn(2, 40),)))
    assert {f"{name}.constant" for name in names} <= set(graph.by_name)
    assert to_python(graph, tmp_path).difference < 1e-6
