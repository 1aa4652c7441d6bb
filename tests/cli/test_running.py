"""Graphs that are sound and do not run are told by the call that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.errors import GraphError
from archir.ir.graph import Graph
from archir.ir.running import failing_call
from frontends.pytorch import trace
from tests.cli.run import refused


class _Picks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(64, 5), nn.Linear(5, 4)
        self.register_buffer("picked", torch.arange(10) % 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.outer(torch.relu(self.inner(x.flatten(1))))
        return x.index_select(1, self.get_buffer("picked"))


CALL = "torch.ops.aten.index_select.default(linear_1, 1, self.picked)"


@pytest.fixture
def broken() -> Graph:
    """A graph whose stored numbers are no positions of what they pick from."""
    return trace(_Picks(), torch.zeros(2, 1, 8, 8)).with_tensors({"picked": torch.full((10,), 99)})


def test_the_call_that_fails_is_named(broken: Graph, tmp_path: Path) -> None:
    net = tmp_path / "net.archir"
    broken.save(net)
    commands = (
        ("verify", net),
        ("export", net, "--python", tmp_path / "python"),
        ("apply", net, "prune{width=w0, units=[0]}", "--dry-run", "--check"),
    )
    for command in commands:
        error = refused(*command)
        assert "_Picks does not run" in error and CALL in error and "out of DATA bounds, id=99" in error, command
    refused("export", net, "--onnx", tmp_path / "net.onnx")
    text = f'[model]\ngraph = "{net}"\n[data]\nsource = "digits"\n[budget]\nparameters = 900\n'
    (tmp_path / "run.toml").write_text(text)
    assert CALL in refused("grow", tmp_path / "run.toml", "--out", tmp_path / "run", "--quiet")
    assert "aten.index_select.default rejects its operands" in refused("score", net, "--data", "digits")
    assert not (tmp_path / "run").exists() and not (tmp_path / "net.onnx").exists()


def test_emission_of_a_graph_that_does_not_run_leaves_nothing(broken: Graph, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="_Picks does not run"):
        to_python(broken, tmp_path, name="net")
    with pytest.raises(GraphError, match="_Picks does not run"):
        to_onnx(broken, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_errors_of_other_code_name_no_call() -> None:
    try:
        raise ValueError("mine")
    except ValueError as error:
        assert failing_call(error) == ""
