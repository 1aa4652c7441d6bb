"""Models with something odd in them get a right result or a clear reason, never a crash or a wrong graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from archir.axes.infer import infer_widths
from archir.errors import ArchirError, CaptureError
from archir.ir.parse import parse_graph
from archir.ir.registry import admit
from archir.testing import check_widths
from frontends.pytorch import trace


@torch.library.custom_op("archir_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


admit("archir_tests.doubled")


class Odd(nn.Module):
    """Two linear layers with something in between, and something after."""

    def __init__(self, between: Any = None, after: Any = None, width: int = 6) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, width), nn.Linear(width, 3)
        self.between, self.after = between or (lambda x: x), after or (lambda x: x)

    def forward(self, x: Tensor) -> Any:
        return self.after(self.second(self.between(self.first(x))))


def reasons(model: nn.Module, *args: Tensor) -> tuple[list[str], list[str]]:
    """Return the names of the free widths and the reasons of the frozen ones, after the oracle has seen them."""
    graph = trace(model, args)
    assert str(parse_graph(str(graph))) == str(graph)
    assert [p for v in check_widths(graph, args) for p in v.problems] == []
    widths = infer_widths(graph)
    return [w.name for w in widths], [w.reason for w in widths.frozen]


def test_a_custom_operator_freezes_what_it_touches_with_its_name_and_line() -> None:
    free, frozen = reasons(Odd(between=torch.ops.archir_tests.doubled), torch.randn(2, 4))
    assert not free
    (reason,) = {r for r in frozen if "doubled" in r}
    assert "it has no axis rule" in reason and "test_odd_models.py" in reason


def test_a_custom_operator_elsewhere_freezes_nothing_else() -> None:
    free, _ = reasons(Odd(after=torch.ops.archir_tests.doubled), torch.randn(2, 4))
    assert free == ["w0"]


def test_complex_numbers_are_carried() -> None:
    free, frozen = reasons(Odd(between=lambda x: torch.fft.rfft(x, n=10).abs()[:, :6]), torch.randn(2, 4))
    assert not free
    assert any("fft" in r for r in frozen)


def test_a_complex_parameter_survives() -> None:
    class Rotation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn = nn.Parameter(torch.randn(4, dtype=torch.complex64))
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head((x * self.turn).abs())
            return out

    x = torch.randn(3, 4)
    torch.manual_seed(0)
    model = Rotation()
    graph = trace(model, (x,))
    assert torch.allclose(graph.module()(x), model(x), atol=1e-6)
    infer_widths(graph)


def test_scalar_outputs() -> None:
    free, _ = reasons(Odd(after=lambda y: y.square().mean()), torch.randn(2, 4))
    assert free == ["w0", "w1"] or free == ["w0"]


def test_dict_and_tuple_outputs() -> None:
    free, _ = reasons(Odd(after=lambda y: {"y": y, "pair": (y.sum(1), [y.relu()])}), torch.randn(2, 4))
    assert free == ["w0"]


def test_no_free_width() -> None:
    free, frozen = reasons(nn.Linear(4, 3), torch.randn(2, 4))
    assert not free
    assert set(frozen) == {"an axis of an input", "an axis of an output"}


def test_no_parameters() -> None:
    free, frozen = reasons(nn.ReLU(), torch.randn(2, 4))
    assert not free and not frozen


def test_a_width_of_nothing() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        model = Odd(width=0)
    try:
        graph = trace(model, (torch.randn(2, 4),))
    except CaptureError as error:
        assert error.why
    else:
        x = torch.randn(2, 4)
        assert torch.allclose(graph.module()(x), model(x))
        assert all(w.size for w in infer_widths(graph))


def test_an_input_without_examples() -> None:
    model = Odd()
    try:
        found = trace(model, (torch.randn(0, 4),)).module()(torch.ones(0, 4))
    except ArchirError as error:
        assert error.what
    else:
        assert torch.allclose(found, model(torch.ones(0, 4)))


def test_sparse_and_quantised_tensors_are_refused_or_run() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("edges", torch.eye(4).to_sparse())
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.sparse.mm(self.edges, x.T).T)
            return out

    x = torch.randn(3, 4)
    torch.manual_seed(0)
    model = Sparse()
    try:
        graph = trace(model, (x,))
    except CaptureError as error:
        assert error.why or error.hint
    else:
        assert torch.allclose(graph.module()(x), model(x), atol=1e-6)
        infer_widths(graph)


def test_data_dependent_control_flow_names_the_line() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError) as caught:
        trace(Branch(), (torch.randn(2, 4),))
    assert "test_odd_models.py" in str(caught.value)
