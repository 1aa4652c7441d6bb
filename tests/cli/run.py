"""Runs the command line within a test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from archir.cli.main import app

MODELS = '''"""Models for the tests of the command line."""

import torch
from torch import nn


def mlp(width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


def digits() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))


def narrow() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(63, 10))


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # the guilty line
            return x
        return -x


def number() -> int:
    return 3


def broken() -> nn.Module:
    raise ValueError("no luck")


def arguments() -> tuple[torch.Tensor]:
    return (torch.zeros(2, 8),)


def infinite(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.sum(1) * float("nan")


def normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
'''


@dataclass(frozen=True)
class Done:
    """What a command did.

    Attributes:
        code: the exit code.
        out: what it printed on standard output.
        err: what it printed on standard error.
    """

    code: int
    out: str
    err: str


def archir(*arguments: str | Path) -> Done:
    """Run a command; an error that is none of archir's own is raised."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def refused(*arguments: str | Path) -> str:
    """Run a command that must fail with one clear error, and return that."""
    done = archir(*arguments)
    assert done.code == 1, done
    assert done.err.startswith("error: ") and "Traceback" not in done.err, done.err
    return done.err


def write_models(folder: Path) -> Path:
    """Write the models into a folder and return the file."""
    file = folder / "models.py"
    file.write_text(MODELS)
    return file


CONFIG = """
output = "run"
[model]
factory = "models.py:digits"
[data]
source = "digits"
validation = 0.25
limit = 800
[budget]
parameters = 700
[optimiser]
rate = 0.05
[training]
steps = 60
batch_size = 32
evaluate_every = 30
[growth]
expansion = 1.0
growth_steps = 1
first_growth = 0.5
last_growth = 0.5
learn_steps = 5
recalibrate_batches = 2
"""

FILES = [
    "config.toml",
    "fingerprint.json",
    "growth.png",
    "history.jsonl",
    "lock",
    "net.onnx",
    "net.py",
    "net.safetensors",
]
