from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from archir.axes.infer import infer_widths
from tests.models.example import Example
from tests.models.zoo import ZOO
from tools import coverage, rival
from tools.residual import residual_network
from tools.side_by_side import Comparison, Timing, Verdicts, compare


def test_a_model_is_compared() -> None:
    found = compare(ZOO["mlp"])
    assert found.error == "" and found.timing is not None and found.verdicts is not None
    parameters = sum(p.numel() for p in ZOO["mlp"].build().parameters())
    assert found.verdicts.reach == pytest.approx(1 - 4 / parameters)  # all but the biases of the classes
    assert replace(found.verdicts, reach=0) == Verdicts(2, 2, 2, 2, 2, 2, (), 0)
    assert found.timing.nodes > 10 and found.timing.repeated > 0
    assert (found.timing.repeated_speedup is None) == (found.timing.speedup is None)


def test_what_cannot_be_captured_is_told() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    found = compare(Example(Branches, lambda batch: (torch.randn(batch, 3),)))
    assert found.verdicts is None and "cannot be captured" in found.error


@pytest.mark.parametrize("layers", [2, 10])
def test_residual_networks_have_the_layers_asked_for(layers: int) -> None:
    graph = residual_network(layers)
    assert sum(n.op == "aten.linear.default" for n in graph.calls) == layers
    assert len(infer_widths(graph)) == layers // 2


def _timing(seconds: float, error: str = "") -> Timing:
    return Timing(12, seconds, 0.4, rival.Attempt(1.0, 3, error), seconds / 2, None if error else 0.8)


def test_speeds_are_of_times_taken_alike() -> None:
    timing, failed = _timing(0.1), _timing(0.1, "ValueError: no")
    assert timing.speedup == pytest.approx(10) and timing.repeated_speedup == pytest.approx(16)
    assert failed.speedup is None and failed.repeated_speedup is None


def test_tables_have_a_row_for_each_family_and_model() -> None:
    verdicts = Verdicts(5, 2, 5, 4, 4, 4, (), 0.5)
    comparisons = {
        "a/x": Comparison(verdicts, _timing(0.1)),
        "a/y": Comparison(verdicts, _timing(0.2, "ValueError: no")),
        "b/z": Comparison(error="no such model"),
    }
    assert coverage.by_family(comparisons).splitlines()[2:] == [
        "| a | 2 | 2 | 10 | 10 | 8 of 8 | 50% | 1 of 2 |",
        "| b | 1 | 0 | 0 | 0 | 0 of 0 | - | 0 of 0 |",
        "| all | 3 | 2 | 10 | 10 | 8 of 8 | 50% | 1 of 2 |",
    ]
    rows = coverage.by_model(comparisons).splitlines()
    assert rows[2] == "| a/x | 5 | 2 | 5 | 4 | 4 | 50% | 12 | 0.1000 | 1.000 | 10.0 |"
    assert rows[3] == "| a/y | 5 | 2 | 5 | 4 | 4 | 50% | 12 | 0.2000 | ValueError | - |"
    assert len({row.count("|") for row in rows}) == 1 and "no such model" in rows[4]
    assert coverage.of_times({"x": _timing(0.1)}).splitlines()[2] == "| x | 12 | 0.1000 | 1.000 | 10.0 |"
