"""Every call is written so that it does what the operator does: in a short form, or else under its full name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.emit import expressions
from archir.emit.arguments import Speaker, argument
from archir.emit.code import Code, literal
from archir.emit.layouts import LAYOUTS, draft
from archir.emit.python import to_python
from archir.ir.node import Node
from frontends.pytorch import trace
from tests.emit.loading import load_draft


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def written(function: Callable[[Tensor], object], x: Tensor, folder: Path) -> str:
    """Return the source of a function, checked, in the layout that reads best."""
    graph = trace(Function(function), x)
    text = to_python(graph, folder).path.read_text()
    assert text == draft(graph, "modules").text
    return text


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "area"])
def test_images_are_resized(mode: str, tmp_path: Path) -> None:
    def resize(x: Tensor) -> tuple[Tensor, ...]:
        corners = True if mode == "bilinear" else None
        return (
            F.interpolate(x, size=(8, 8), mode=mode),  # one number for both axes is not a list
            F.interpolate(x, size=(8, 5), mode=mode),
            F.interpolate(x, size=(x.shape[2] * 2, x.shape[3]), mode=mode, align_corners=corners),
            F.interpolate(x, scale_factor=2, mode=mode),
            F.interpolate(x, scale_factor=(2.0, 1.5), mode=mode),
        )

    text = written(resize, torch.randn(2, 3, 4, 4), tmp_path)
    assert text.count("F.interpolate(") == (5 if mode != "area" else 0)
    assert mode in ("nearest", "area") or f'mode="{mode}"' in text


@pytest.mark.parametrize(
    ("axes", "mode"), [(1, "nearest"), (1, "linear"), (2, "bicubic"), (3, "nearest"), (3, "trilinear")]
)
def test_sequences_images_and_volumes_are_resized(axes: int, mode: str, tmp_path: Path) -> None:
    text = written(lambda x: F.interpolate(x, size=(6,) * axes, mode=mode), torch.randn(2, 3, *(4,) * axes), tmp_path)
    assert f"F.interpolate(x, size=[{', '.join(['6'] * axes)}]" in text


def test_pooling_of_every_overload(tmp_path: Path) -> None:
    def pool(x: Tensor) -> tuple[Tensor, ...]:
        values, index = F.max_pool2d(x, 2, return_indices=True)
        return (
            *(
                values,
                index,
                F.max_unpool2d(values, index, (2, 2)),
                F.avg_pool2d(x, 2),
                F.avg_pool2d(x, (2, 1), (1, 2)),
            ),
            *(F.adaptive_avg_pool2d(x, 2), F.adaptive_max_pool2d(x, (2, 3)), F.lp_pool2d(x, 2.0, 2)),
        )

    written(pool, torch.randn(2, 3, 4, 4), tmp_path)


def test_ranges_of_every_overload(tmp_path: Path) -> None:
    def ranges(x: Tensor) -> tuple[Tensor, ...]:
        batch = x.shape[0]
        return (
            *(x + torch.arange(4, dtype=torch.float32), x + torch.arange(1, 5, dtype=torch.float32)),
            *(x + torch.arange(0, 8, 2, dtype=torch.float32), x + torch.arange(4), torch.arange(batch)),
            torch.arange(batch, dtype=torch.float32),
            *(torch.arange(1, batch + 1, dtype=torch.int32), torch.arange(0, 2 * batch, 2)),
        )

    text = written(ranges, torch.randn(3, 4), tmp_path)
    assert "torch.arange(4, dtype=torch.float32, device=x.device)" in text


def test_rotary_embedding(tmp_path: Path) -> None:
    def rotate(x: Tensor) -> Tensor:
        angles = 1.0 / 100.0 ** (torch.arange(0, 8, 2, dtype=torch.float32) / 8)
        turned = torch.outer(torch.arange(x.shape[1], dtype=torch.float32), angles)
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(turned), turned)).flatten(2)

    written(rotate, torch.randn(3, 5, 8), tmp_path)


def test_attributes_and_arguments_by_keyword(tmp_path: Path) -> None:
    def calls(x: Tensor) -> tuple[Tensor, ...]:
        z = torch.complex(x, 2.0 * x)
        return (
            *(z.real, z.imag + z.real, x.clone(memory_format=torch.contiguous_format) + 1.0, x.contiguous() * 2.0),
            *(x * x.new_ones((), dtype=torch.bool), x + x.new_zeros((2, 1, 1)), x.new_full((), 2.0), torch.zeros(())),
            *(x.to(torch.float64), torch.full((), 2.0) + x, torch.ones(2, 1, 1, dtype=torch.float64) + x),
            *(torch.fft.rfft(x).abs(), x.new_empty(0), torch.zeros(0, 3), x.reshape(-1)[0]),
        )

    text = written(calls, torch.randn(3, 4), tmp_path)
    assert ".real" in text and ".real(" not in text and "x.new_ones([], dtype=torch.bool)" in text


def test_infinite_and_complex_numbers(tmp_path: Path) -> None:
    def calls(x: Tensor) -> tuple[Tensor, ...]:
        return (
            torch.where(x > 0.0, x, float("-inf")),
            x.nan_to_num(float("nan")),
            x * (1.0 + 2.0j),
        )

    written(calls, torch.randn(3, 4), tmp_path)
    assert literal(complex(-0.5, float("inf"))) == 'complex(-0.5, float("inf"))'


def write_as(form: str) -> Callable[[Node, Speaker], Code]:
    """Return a form for `relu`, `@` standing for its operand."""
    return lambda node, say: Code(form.replace("@", argument(node, "self", say)))


@pytest.mark.parametrize("form", ["@.nothing()", "F.relu(@", "F.relu(@, 1, 2)", "@.sum()", "exec('')"])
def test_a_form_that_does_not_hold_gives_way(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(expressions._FORMS, "aten.relu", write_as(form))
    text = written(lambda x: x.relu() * 2.0, torch.randn(3, 4), tmp_path)
    assert "return torch.ops.aten.relu.default(x) * 2.0" in text


def test_a_form_that_computes_something_else_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(expressions._FORMS, "aten.relu", write_as("F.gelu(@)"))
    emitted = to_python(trace(Function(lambda x: x.relu() * 2.0), torch.randn(3, 4)), tmp_path)
    assert emitted.difference == 0.0 and "torch.ops.aten.relu.default(x)" in emitted.path.read_text()


class Extremes(nn.Module):
    """Sizes that are the largest and the smallest of others; an input has the name of a function used for them."""

    def forward(self, x: Tensor, max: Tensor) -> tuple[Tensor, Tensor]:
        most = torch.sym_max(x.shape[1], x.shape[2])  # type: ignore[no-untyped-call]
        least = torch.sym_min(x.shape[1], x.shape[2])  # type: ignore[no-untyped-call]
        return torch.zeros(most + 1, 3) + max, x[:, :least, :least].sum(0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_largest_of_sizes(layout: str, tmp_path: Path) -> None:
    axes = {axis: torch.export.Dim.DYNAMIC for axis in (0, 1, 2)}
    graph = trace(Extremes(), (torch.randn(3, 5, 7), torch.randn(3)), dynamic_shapes=(axes, None))
    net = load_draft(draft(graph, layout), tmp_path)
    for shape in ((3, 5, 7), (2, 6, 4)):
        x, y = torch.randn(shape), torch.randn(3)
        torch.testing.assert_close(net(x, y), Extremes()(x, y))
