"""What a run does when its loss diverges: it goes back to where it was well, at half the rate, once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from archir.cost import training_flops
from archir.errors import DivergenceError
from archir.growing.checks import first_labelled
from archir.growing.device import device_of, sent
from archir.growing.examples import Examples, Split
from archir.growing.run import Checkpoint
from archir.growing.training import Training, call, evaluating
from archir.ir.device_memory import attempt
from archir.ir.graph import Graph
from archir.scoring.losses import Loss
from archir.scoring.targets import map_tensors

TIMES = 10.0
"""How many times the loss of a network that has learned nothing a loss is that has diverged."""

SLOWER = 0.5
"""What the learning rate is multiplied with when the loss has diverged."""


def largest_loss(module: nn.Module, examples: Split, loss: Loss, size: int) -> float:
    """Return the loss above which training has diverged though it is finite.

    That is `TIMES` the loss of some examples, or that of outputs which are all zero if it is larger, since the loss
    of a network that was trained before says little; or `TIMES` one nat if both are smaller.

    Where memory runs out they are taken in halves, unless the loss is coupled.

    Args:
        module: the network before the first step; its mode is left as it was.
        examples: training examples.
        loss: what is minimised.
        size: how many of the examples are looked at, at most.

    Raises:
        FileError: examples cannot be read.
        GrowError: code of the user's that reads them fails, or the model rejects them.
        ScoreError: they are neither pairs nor mappings with targets, or do not fit the loss.
    """
    first = first_labelled(examples, loss, size)
    assert first is not None  # it was checked before the run began
    with evaluating(module), torch.no_grad():
        device = device_of(module)
        found = [abs(value) for value in _losses(module, first, loss, device)]
    return TIMES * max(1.0, *filter(math.isfinite, found))


def _losses(module: nn.Module, examples: Examples, loss: Loss, device: torch.device) -> tuple[float, float]:
    """Return the loss of some examples, and that of outputs which are all zero; of halves where memory runs out."""

    def at_once() -> tuple[float, float]:
        inputs, targets = (map_tensors(lambda t: sent(t, device), part) for part in (examples.inputs, examples.targets))
        outputs = call(module, inputs)
        return float(loss(outputs, targets)), float(loss(map_tensors(torch.zeros_like, outputs), targets))

    count = len(examples)
    if loss.coupled or count < 2:
        return at_once()
    done = attempt(at_once)
    if done is not None:
        return done[0]
    halves = [examples.take(part) for part in (slice(0, count // 2), slice(count // 2, count))]
    pairs = [_losses(module, half, loss, device) for half in halves]
    own, zero = (
        sum(len(half) * value for half, value in zip(halves, values, strict=True)) / count
        for values in zip(*pairs, strict=True)
    )
    return own, zero


class Recovery:
    """The learning rate of a run, how often its loss has diverged, and the checkpoint it goes back to then.

    Attributes:
        rate: the highest learning rate.
        diverged: how often the loss has diverged at higher rates.
        most: the loss above which it has diverged.
    """

    def __init__(self) -> None:
        """Begin with nothing to go back to."""
        self.rate = math.nan
        self.diverged = 0
        self.most = math.inf
        self._last: Checkpoint | None = None
        self._kept = time.monotonic()

    @property
    def last(self) -> Checkpoint | None:
        """The checkpoint to go back to, None if there is none yet."""
        return self._last

    def keep(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint from now on; its state has `rate`, `diverged`, `seconds` and `training_flops`."""
        self._last = checkpoint
        self._kept = time.monotonic()

    def check(self, stretch: Training, step: int) -> None:
        """Check the losses of a stretch of training that ends at a step.

        Raises:
            DivergenceError: their mean or the last of them is too large.
        """
        largest = max((value for value in (stretch.loss, stretch.last) if value is not None), default=0.0)
        if largest > self.most:
            raise DivergenceError(
                f"the loss before step {step} is {largest:.6g}, above {self.most:.6g}", step=step, loss=largest
            )

    def after(self, error: DivergenceError, batch_size: Callable[[Graph], int]) -> Checkpoint:
        """Return where to go on after the loss has diverged: the last checkpoint, at half the rate.

        The time and the FLOPs of the steps that came to nothing stay counted.

        Args:
            error: tells at which step.
            batch_size: tells how many examples a batch of a network has.

        Raises:
            DivergenceError: it has diverged before.
        """
        assert self._last is not None
        last, state = self._last, dict(self._last.state)
        state["seconds"] += time.monotonic() - self._kept
        state["training_flops"] += training_flops(last.graph, (error.step - last.step) * batch_size(last.graph))
        self.keep(replace(last, state=state))
        if self.diverged:
            raise DivergenceError(
                f"the loss diverged twice; the last time, {error.what}",
                why=f"the learning rate was {self.rate / SLOWER:g}, and {self.rate:g} after that",
                step=error.step,
                loss=error.loss,
                hint="lower the learning rate, clip the gradient (`clip = 1.0`), or look for inputs that are far off",
            ) from error
        return replace(last, state=state | {"rate": self.rate * SLOWER, "diverged": self.diverged + 1})
