"""The demo: a small U-Net grown on canvases of scikit-learn's digits, beside some that were not grown."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from archir.cli.canvases import canvases
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
factory = "archir.cli.canvases:UNet"

[data]
source = "archir.cli.demo:data"

[budget]
parameters = 3_000
flops = 510_000

[optimiser]
name = "adamw"
rate = 2e-2
weight_decay = 0.05

[training]
steps = 2500
batch_size = 32
evaluate_every = 500

[growth]
score_examples = 100
"""
"""The configuration of the demo; growth itself is left to the defaults."""


def data() -> dict[str, tuple[Tensor, Tensor]]:
    """Return canvases of 16 x 16 pixels with two digits, for training, validation and test."""
    return canvases({"train": 8000, "validation": 1000, "test": 2000}, side=16, digits=2)


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
            controls = train_controls(
                seed, limits, spent, dataset, loss, config.options, out, unchanged=False, on_event=progress
            )
        finish(run, dataset, loss, out, config.options, title="archir demo: a U-Net on digits", controls=controls)
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
