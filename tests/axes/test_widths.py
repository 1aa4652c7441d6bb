"""The widths of whole models: which are free, where they stand, and why others are frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.axes.describe import axis_names, describe
from archir.axes.infer import infer_widths
from archir.axes.widths import ROLES, Widths
from archir.errors import PassError
from archir.ir.builder import GraphBuilder as Builder
from archir.ir.parse import parse_graph
from archir.ir.text import print_graph
from frontends.pytorch import trace
from tests.models.captured import graph_of
from tests.models.zoo import ZOO

GOLDEN = Path(__file__).with_name("widths.txt")


def widths_of(name: str) -> Widths:
    return infer_widths(graph_of(name))


def listing(name: str, widths: Widths) -> str:
    """Return what is recorded of a model: its free widths, and how much of it they reach."""
    *lines, coverage = describe(widths).splitlines()
    free = [line for line in lines if line.startswith("w")]
    return "\n".join([f"{name}: {coverage}", *free])


def recorded() -> dict[str, str]:
    """Return the recorded listings by model."""
    texts = GOLDEN.read_text().rstrip("\n").split("\n\n")
    return {text.partition(":")[0]: text for text in texts}


def test_every_model_is_recorded() -> None:
    assert sorted(recorded()) == sorted(ZOO)


@pytest.mark.parametrize("name", ZOO)
def test_widths_are_as_recorded(name: str) -> None:
    widths = widths_of(name)
    assert listing(name, widths) == recorded()[name]
    assert all(width.roles <= ROLES.keys() for width in (*widths, *widths.frozen))


def test_fused_attention_weights_are_taken_apart() -> None:
    widths = widths_of("gpt")
    assert widths.notation_of("qkv.weight") == "(w1*w2)+(w1*w2)+(w1*w3), w0"
    assert widths.notation_of("out.weight") == "w0, w1*w3"
    assert widths["w1"].size == 4 and widths["w2"].size == widths["w3"].size == 8
    assert widths["w2"].roles >= {"matched", "scale"}


def test_positions_are_those_of_the_units() -> None:
    widths = widths_of("gpt")
    heads = widths["w1"]
    place = next(p for p in heads.places if p.parameter == "qkv.bias")
    assert heads.positions(place, [1]).tolist() == [*range(8, 16), *range(40, 48), *range(72, 80)]


def test_widths_are_found_by_name() -> None:
    widths = widths_of("vgg")
    assert [w.name for w in widths] == ["w0", "w1", "w2"] and len(widths) == 3
    with pytest.raises(PassError, match=r"no width 'w9'[\s\S]*did you mean w\d or w\d or w\d\?"):
        widths["w9"]
    frozen = widths.frozen[0]
    with pytest.raises(PassError) as caught:
        widths[frozen.name]
    assert str(caught.value) == (
        f"width {frozen.name} may not change\n  where: {frozen.places[0].parameter} axis 1\n  why:   {frozen.reason}"
    )
    with pytest.raises(PassError, match=r"no stored tensor 'features\.0\.0\.wieght'[\s\S]*did you mean"):
        widths.notation_of("features.0.0.wieght")


def test_coverage_counts_what_belongs_to_free_units() -> None:
    b = Builder()
    x = b.input("x", "f32[B, 3]")
    h = b.call("aten.linear.default", x, b.parameter("a", "f32[4, 3]"))
    h = b.call("aten.linear.default", h, b.parameter("b", "f32[5, 4]"), b.parameter("c", "f32[5]"))
    widths = infer_widths(b.graph(h))
    assert widths.coverage == (12 + 20) / (12 + 20 + 5)
    assert describe(widths).splitlines() == [
        "w0 | 4 | contracted, produced | a: w0, f0; b: f1, w0",
        "f0 | 3 | frozen: an axis of an input | a: w0, f0",
        "f1 | 5 | frozen: an axis of an output | b: f1, w0; c: f1",
        "free widths reach 86% of the trainable parameters",
    ]


def test_nothing_is_covered_where_nothing_is_trained() -> None:
    b = Builder()
    assert infer_widths(b.graph(b.input("x", "f32[B, 3]"))).coverage == 0


def test_a_part_of_a_concatenation_covers_its_share() -> None:
    b = Builder()
    x = b.input("x", "f32[B, 3]")
    h = b.call("aten.linear.default", x, b.parameter("a", "f32[4, 3]"))
    h = b.call("aten.cat.default", (x, h), 1)
    h = b.call("aten.linear.default", h, b.parameter("b", "f32[5, 7]"))
    widths = infer_widths(b.graph(h))
    assert widths.notation_of("b") == "f1, f0+w0"
    assert widths.coverage == pytest.approx((12 + 20) / (12 + 35))


def test_names_of_axes_are_printed_and_parse_back() -> None:
    widths = widths_of("vgg")
    text = print_graph(widths.graph, names=axis_names(widths))
    assert "@features.0.0.weight[w0=16, 3, 3, 3]" in text
    assert "f32[B, w1, 8, 8]" in text
    assert str(parse_graph(text)) == str(widths.graph)


class Reasons(nn.Module):
    """One layer for each reason."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(14))
        self.conv = nn.Conv1d(6, 8, 3)
        self.register_buffer("order", torch.tensor([0, 2, 1]))

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        x = self.table(tokens)
        y = [layer(x) for layer in self.layers]
        order = self.get_buffer("order")
        return (
            torch.erf(y[0]).topk(2)[0],
            y[1][..., 0] + y[2].argmax(-1),
            y[3].unbind(-1)[0],
            y[4][..., ::2],
            y[5].flip(-1),
            y[6].cumsum(-1),
            y[7][..., order],
            F.pad(y[8], (1, 1), "circular"),
            self.conv(y[9].transpose(1, 2)).relu().sum(1),
            y[10].sort()[0],
            torch.stack([y[11].sum(-1), y[12].sum(-1)], 1),
            y[13] * torch.arange(6),
        )


def test_reasons_say_what_stands_in_the_way() -> None:
    graph = trace(Reasons(), (torch.randint(0, 20, (4, 5)),))
    widths = infer_widths(graph)
    reasons = {p.parameter + f"[{p.axis}]": w.reason for w in widths.frozen for p in w.places}
    here = Path(__file__).name
    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "topk(2)" in text)
    assert reasons["table.weight[0]"] == "a vocabulary"
    assert reasons["layers.0.weight[0]"].startswith("aten.topk: it has no axis rule (<root> (Reasons)")
    assert reasons["layers.0.weight[0]"].endswith(f"{here}:{line})")
    expected = {
        1: "one of its units is picked by position",
        2: "argmax runs over it",
        3: "each of its units has a use of its own",
        4: "it is sliced with a stride",
        5: "its order matters to flip",
        6: "its order matters to cumsum",
        7: "its units are picked by an index tensor",
        8: "it is padded by position",
        10: "its order matters to sort",
        13: "its units are numbered",
    }
    assert {i: reasons.get(f"layers.{i}.weight[0]") for i in expected} == expected
    assert reasons["conv.weight[2]"] == "a kernel size"
    free = {p.parameter for w in widths for p in w.places if p.axis == 0}
    assert free >= {"layers.9.weight", "layers.11.weight", "layers.12.weight", "conv.weight"}


def test_axes_of_inputs_and_outputs_are_frozen_with_the_role_of_a_boundary() -> None:
    widths = widths_of("mlp")
    reasons = {w.reason for w in widths.frozen}
    assert reasons == {"an axis of an input", "an axis of an output"}
    assert all("boundary" in w.roles for w in widths.frozen)
    assert not any("boundary" in w.roles for w in widths)
