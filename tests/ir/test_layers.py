"""Which calls are those of a layer of `torch.nn`, and that such a layer makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from archir.ir.graph import Graph
from archir.ir.layers import BARE, KINDS, Make, bare_layer, find_layers
from archir.ir.parse import parse_graph
from frontends.pytorch import trace

LAYERS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "Linear": lambda: (nn.Linear(4, 3, bias=False), (2, 4)),
    "Conv1d": lambda: (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 8)),
    "Conv2d": lambda: (nn.Conv2d(4, 6, (3, 1), padding="same", dilation=2), (2, 4, 8, 8)),
    "ConvTranspose2d": lambda: (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), (2, 4, 5, 5)),
    "BatchNorm2d": lambda: (nn.BatchNorm2d(4, eps=1e-3, momentum=None), (2, 4, 3, 3)),
    "BatchNorm1d": lambda: (nn.BatchNorm1d(4, momentum=0.3, affine=False), (5, 4)),
    "LayerNorm": lambda: (nn.LayerNorm((3, 4), eps=1e-6), (2, 3, 4)),
    "GroupNorm": lambda: (nn.GroupNorm(2, 4), (2, 4, 3)),
    "PReLU": lambda: (nn.PReLU(4), (2, 4)),
    "LSTM": lambda: (nn.LSTM(4, 3, 2, batch_first=True, dropout=0.2, bidirectional=True), (2, 5, 4)),
    "GRU": lambda: (nn.GRU(4, 3, bias=False, batch_first=True), (2, 5, 4)),
    "Dropout1d": lambda: (nn.Dropout1d(0.3), (2, 4, 3)),
    "Dropout2d": lambda: (nn.Dropout2d(0.3), (2, 4, 3, 3)),
    "Dropout3d": lambda: (nn.Dropout3d(0.3), (2, 4, 3, 3, 3)),
    "MaxPool2d": lambda: (nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), (2, 4, 8, 8)),
    "Flatten": lambda: (nn.Flatten(2), (2, 4, 3, 3)),
    "Softplus": lambda: (nn.Softplus(2.0, 10.0), (2, 4)),
    "Softmax": lambda: (nn.Softmax(-1), (2, 4)),
}


def second(result: Any) -> torch.Tensor:
    """Return the first tensor of a result, and the last of its states with it."""
    if isinstance(result, tuple):
        states = result[1] if isinstance(result[1], tuple) else (result[1],)
        return result[0].sum() + states[-1]  # type: ignore[no-any-return]
    return result  # type: ignore[no-any-return]


class Holder(nn.Module):
    """Calls one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * second(self.layer(x))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_found_and_made_as_it_was(kind: str) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[kind]()
    model, x = Holder(layer), torch.randn(shape)
    state = torch.random.get_rng_state()
    module: Any = trace(model, x).module()
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing is drawn to be written over
    assert type(module.layer).__name__ == kind in KINDS | BARE
    assert module.layer.extra_repr() == layer.extra_repr()
    for training in (False, True):
        results = []
        for each in (model, module):
            torch.manual_seed(1)
            results.append(each.train(training)(x))
        assert torch.equal(*results)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in module.state_dict().items())


def net(call: str, stored: str = "") -> Graph:
    return parse_graph(f"graph net(x: f32[B, 4]) {{\n{stored}  %0 = {call}\n  return %0\n}}")


def test_tensors_under_other_names_or_of_other_kinds_are_no_layer() -> None:
    assert find_layers(net("aten.linear(x, @fc.weight[3, 4])")).layers.keys() == {"fc"}
    for weight in ("@fc.kernel[3, 4]", "buffer @fc.weight[3, 4]", "@weight[3, 4]", "@fc.weight[4]"):
        assert not find_layers(net(f"aten.linear(x, {weight})")).layers
    more = "  buffer @fc.scale : f32[3]\n"
    assert not find_layers(net("aten.linear(x, @fc.weight[3, 4])", more)).layers


def test_a_batch_norm_that_counts_nothing_keeps_its_state_dict() -> None:
    tensors = ", ".join(f"{word}@bn.{n}[4]" for word, n in [("", "weight"), ("", "bias"), ("buffer ", "running_mean")])
    graph = net(f"aten.batch_norm(x, {tensors}, buffer @bn.running_var[4], False, 0.1, 1e-05, True)")
    assert find_layers(graph).layers["bn"].extra == {"num_batches_tracked"}
    module: Any = graph.module()
    assert type(module.bn) is nn.Module and set(module.state_dict()) == set(graph.by_name)
    assert module(torch.randn(3, 4)).shape == (3, 4)


def test_rows_counted_from_the_end_are_left_to_the_operator() -> None:
    text = "graph net(x: i64[B]) {{\n  %0 = aten.embedding(@table.weight[5, 3], x{})\n  return %0\n}}"
    for option, found in (("", True), (", padding_idx=2", True), (", padding_idx=-2", False)):
        graph = parse_graph(text.format(option))
        assert bool(find_layers(graph).layers) == found
        assert graph.module()(torch.tensor([1, 4])).shape == (2, 3)


def test_what_torch_refuses_to_make_is_no_layer() -> None:
    assert Make("Dropout", (("p", 0.5),)).is_made and not Make("Dropout", (("p", 1.5),)).is_made
    with pytest.raises(ValueError, match="makes no Dropout"):
        Make("Dropout", (("p", 1.5),)).layer()


def test_layers_are_not_one_for_options_that_are_equal_and_shown_otherwise() -> None:
    one, other = (Make("LeakyReLU", (("negative_slope", slope),)).layer() for slope in (1, 1.0))
    assert [type(layer.negative_slope) for layer in (one, other)] == [int, float]
    assert one._forward_hooks is not other._forward_hooks


def test_a_call_with_other_arguments_than_its_layer_is_its_operator() -> None:
    (node,) = net("aten.relu(x)").calls
    assert bare_layer(node) == Make("ReLU", ())
    for call in (
        "aten.softmax.int(x, -1, dtype=f64)",
        "aten.elu(x, 1.0, 2.0)",
        "aten.dropout(x, 0.5, True)",
    ):
        (node,) = net(call).calls
        assert bare_layer(node) is None
