"""Axes that are dynamic besides the batch: named, shown by a second example, or asked for as torch has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from archir.errors import CaptureError, ParseError
from archir.ir.axis_names import parse_dynamic
from archir.ir.graph import Graph
from frontends.pytorch import trace
from tests.models.any_size import Encoder, FullyConvolutional, Recurrent, UNet, Windows


def header(graph: Graph) -> str:
    return str(graph).splitlines()[0].removesuffix(" {")


def tokens(batch: int, length: int) -> Tensor:
    return torch.arange(batch * length).reshape(batch, length) % 11


class Added(nn.Module):
    """A table of positions that is as long as the input."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.inner = nn.Parameter(torch.randn(7, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x + self.positions)
        return found


class Divided(nn.Module):
    """Sums over four steps at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, length, c = x.shape
        if length % 4 or length > 64:
            raise ValueError("the length is a multiple of 4, up to 64")
        found: Tensor = self.inner(x.view(b, length // 4, 4, c)).sum(2)
        return found


class Branching(nn.Module):
    """Does something else for sequences of seven."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        if x.shape[1] == 7:
            return -found
        return found


class Two(nn.Module):
    """Adds what is as long to what is given in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor, *, more: dict[str, Any]) -> Tensor:
        found: Tensor = self.inner(x).sum(1) + self.inner(more["y"][0]).sum(1)
        return found


def images(height: int = 8, width: int = 12) -> Tensor:
    return torch.randn(2, 3, height, width)


@pytest.mark.parametrize(
    ("model", "x", "dynamic", "wanted"),
    [
        (Encoder, tokens(1, 7), {-1: "length"}, "graph Encoder(x: i64[B, length]) at length = 7"),
        (Recurrent, tokens(3, 7), {1: "T"}, "graph Recurrent(x: i64[B, T]) at T = 7"),
        (Divided, torch.randn(2, 8, 8), {1: "T"}, "graph Divided(x: f32[B, T, 8]) at T = 8 where T <= 64, T % 4 == 0"),
        (FullyConvolutional, images(), {2: "H"}, "graph FullyConvolutional(x: f32[B, 3, H, 12]) at H = 8"),
        (
            UNet,
            images(),
            {2: "H", 3: "W"},
            "graph UNet(x: f32[B, 3, H, W]) at H = 8, W = 12 where H >= 2, W >= 2, H % 2 == 0, W % 2 == 0",
        ),
        (
            Windows,
            images().movedim(1, 3),
            {1: "H", 2: "W"},
            "graph Windows(x: f32[B, H, W, 3]) at H = 8, W = 12 where W >= 5, H % 4 == 0, W % 4 == 0, B*H*W != 16",
        ),
    ],
)
def test_named_axes_are_dynamic_and_what_is_asked_of_them_is_a_guard(
    model: type[nn.Module], x: Tensor, dynamic: dict[int, str], wanted: str
) -> None:
    assert header(trace(model().eval(), x, dynamic={"x": dynamic})) == wanted


def test_axes_of_one_name_are_one_size() -> None:
    more = {"more": {"y": [torch.randn(2, 5, 4)]}}
    graph = trace(Two(), torch.randn(2, 5, 4), more, dynamic={"x": {1: "T"}, "more_y_0": {1: "T"}})
    assert header(graph) == "graph Two(x: f32[B, T, 4], more_y_0: f32[B, T, 4]) at T = 5"
    graph = trace(Two(), torch.randn(2, 5, 4), more, dynamic={"x": {1: "T"}, "more_y_0": {1: "S"}})
    assert header(graph) == "graph Two(x: f32[B, T, 4], more_y_0: f32[B, S, 4]) at T = 5, S = 5"
    mask = torch.zeros(3, 7, dtype=torch.bool)
    with pytest.raises(CaptureError, match=r"T and S are one size in Encoder(.|\n)*call both axes T"):
        trace(Encoder().eval(), (tokens(3, 7), mask), dynamic={"x": {1: "T"}, "mask": {1: "S"}})
    with pytest.raises(CaptureError, match=r"if it is the size of axis 1 of mask as well, name that alike"):
        trace(Encoder().eval(), (tokens(3, 7), mask), dynamic={"x": {1: "T"}})


def test_a_second_example_shows_what_is_dynamic() -> None:
    model, mask = Encoder().eval(), torch.zeros(3, 9, dtype=torch.bool)
    given = (tokens(3, 7), mask[:, :7])
    graph = trace(model, given, other=(tokens(3, 9), mask))
    assert header(graph) == "graph Encoder(x: i64[B, B1], mask: bool[B, B1]) at B1 = 7 where B*B1 >= 2"
    named = trace(model, (), {"x": given[0]}, other={"x": tokens(2, 5)}, dynamic={"x": {1: "T"}})
    assert header(named) == "graph Encoder(x: i64[B, T]) at T = 7"
    for x in (tokens(4, 3), tokens(2, 20)):
        torch.testing.assert_close(named.module().eval()(x=x), model(x))
    assert header(trace(FullyConvolutional().eval(), images(), other=images(8, 9))).endswith(
        "[B, 3, 8, B1]) at B1 = 12"
    )


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (tokens(5, 7), "no size differs but that of the batch"),
        (tokens(5, 9).float(), "x is torch.int64 of 2 axes in one and torch.float32 of 2 axes in the other"),
        (tokens(5, 9)[0], "x is torch.int64 of 2 axes in one and torch.int64 of 1 axes in the other"),
        ((tokens(5, 9), tokens(5, 9)), "they are nested in different ways"),
        ([tokens(5, 9)], "the other example is a tensor, a tuple or a mapping, not a list"),
        ({"y": tokens(5, 9)}, "it lacks x"),
    ],
)
def test_a_second_example_of_another_kind_is_refused(other: Any, why: str) -> None:
    with pytest.raises(CaptureError, match=why):
        trace(Encoder().eval(), tokens(3, 7), other=other)


def test_a_graph_that_is_not_right_for_the_second_example_is_refused() -> None:
    with pytest.raises(CaptureError, match="its graph is right for B1 != 7 only, and the other example is not"):
        trace(Branching(), torch.randn(3, 6, 8), other=torch.randn(3, 7, 8))


@pytest.mark.parametrize(
    ("model", "line"), [(Added, "self.inner(x + self.positions)"), (Branching, "if x.shape[1] == 7:")]
)
@pytest.mark.parametrize(
    "asked", [{"dynamic": {"x": {1: "T"}}}, {"dynamic_shapes": ({0: Dim("batch"), 1: Dim("T")},)}, {"other": 9}]
)
def test_an_axis_that_the_model_fixes_is_an_error_with_the_line(
    model: type[nn.Module], line: str, asked: dict[str, Any]
) -> None:
    width = 4 if model is Added else 8
    given = {"other": torch.randn(3, 9, width)} if "other" in asked else asked
    with pytest.raises(CaptureError, match=f"{model.__name__} fixes the size of axis 1 of x") as caught:
        trace(model(), torch.randn(3, 7, width), **given)
    assert line in caught.value.where and "test_dynamic.py:" in caught.value.where
    assert caught.value.why == "it works for a size of 7 only"
    assert "compute with the size of the input" in caught.value.hint


def test_all_that_is_wrong_with_named_axes_is_told_at_once() -> None:
    wrong: Any = {"y": {1: "T"}, "x": {0: "N", 5: "Q", 1: "2x", 2: "Max", "a": "T"}, "z": 3}
    with pytest.raises(CaptureError, match="these axes of Added cannot be dynamic") as caught:
        trace(Added(), torch.randn(3, 7, 4), dynamic=wrong)
    for told in (
        "no input is called 'y'",
        "axis 0 of x: it is the batch, which is dynamic anyway and called B",
        "axis 5 of x: the input has 3 axes",
        "axis 1 of x: '2x' is no name",
        "axis 2 of x: Max is the name of a function of sizes",
        "axis a of x: it is no number",
        "no input is called 'z'",
    ):
        assert told in caught.value.where
    same = {"x": {1: "T"}, "more_y_0": {1: "T"}}
    with pytest.raises(CaptureError, match="T is 5 on axis 1 of x and 6 on axis 1 of more_y_0"):
        trace(Two(), torch.randn(2, 5, 4), {"more": {"y": [torch.randn(2, 6, 4)]}}, dynamic=same)
    for both in ({"dynamic": same}, {"other": torch.randn(2, 4)}, {"static_batch": True}):
        with pytest.raises(CaptureError, match=r"dynamic_shapes and \w+ exclude one another"):
            trace(nn.Linear(4, 4), torch.randn(3, 4), dynamic_shapes=({0: Dim.AUTO},), **both)


def test_a_dim_gives_its_name_and_its_guards_are_kept() -> None:
    shapes = ({0: Dim("rows"), 2: Dim("H", max=64), 3: Dim("floor")},)
    graph = trace(UNet().eval(), images(), dynamic_shapes=shapes)
    guards = "B1 >= 2, H >= 2, H <= 64, H % 2 == 0, B1 % 2 == 0"
    assert header(graph) == f"graph UNet(x: f32[rows, 3, H, B1]) at H = 8, B1 = 12 where {guards}"
    # What is no name by itself goes to torch as it is.
    graph = trace(Divided(), torch.randn(2, 8, 8), dynamic_shapes=({1: 4 * Dim("quarter", max=16)},))
    assert header(graph).startswith("graph Divided(x: f32[2, 4*B, 8])")


class Pooled(nn.Module):
    """Pools along one axis, down and up again."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.pool = nn.Conv1d(3, 4, 3, padding=1), nn.MaxPool1d(3, stride=2, padding=1, dilation=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = nn.functional.interpolate(self.pool(self.inner(x)), size=x.shape[2]) + self.inner(x)
        return found


def test_pooling_along_one_axis_fixes_no_length() -> None:
    model = Pooled().eval()
    graph = trace(model, torch.randn(2, 3, 12), dynamic={"x": {2: "T"}})
    assert header(graph) == "graph Pooled(x: f32[B, 3, T]) at T = 12"
    assert [node.op for node in graph.calls].count("aten.max_pool1d.default") == 1
    for length in (1, 2, 7, 40):
        x = torch.randn(3, 3, length)
        torch.testing.assert_close(graph.module().eval()(x), model(x))
    assert not torch.ops.aten.max_pool1d.default.py_kernels  # it is as it was


class Scaled(nn.Module):
    """Scales to seven tenths of the length."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = nn.functional.interpolate(x, scale_factor=0.7)
        return found


def test_what_no_size_can_say_is_told_with_the_line() -> None:
    with pytest.raises(CaptureError, match=r"floor\(0\.7\*T\) is not a size") as caught:
        trace(Scaled(), torch.randn(2, 3, 12), dynamic={"x": {2: "T"}})
    assert "test_dynamic.py:" in caught.value.where


def test_static_batches_may_have_dynamic_axes() -> None:
    graph = trace(Encoder().eval(), tokens(3, 7), dynamic={"x": {1: "T"}}, static_batch=True)
    assert header(graph) == "graph Encoder(x: i64[3, T]) at T = 7"


def test_texts_that_name_axes() -> None:
    assert parse_dynamic(["x:1=T", "x:2=H", "mask:-1=T"]) == {"x": {1: "T", 2: "H"}, "mask": {-1: "T"}}
    with pytest.raises(ParseError, match="these are no dynamic axes") as caught:
        parse_dynamic(["x1=T", "x:0=T", "x:1=T", "x:1=S", "x:2=B", "x:3=a b"])
    lines = caught.value.where.splitlines()
    assert [line.strip().split("'")[1] for line in lines] == ["x1=T", "x:0=T", "x:1=S", "x:2=B", "x:3=a b"]
