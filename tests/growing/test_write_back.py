"""New widths in a user's own module: the layers know of them, it computes what the graph does, or it is as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archir
from archir.axes.infer import infer_widths
from archir.errors import GrowError, PassError
from archir.growing.plan import in_the_manner_of
from archir.growing.write_back import write_into
from archir.ir.graph import Graph
from archir.rewrite.morphism import Morphism
from archir.rewrite.pipeline import rewrite_together
from frontends.pytorch import trace
from passes.add_bias import AddBias
from passes.deepen import Deepen
from passes.enlarge_kernel import EnlargeKernel
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.models.zoo import ZOO


class Layers(nn.Module):
    """Layers of many kinds, several outputs in a mapping, and a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.deep = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.batch = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2)
        self.group = nn.GroupNorm(3, 6)
        self.instance = nn.InstanceNorm2d(6)
        self.slope = nn.PReLU(6)
        self.fold = nn.Linear(6, 5)
        self.layer = nn.LayerNorm(5)
        self.memory = nn.LSTM(5, 4, batch_first=True)
        self.embed = nn.Embedding(7, 4)
        self.both = nn.Bilinear(4, 4, 3)
        self.register_buffer("shift", torch.zeros(5))

    def forward(self, image: Tensor, token: Tensor) -> dict[str, Tensor]:
        x = self.up(self.batch(self.deep(self.stem(image))).relu())
        x = self.slope(self.instance(self.group(x)))
        x = self.layer(self.fold(x.flatten(2).transpose(1, 2)) + self.shift)
        last = self.memory(x)[0][:, -1]
        return {"logits": self.both(last, self.embed(token)), "mean": x.mean(2)}

    def answer(self) -> int:
        """Be there."""
        return 42


def inputs(count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 2, 2, generator=generator), torch.arange(count) % 7


def rewritten(model: nn.Module, graph: Graph, *members: Morphism) -> Graph:
    rewriting = rewrite_together(graph, [(m, None) for m in members])
    write_into(model, graph, in_the_manner_of(model, rewriting.after), rewriting.after)
    return rewriting.after


def sizes(model: nn.Module) -> list[str]:
    return [str(part) for part in model.modules()]


def test_layers_of_every_kind_know_their_new_sizes() -> None:
    torch.manual_seed(0)
    model = Layers().eval()
    graph, kept = trace(model, inputs()), {id(model), *map(id, model.modules())}
    widths = infer_widths(graph)
    after = rewritten(model, graph, *(Split(w.name) for w in widths))
    assert {id(m) for m in model.modules()} == kept and model.answer() == 42 and not model.training
    shown = {
        "stem": "Conv2d(1, 8,",
        "deep": "Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=8)",
        "batch": "BatchNorm2d(8,",
        "up": "ConvTranspose2d(8, ",
        "slope": "PReLU(num_parameters=",
        "memory": "LSTM(10, 8,",
        "embed": "Embedding(7, 8)",
        "both": "Bilinear(in1_features=8, in2_features=8,",
    }
    for name, text in shown.items():
        assert str(model.get_submodule(name)).startswith(text), name
    count = int(model.up.weight.shape[1])
    assert model.group.num_channels == model.instance.num_features == model.slope.num_parameters == count
    for found, wanted in zip(model(*inputs()).values(), after.module().eval()(*inputs()).values(), strict=True):
        torch.testing.assert_close(found, wanted)
    again = trace(model, inputs())
    assert {w.size for w in infer_widths(again)} == {2 * w.size for w in widths}
    fresh = Layers()
    with pytest.raises(RuntimeError, match="size mismatch"):
        fresh.load_state_dict(model.state_dict())
    torch.autograd.backward(model.train()(*inputs())["logits"].sum())
    assert all(p.grad is not None and p.grad.shape == p.shape for n, p in model.named_parameters() if n != "layer.bias")


def test_a_normalisation_of_more_units_knows_its_epsilon() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6, eps=0.1), nn.Linear(6, 3)).double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    wanted, graph = model(x), trace(model, x)
    rewritten(model, graph, Widen("w0", 2))
    assert str(model[1]) == "LayerNorm((8,), eps=0.07500000000000001, elementwise_affine=True, bias=True)"
    torch.testing.assert_close(model(x), wanted, rtol=1e-13, atol=1e-14)


MODELS = ["vgg", "resnet", "densenet", "mobilenet", "unet", "swin", "gru", "siamese", "two_heads", "low_rank"]


@pytest.mark.parametrize("name", MODELS)
def test_models_compute_what_their_graphs_do(name: str) -> None:
    """Every width of these, one after another, is made narrower and wider again in the module itself."""
    example = ZOO[name]
    torch.manual_seed(0)
    model = example.build().eval()
    args, kwargs = example.inputs(3), example.kwargs(3)
    graph, done = trace(model, args, kwargs), 0
    for width in list(infer_widths(graph))[:3]:
        for kind in (Prune, Split):
            try:
                graph = rewritten(model, graph, kind(width.name, (0,)))
            except PassError:
                continue
            done += 1
            found, wanted = model(*args, **kwargs), graph.module().eval()(*args, **kwargs)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert done > 1


class Heads(nn.Module):
    """Attention of its own, whose sizes are attributes of its own."""

    def __init__(self, written: bool = False) -> None:
        super().__init__()
        self.heads, self.size, self.shape, self.written = 3, 4, (3, 4), written
        self.query, self.value, self.out = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query = (
            self.query(x).view(batch, length, 3, 4) if self.written else self.query(x).view(batch, length, *self.shape)
        )
        query, value = query.transpose(1, 2), self.value(x).view(batch, length, self.heads, -1).transpose(1, 2)
        found = F.scaled_dot_product_attention(query, query, value).transpose(1, 2).reshape(batch, length, -1)
        result: Tensor = self.out(found)
        return result


def head_width(graph: Graph) -> Any:
    return next(w for w in infer_widths(graph) if w.size == 3)


def test_numbers_of_heads_in_modules_of_ones_own_are_set() -> None:
    torch.manual_seed(0)
    model, x = Heads().eval(), torch.randn(2, 6, 5)
    graph = trace(model, (x,))
    after = rewritten(model, graph, Split(head_width(graph).name, (1,)))
    assert (model.heads, model.size, model.shape) == (4, 4, (4, 4)) and model.query.out_features == 16
    torch.testing.assert_close(model(x), after.module().eval()(x))


class Counts(nn.Module):
    """Whole numbers that are as large as a width by chance, and sizes that are read in one way or another."""

    factor = 4
    """Said of the class, too."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.epochs, self.shape, self.checked = 4, 4, [4, 8], 4
        self.hidden, self.noisy, self.width, self.factor = 4, 4, 4, 4
        self.inner, self.part, self.head = nn.Linear(6, 4), nn.Identity(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x).relu().view(x.shape[0], self.hidden)
        if self.training:
            hidden = hidden + torch.randn(self.noisy)
        found: Tensor = self.head(hidden.view(x.shape[0], self.factor))
        assert found.shape[1] == self.checked, "classes are missing"
        return found


class Around(nn.Module):
    """Has these within it."""

    def __init__(self) -> None:
        super().__init__()
        self.within = Counts()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.within(x)
        return found


def test_whole_numbers_that_forward_does_not_read_stay() -> None:
    torch.manual_seed(0)
    model, x = Around(), torch.randn(3, 6)
    with pytest.warns(archir.CaptureWarning):
        graph = archir.trace(model, (x,))
    wider, own, kinds = archir.apply(graph, "split{width=w0, units=[1]}"), model.within, dict(vars(Counts))
    archir.write_back(wider, model)
    assert (own.classes, own.epochs, own.shape, own.width, own.checked) == (4, 4, [4, 8], 4, 4)
    assert (own.hidden, own.noisy, own.factor, own.inner.out_features) == (5, 5, 5, 5)
    assert dict(vars(Counts)) == kinds and Counts.factor == 4
    torch.testing.assert_close(model.eval()(x), wider.module().eval()(x))
    assert model.train()(x).shape == (3, 4)


def test_a_size_written_into_the_code_is_refused_with_its_line_and_the_model_is_as_it_was() -> None:
    torch.manual_seed(0)
    model, x = Heads(written=True).eval(), torch.randn(2, 6, 5)
    graph = trace(model, (x,))
    before, shown = {n: t for n, t in model.named_parameters()}, sizes(model)
    expected = model(x)
    with pytest.raises(GrowError, match=r"does not take the new widths\n  where: .*test_write_back\.py:\d+: .*3, 4\)"):
        rewritten(model, graph, Split(head_width(graph).name, (1,)))
    assert all(p is before[n] for n, p in model.named_parameters()) and sizes(model) == shown
    assert model.heads == 3 and torch.equal(model(x), expected)


class Silent(nn.Module):
    """A size in its code that does not raise: the examples of a batch are mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x).reshape(-1, 4).sum(1)
        return found


def test_models_that_compute_something_else_are_refused() -> None:
    model = Silent().eval()
    graph = trace(model, (torch.randn(4, 3),))
    with pytest.raises(
        GrowError, match=r"where: .*reshape\(-1, 4\).*\n  why:   result 0 is \[4\], and that of the graph \[2\]"
    ):
        rewritten(model, graph, Split("w0"))
    assert model.inner.out_features == 4


def test_only_widths_change_in_place() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(3, 2, 3)).eval()
    graph = trace(model, (torch.randn(2, 1, 5, 5),))
    kinds: list[tuple[Morphism, str]] = [
        (Deepen(), "adds"),
        (AddBias(), "adds"),
        (EnlargeKernel(), "which is no change of a width"),
    ]
    for morphism, why in kinds:
        site = next(iter(morphism.sites(graph)))
        with pytest.raises(GrowError, match=why):
            rewritten(model, graph, site.members[0])


def test_graphs_are_written_back_into_the_modules_they_come_from() -> None:
    torch.manual_seed(0)
    model, x = Heads(), torch.randn(2, 6, 5)
    graph = archir.trace(model, (x,))
    width = next(iter(archir.widths(graph))).name
    wider = archir.apply(graph, f"split{{width={width}, units=[0, 1]}}")
    assert archir.write_back(wider, model) is model and model.training
    found, wanted = (m.eval()(x) for m in (model, wider.module()))
    torch.testing.assert_close(found, wanted)
    with pytest.raises(GrowError, match="wrapped in DataParallel"):
        archir.write_back(wider, nn.DataParallel(model))
    with pytest.raises(GrowError, match=r"only widths can change in place\n  why:   the rewriting adds"):
        archir.write_back(archir.trace(nn.Linear(3, 4), (torch.zeros(2, 3),)), Silent())


def test_tied_and_frozen_parameters_stay_so() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.inner = nn.Embedding(9, 4), nn.Linear(4, 4)
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = self.tokens.weight
            self.inner.weight.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.inner(self.tokens(x)))
            return found

    model, x = Tied(), torch.arange(6).reshape(2, 3)
    graph = archir.trace(model, (x,))
    archir.write_back(archir.apply(graph, [Split(w.name, (1,)) for w in archir.widths(graph)]), model)
    assert model.head.weight is model.tokens.weight and isinstance(model.head.weight, nn.Parameter)
    assert model.tokens.embedding_dim == model.head.in_features > 4
    assert not model.inner.weight.requires_grad and model.inner.bias.requires_grad


class Training(nn.Module):
    """What is in no graph: an auxiliary head in training, a teacher that follows, a count, a generator, a size."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.steps, self.generator = kind, 0, torch.Generator().manual_seed(3)
        self.inner, self.norm, self.outer = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.aux, self.teacher = nn.Linear(4, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Any:
        hidden = self.norm(self.inner(x)).relu()
        found: Tensor = self.outer(hidden)
        if not self.training:
            return found
        if self.kind == "targets":
            raise ValueError("give targets")
        self.steps += 1
        self.teacher.weight.data.add_(torch.rand(2, 2, generator=self.generator) + torch.rand(2, 2))
        if self.kind == "head":
            return found, self.aux(hidden)
        if self.kind == "mixed":
            return found, hidden.reshape(-1, 4).sum(1)
        return found, hidden, hidden * torch.bernoulli(torch.full((hidden.shape[1],), 0.5))


def _state(model: Training) -> list[Any]:
    modes = [part.training for part in model.modules()]
    random = [torch.get_rng_state().tolist(), model.generator.get_state().tolist()]
    return [modes, model.steps, *random, sizes(model)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("head", r"where: .*self\.aux\(hidden\).*\n  why:   RuntimeError"),
        ("mixed", r"why:   result 1 was \[2\], and becomes \[4\]"),
    ],
)
def test_what_is_done_in_training_alone_has_to_take_the_new_widths(kind: str, why: str, training: bool) -> None:
    torch.manual_seed(0)
    model = Training(kind)
    with pytest.warns(archir.CaptureWarning):
        graph = archir.trace(model, (torch.randn(4, 6),))
    model.train(training)
    wider = archir.apply(graph, "split{width=w0, units=[0, 1, 2, 3]}")
    before, held = _state(model), {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(GrowError, match=rf"does not take the new widths in training\n  {why}"):
        archir.write_back(wider, model)
    assert _state(model) == before
    assert all(torch.equal(tensor, held[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["hidden", "targets"])
def test_a_run_in_training_leaves_a_model_as_it_is(kind: str) -> None:
    """Hidden values are returned wider; one that asks for targets cannot be run, before or after."""
    torch.manual_seed(0)
    model = Training(kind)
    with pytest.warns(archir.CaptureWarning):
        graph = archir.trace(model, (torch.randn(4, 6),))
    wider = archir.apply(graph, "split{width=w0, units=[1]}")
    before, teacher = _state(model)[:-1], model.teacher.weight.clone()
    archir.write_back(wider, model)
    assert _state(model)[:-1] == before and torch.equal(model.teacher.weight, teacher)
    buffers = dict(model.norm.named_buffers())
    assert model.inner.out_features == 5 and int(buffers["num_batches_tracked"]) == 0
    assert torch.equal(buffers["running_mean"], torch.zeros(5)) and type(model.inner.weight) is nn.Parameter
    if kind == "hidden":
        assert [tuple(t.shape) for t in model(torch.randn(4, 6))] == [(4, 3), (4, 5), (4, 5)]


@pytest.mark.parametrize("wider", [False, True])
def test_a_graph_of_another_model_is_told_from_a_size_in_the_code(wider: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(3, 6)
    other = archir.trace(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), (x,))
    held = dict(model.named_parameters())
    why = r"that of another model\n(  where: .*\n)?  why:   the model calls aten.relu.* where the graph calls aten.tanh"
    with pytest.raises(GrowError, match=why):
        archir.write_back(archir.apply(other, "split{width=w0, units=[1]}") if wider else other, model)
    assert all(p is held[n] for n, p in model.named_parameters()) and model[0].out_features == 4


def test_a_graph_of_a_model_with_other_numbers_in_its_code_is_told_from_a_size() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4), nn.LeakyReLU(0.1)), torch.randn(3, 6)
    other = archir.trace(nn.Sequential(nn.Linear(6, 4), nn.LeakyReLU(0.9)), (x,))
    with pytest.raises(GrowError, match=r"no width differs\n  why:   result 0 differs by .*\n  hint:  give a graph"):
        archir.write_back(other, model)
