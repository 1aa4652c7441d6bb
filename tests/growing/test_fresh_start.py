from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from archir.api import apply
from archir.axes.infer import infer_widths
from archir.errors import GrowError, ParseError
from archir.growing.fresh_start import drawn_afresh
from archir.ir.graph import Graph
from archir.rewrite.morphism import Morphism
from archir.testing import outputs
from frontends.pytorch import trace
from passes.catalog import PASSES
from tests.growing.small_run import Seed, mlp

KINDS: list[Morphism] = [kind() for kind in PASSES.values() if issubclass(kind, Morphism)]


def cnn(width: int) -> nn.Module:
    first = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
    second = nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(*first, *second, nn.Linear(8 * width, 50))


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(12, width)
        self.cells = nn.LSTM(width, 2 * width, batch_first=True)
        self.head = nn.Linear(2 * width, 50)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.cells(self.inner(x))[0])
        return logits


MODELS: dict[str, tuple[Callable[[int], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (mlp, lambda: torch.randn(2, 20)),
    "cnn": (cnn, lambda: torch.randn(2, 3, 4, 4)),
    "lstm": (Recurrent, lambda: torch.randn(2, 5, 12)),
}


def trained(graph: Graph) -> Graph:
    """Return a graph all of whose numbers have changed, as training and θ would."""
    generator = torch.Generator().manual_seed(1)
    return graph.with_stored(
        {
            i: t + torch.randn(t.shape, generator=generator).to(t)
            for i, t in graph.tensors.items()
            if t.is_floating_point()
        }
    )


def resized(graph: Graph, old: int, new: int) -> Graph:
    """Return a graph whose widths of `old` or `2 old` units have `new` or `2 new` after prunes or splits."""
    for name in [w.name for w in infer_widths(graph) if w.size in (old, 2 * old)]:
        size = infer_widths(graph)[name].size
        if new < old:
            graph = apply(graph, f"prune{{width={name}, units={list(range(0, size, 2))}}}")
        else:
            graph = apply(graph, f"split{{width={name}, units={list(range(size))}}}")
    return graph


@pytest.mark.parametrize("new", [24, 96])
@pytest.mark.parametrize("name", MODELS)
def test_what_was_pruned_or_split_is_drawn_as_pytorch_draws_it(name: str, new: int) -> None:
    make, sample = MODELS[name]
    torch.manual_seed(0)
    begun, wanted = (trace(make(width), (sample(),)) for width in (48, new))
    found = trained(resized(begun, 48, new))
    fresh = drawn_afresh(found, begun, KINDS, seed=3)
    assert str(fresh) == str(found)
    for node in wanted.parameters:
        (tensor_name, *_), tensor = node.names, wanted.tensors[node.id]
        drawn = fresh.tensor(tensor_name)
        assert drawn.shape == tensor.shape
        if node.is_trainable and len(set(tensor.flatten().tolist())) > 1:
            error = 4 * (2 * min(tensor.numel(), begun.tensor(tensor_name).numel())) ** -0.5 + 0.03
            torch.testing.assert_close(drawn.std(), tensor.std(), rtol=error, atol=0)
        else:
            assert torch.equal(drawn, tensor), tensor_name


def test_norms_biases_and_buffers_begin_as_they_did_unit_by_unit() -> None:
    torch.manual_seed(0)
    model = cnn(8).eval()
    norm = model.get_submodule("1")
    with torch.no_grad():
        for i, name in enumerate(("weight", "bias", "running_mean", "running_var")):
            norm.state_dict()[name].copy_(torch.arange(1.0, 9) * 10**i)
        model.get_parameter("3.bias").fill_(0.5)
    begun = trace(model, (torch.randn(2, 3, 4, 4),))
    width = next(w.name for w in infer_widths(begun) if w.size == 8)
    found = apply(begun, f"prune{{width={width}, units=[0, 5]}}")
    found = trained(apply(found, f"split{{width={width}, units=[1]}}"))
    fresh = drawn_afresh(found, begun, KINDS, seed=0)
    units = torch.tensor([2.0, 3, 4, 5, 7, 8, 3])
    for i, name in enumerate(("weight", "bias", "running_mean", "running_var")):
        assert torch.equal(fresh.tensor(f"1.{name}"), units * 10**i)
    assert torch.equal(fresh.tensor("1.num_batches_tracked"), begun.tensor("1.num_batches_tracked"))
    assert torch.equal(fresh.tensor("3.bias"), torch.full((16,), 0.5))


BLOCKS = ("squeeze-excite", "residual-branch", "deepen", "parallel-branch")


@pytest.fixture(scope="module")
def begun() -> Graph:
    torch.manual_seed(0)
    return trace(Seed(8).double().eval(), (torch.randn(2, 1, 6, 6).double(),))


@pytest.mark.parametrize("name", BLOCKS)
def test_an_inserted_block_begins_as_the_identity(name: str, begun: Graph) -> None:
    (kind,) = (k for k in KINDS if k.name == name)
    plain = drawn_afresh(trained(begun), begun, KINDS, seed=0)
    inputs = [torch.randn(3, 1, 6, 6).double()]
    sites = list(kind.sites(begun))
    assert sites
    for site in sites:
        fresh = drawn_afresh(trained(site.members[0].apply(begun)), begun, KINDS, seed=0)
        for one, other in zip(outputs(fresh, inputs), outputs(plain, inputs), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_an_inserted_layer_is_drawn_at_the_scale_of_its_pass_whatever_its_widths_have_become(begun: Graph) -> None:
    """Normal with variance 2 / fan-in, of 16 units by 9 places and later of 8 by 9; zeros and ones stay so."""
    spliced = apply(begun, "residual-branch{after=%4, hidden=64}; deepen{after=%4}")
    read = ("inner.1.residual.conv1.weight", 1)
    (width,) = (w for w in infer_widths(spliced) if read in {(p.parameter, p.axis) for p in w.places})
    for graph, fan_in in (
        (spliced, 144),
        (apply(spliced, f"prune{{width={width.name}, units={list(range(8))}}}"), 72),
        (apply(spliced, f"split{{width={width.name}, units={list(range(16))}}}"), 288),
    ):
        fresh = drawn_afresh(trained(graph), begun, KINDS, seed=0)
        weight = fresh.tensor("inner.1.residual.conv1.weight")
        assert weight[0].numel() == fan_in
        assert float(weight.std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        assert not fresh.tensor("inner.1.residual.conv2.weight").any()
        one = fresh.tensor("inner.deeper.conv.weight")
        assert torch.equal(one.sum((1, 2, 3)), torch.ones(len(one)).double())


def test_the_ring_of_an_enlarged_kernel_begins_at_zero(begun: Graph) -> None:
    found = trained(apply(begun, "enlarge-kernel{layer=%3}"))
    fresh, plain = (drawn_afresh(graph, begun, KINDS, seed=0).tensor("inner.0.weight") for graph in (found, begun))
    inner = fresh[:, :, 1:-1, 1:-1]
    assert fresh.shape[2:] == (5, 5) and int(fresh.count_nonzero()) == inner.numel()
    assert float(inner.std()) == pytest.approx(float(plain.std()), rel=0.1)


def test_a_start_follows_its_seed(begun: Graph) -> None:
    first, again, other = (drawn_afresh(begun, begun, KINDS, seed).tensor("outer.weight") for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_network_that_its_history_does_not_lead_to_is_refused(begun: Graph) -> None:
    found = apply(begun, "split{width=w0, units=[0]}")
    for history in ((), ("split{width=w0, units=[0, 1]}",)):
        with pytest.raises(GrowError, match="do not lead to its network once more"):
            drawn_afresh(found.with_history(*history), begun, KINDS, seed=0)
    with pytest.raises(ParseError, match="there is no pass 'split'"):
        drawn_afresh(found, begun, (), seed=0)
