"""Dynamic axes on the command line: in a command, in the configuration of a run, and in what commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from archir.ir.load import load
from tests.cli.run import archir

MODELS = '''"""A model whose inputs may have any length, and data of several."""

import torch
from torch import nn


class Reader(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 5)
        self.cell = nn.GRU(5, width, batch_first=True)
        self.inner, self.head = nn.Linear(width, 7), nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.inner(self.cell(self.words(x))[0].mean(1))))


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(11, 5), nn.Linear(35, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(x).flatten(1))  # seven words


def batches(seed: int):
    generator = torch.Generator().manual_seed(seed)
    for number in range(8):
        x = torch.randint(0, 11, (8, 3 + number % 4), generator=generator)
        yield x, x[:, 0] % 4


def train():
    return lambda: batches(0)


def validation():
    return lambda: batches(1)
'''

RUN = """
seed = 0
output = "run"

[model]
factory = "reader.py:Reader"
dynamic = ["x:1=T"]

[data]
source = "train=reader.py:train, validation=reader.py:validation, test=reader.py:validation"

[budget]
parameters = 420

[optimiser]
rate = 0.01

[training]
steps = 8
batch_size = 8

[growth]
growth_steps = 1
learn_steps = 4
score_examples = 8
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "reader.py").write_text(MODELS)
    return tmp_path / "reader.py"


def test_trace_takes_names_of_axes(models: Path, tmp_path: Path) -> None:
    net = tmp_path / "net.archir"
    done = archir("trace", f"{models}:Reader", "--input", "i64:2,7", "--dynamic", "x:1=T", "-o", net)
    assert done.code == 0, done.err
    assert str(load(net)).startswith("graph Reader(x: i64[B, T]) at T = 7 {")
    assert "graph Reader(x: i64[B, T]) at T = 7 {" in archir("show", net).out
    assert "returns [2, 4]" in archir("verify", net).out
    assert archir("export", net, "--python", tmp_path / "source").code == 0


@pytest.mark.parametrize(
    ("model", "axes", "told"),
    [
        (
            "Reader",
            ["x:0=T", "y1=U", "x:1=Max"],
            "error: these are no dynamic axes\n"
            "  where: 'x:0=T': axis 0 is the batch, which is dynamic anyway and called B\n"
            "         'y1=U' is not an axis of an input with a name\n"
            "         'x:1=Max': Max is the name of a function of sizes\n"
            "  hint:  write INPUT:AXIS=NAME, such as x:1=T: axis 1 of the input x is called T\n",
        ),
        (
            "Reader",
            ["x:3=T", "y:1=U"],
            "error: these axes of Reader cannot be dynamic\n"
            "  where: axis 3 of x: the input has 2 axes, counted from 0\n"
            "         no input is called 'y': known: x\n"
            '  hint:  axes are named as in dynamic={"x": {1: "T"}}, on the command line --dynamic x:1=T\n',
        ),
        (
            "Fixed",
            ["x:1=T"],
            "error: Fixed fixes the size of axis 1 of x (T), which is to be dynamic\n"
            "  where: {models}:24: return self.head(self.words(x).flatten(1))  # seven words\n"
            "  why:   it works for a size of 7 only\n"
            "  hint:  compute with the size of the input, not with a number, or leave the axis out: "
            "it is one size then\n",
        ),
    ],
)
def test_axes_that_cannot_be_dynamic_are_told(
    models: Path, tmp_path: Path, model: str, axes: list[str], told: str
) -> None:
    named = [part for axis in axes for part in ("--dynamic", axis)]
    done = archir("trace", f"{models}:{model}", "--input", "i64:2,7", *named, "-o", tmp_path / "net.archir")
    assert done.code == 1
    assert done.err == told.replace("{models}", str(models))
    assert not (tmp_path / "net.archir").exists()


def test_axes_of_an_onnx_file_have_names_there(tmp_path: Path) -> None:
    done = archir("trace", tmp_path / "net.onnx", "--dynamic", "x:1=T", "-o", tmp_path / "net.archir")
    assert done.code == 2
    assert "--dynamic" in done.err


def test_a_run_names_axes_and_reads_batches_of_several_lengths(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(RUN)
    done = archir("grow", tmp_path / "run.toml", "--device", "cpu")
    assert done.code == 0, done.err
    grown = load(next((tmp_path / "run").glob("*.archir")))
    assert str(grown).startswith("graph Reader(x: i64[B, T]) at T = 3 {")
    assert grown.parameter_count <= 420
