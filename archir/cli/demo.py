"""The demo: a small network grown on scikit-learn's digits, beside two that were not grown."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archir.cli.console import RunProgress, say
from archir.cli.growing import finish, seed_and_data, start, training_flops_of
from archir.cost import cost
from archir.growing.config import make_config
from archir.growing.controls import train_controls
from archir.growing.run import CONFIG
from archir.ir.files import is_plain, read_plain

TEXT = """\
# the run of `archir demo`
loss = "cross_entropy"

[model]
factory = "archir.cli.demo:DigitsNet"

[data]
source = "digits"
validation = 0.25

[budget]
parameters = 4_000
flops = 305_360

[optimiser]
name = "sgd"
rate = 0.1
weight_decay = 5e-4

[training]
steps = 3000
batch_size = 64
warmup = 30
evaluate_every = 100

[growth]
first_growth = 0.05
last_growth = 0.3
score_examples = 180
"""
"""The configuration of the demo."""


class DigitsNet(nn.Module):
    """A small residual network for 8 x 8 images of one channel."""

    def __init__(self, width: int = 3, classes: int = 10) -> None:
        """Make the layers.

        Args:
            width: channels of the residual stream; later ones are twice as many.
            classes: number of classes.
        """
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block = Block(width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, `[batch, classes]`, of images `[batch, 1, height, width]`."""
        x = F.relu(self.norm(self.stem(x)))
        x = self.block(x)
        x = F.relu(self.down_norm(self.down(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Block(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        """Make the layers, for a stream of so many channels."""
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return features shaped like the input, `[batch, channels, height, width]`."""
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(inner)))


def demo(out: Path, *, quiet: bool, text: str = TEXT) -> None:
    """Grow the network of the demo into a folder, train the controls, and print how they compare; all on the CPU.

    Args:
        out: the folder; an earlier demo in it is replaced.
        quiet: show no progress.
        text: the configuration.

    Raises:
        FileError: there is another run in the folder, or it cannot be written.
    """
    began = time.monotonic()
    config = make_config(tomllib.loads(text), text=text, base=Path(), where="the demo").on("cpu")
    with _one_thread():
        with RunProgress(quiet=quiet) as progress:
            seed, dataset = seed_and_data(config)
            loss = config.find_loss()
            run = start(config, seed, dataset, loss, out, progress, replace=_is_demo(out, text))
        limits, spent = config.budget.resolved(cost(seed)), training_flops_of(run)
        with RunProgress(quiet=quiet) as progress:
            controls = train_controls(seed, limits, spent, dataset, loss, config.options, out, on_event=progress)
        finish(run, dataset, loss, out, config.options, title="archir demo: digits", controls=controls)
    say(f"{time.monotonic() - began:.0f} seconds in all")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread: for networks this small, two are no faster, and wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_demo(out: Path, text: str) -> bool:
    """Say whether the run in a folder is one of the demo."""
    file = out / CONFIG
    return is_plain(file) and read_plain(file).partition(b"\n")[0] == text.encode().partition(b"\n")[0]
