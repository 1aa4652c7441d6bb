"""Which modules have a forward of their own, and that nothing is moved for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from archir.ir.lowering import lower
from archir.ir.parse import parse_graph
from frontends.pytorch import trace


class Gate(nn.Module):
    """Takes two tensors and returns two."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        mixed = self.mix(x).view(x.shape[0], 2, 2).sum(1)
        return x * y, mixed


class Stack(nn.ModuleList):
    """Calls its modules with a tensor that stays the same."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for gate in self:
            x, more = gate(x, y)
            y = y + more.repeat(1, 2)
        return x + y


def test_modules_take_and_return_several_tensors_and_read_sizes_off_them() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = Stack([Gate(), Gate()])

        def forward(self, x: Tensor) -> Tensor:
            return self.stack(x, x.exp())  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = Net(), torch.randn(3, 4)
    module: Any = trace(model, x).module()
    assert torch.equal(module(x), model(x))
    assert len(module.stack) == 2 and isinstance(module.stack, nn.ModuleList)
    # What is returned side by side comes in the order it is made in.
    for found, wanted in zip(module.stack[0](x, 2 * x), reversed(model.stack[0](x, 2 * x)), strict=True):
        assert torch.equal(found, wanted)
    compiled: Any = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), model(x))


def test_a_module_that_is_called_twice_makes_its_calls_in_the_one_it_is_in() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.4))

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.block(x)) + 1  # type: ignore[no-any-return]

    model, x = Twice(), torch.randn(3, 4)
    graph = trace(model, x)
    assert lower(graph).forwards.keys() == {""} and not lower(graph).sequences
    module: Any = graph.module()
    calls: list[int] = []
    for number, part in enumerate(module.block):
        part.register_forward_hook(lambda *_, number=number: calls.append(number))
    results = []
    for each in (model, module):
        torch.manual_seed(0)
        results.append(each(x))
    assert torch.equal(*results) and calls == [0, 1, 2, 0, 1, 2]


TEXT = """graph net(x: f32[B, 4]) {
  %0 = aten.linear(x, @a.one.weight[4, 4])  #: id=4 module="a.one"
  %1 = aten.dropout(%0, 0.5, False)         #: id=5 module="b.drop"
  %2 = aten.sin(%1)                         #: id=6 module="a"
  %3 = aten.add.Tensor(%1, %2)
  %4 = aten.cos(%3)                         #: id=8 module="a"
  %5 = aten.mul.Tensor(%4, @b.scale[4])     #: id=9 module="c"
  return %5
}"""


def test_calls_that_do_not_stand_together_stay_where_they_are() -> None:
    graph = parse_graph(TEXT.replace("  %3 = aten.add.Tensor(%1, %2)", "  %3 = aten.add.Tensor(%1, %2) #: id=7"))
    lowered = lower(graph)
    # All of `b` stands together, but for a tensor of it that `c` is given; `a` is left and entered again.
    assert lowered.forwards.keys() == {"", "b", "c"}
    module: Any = graph.module()
    assert isinstance(module.a.one, nn.Linear) and isinstance(module.b.drop, nn.Dropout)
    x = torch.randn(3, 4)
    hidden = nn.functional.linear(x, module.a.one.weight)
    wanted = torch.cos(hidden + torch.sin(hidden)) * module.b.scale
    assert torch.equal(module.eval()(x), wanted)
    assert torch.equal(module.c(x, module.b.scale), x * module.b.scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_what_is_made_of_nothing_follows_the_module_it_is_made_in(dtype: torch.dtype) -> None:
    class Ramp(nn.Module):
        def __init__(self, slope: bool) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.ones(1)) if slope else None

        def forward(self, x: Tensor) -> Tensor:
            ramp = torch.arange(x.shape[1], dtype=torch.float32, device=x.device)
            return x + (ramp if self.slope is None else self.slope * ramp)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.own, self.bare = nn.Linear(4, 4), Ramp(True), Ramp(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.bare(self.own(self.fc(x)))  # type: ignore[no-any-return]

    graph = trace(Net(), torch.randn(2, 4))
    assert lower(graph).forwards.keys() == {"", "own"}
    module = graph.module().to("meta", dtype)
    made = module(torch.randn(2, 4, dtype=dtype, device="meta"))
    assert made.dtype == dtype and made.is_meta
