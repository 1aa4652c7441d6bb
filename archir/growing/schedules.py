"""The learning rate of each step."""

from __future__ import annotations

import math
from typing import Annotated, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from archir.errors import GrowError
from archir.scoring.ranges import CLOSED, Count, Part, Real, Whole, among, checked, problem

SHAPES = ("constant", "linear", "cosine", "held")


@checked(GrowError, "this is no schedule")
@dataclass(frozen=True, config=CLOSED)
class Schedule:
    """Learning rate of each step: a linear warm-up, then one of several shapes down to `last`.

    `constant` stays at `rate`; `linear` and `cosine` fall from the warm-up on; `held` stays at `rate` and falls
    linearly over the last part of the steps, so that what is grown meanwhile meets the rate its elders met.

    Attributes:
        rate: highest learning rate.
        steps: number of steps, warm-up included; the rate stays `last` after them.
        warmup: number of steps of the warm-up.
        shape: one of `SHAPES`.
        last: learning rate at the end, for the falling shapes.
        decay: part of the steps in which a held rate falls.

    Raises:
        GrowError: there is no such shape, the warm-up does not end, or a value is out of range; all of them at once.

    Source: for the held shape, Zhai et al., Scaling Vision Transformers (2022), section 3.5.
    """

    rate: Real
    steps: Count
    warmup: Whole = 0
    shape: Annotated[str, among("schedule", SHAPES)] = "cosine"
    last: Real = 0.0
    decay: Part = 0.4

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.warmup >= self.steps:
            raise problem(f"a warm-up of {self.warmup} steps does not fit into {self.steps} steps")
        return self

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        if self.shape == "constant":
            return self.rate
        falls = max(self.warmup, self.steps - round(self.decay * self.steps)) if self.shape == "held" else self.warmup
        done = min(1.0, max(0, step - falls) / max(1, self.steps - falls))
        left = (1 + math.cos(math.pi * done)) / 2 if self.shape == "cosine" else 1 - done
        return self.last + (self.rate - self.last) * left
