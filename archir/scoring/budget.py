"""What growth may cost: hard budgets, and prices that weigh cost against loss."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

from pydantic.dataclasses import dataclass

from archir.cost import Cost
from archir.errors import GrowError
from archir.scoring.ranges import CLOSED, Amount, Real, checked


@checked(GrowError, "this is no budget")
@dataclass(frozen=True, config=CLOSED)
class Budget:
    """Hard limits on the cost of a network.

    But for that on latency, a limit is a whole number, or a part of what the network at hand costs: `flops=0.5` is half
    of its FLOPs; see `resolved`.

    Attributes:
        parameters: most trainable parameters, None for no limit.
        flops: most FLOPs of the forward pass of one example, None for no limit.
        peak_bytes: most bytes of activations that are alive at once in that pass, None for no limit.
        latency: most seconds that pass takes on this machine, None for no limit; measured.

    Raises:
        GrowError: a limit is neither a whole number from 0 nor a part above 0 and at most 1; all of them at once.
    """

    parameters: Amount | None = None
    flops: Amount | None = None
    peak_bytes: Amount | None = None
    latency: Real | None = None

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are given, by name."""
        return {name: limit for name, limit in asdict(self).items() if limit is not None}

    @property
    def scarce(self) -> dict[str, int]:
        """The limits that are given on what is read off the types of a network, by name: all but latency.

        Raises:
            GrowError: one is a part of what a network costs, and nothing says of which.
        """
        if self._parts:
            raise GrowError(f"this budget is a part of what a network costs: {self}", hint="resolve it for a network")
        return {name: int(limit) for name, limit in self.limits.items() if name != "latency"}

    @property
    def _parts(self) -> dict[str, float]:
        """The limits that are parts of what a network costs, by name."""
        return {n: limit for n, limit in self.limits.items() if n != "latency" and isinstance(limit, float)}

    def resolved(self, cost: Cost) -> Budget:
        """Return the same limits in whole numbers: parts are those of a cost, rounded down.

        Args:
            cost: cost of the network that they are parts of.
        """
        return replace(self, **{name: int(part * getattr(cost, name)) for name, part in self._parts.items()})

    def allows(self, cost: Cost) -> bool:
        """Say whether a network of some cost is within the limits on what is read off its types."""
        return all(getattr(cost, name) <= limit for name, limit in self.scarce.items())

    def allows_latency(self, seconds: float) -> bool:
        """Say whether a network that takes so many seconds an example is within the limit."""
        return self.latency is None or seconds <= self.latency

    def scaled(self, factor: float) -> Budget:
        """Return a multiple of all limits, whole ones rounded down."""
        whole = {name: int(limit * factor) for name, limit in self.scarce.items()}
        return Budget(**whole, latency=None if self.latency is None else self.latency * factor)

    def check(self, seed: Cost) -> None:
        """Check that a seed network leaves room to grow.

        Raises:
            GrowError: there is no limit, or the seed exceeds one: it would have to be compressed.
        """
        if not self.limits:
            raise GrowError("growth needs a budget", hint="give a limit on parameters, FLOPs, peak bytes or latency")
        if not self.allows(seed):
            raise GrowError(
                "the budget is below the size of the seed",
                where=f"seed: {seed.parameters} parameters, {seed.flops} FLOPs, {seed.peak_bytes} peak bytes",
                why=f"budget: {self}",
                hint="raise the budget, start from a smaller network, or compress a trained one: archir compress",
            )

    def stage(self, begun: Cost, step: int, steps: int) -> Budget:
        """Return the limits of one growth step: geometrically spaced between where it all began and this budget.

        That on latency is the final one in every step.

        Args:
            begun: cost of the network that training began with, above the limits or below.
            step: number of the step, from 1.
            steps: number of steps.
        """

        def between(first: int, last: int) -> int:
            if last <= 0 or step >= steps:
                return last
            return round(first * math.pow(last / max(first, 1), step / steps))

        return replace(self, **{name: between(getattr(begun, name), last) for name, last in self.scarce.items()})

    def share(self, cost: Cost) -> float:
        """Return what part of a limit a network of some cost uses, of the limit it uses most of; latency left out."""
        return max((getattr(cost, name) / max(limit, 1) for name, limit in self.scarce.items()), default=0.0)

    def __str__(self) -> str:
        units = {"parameters": "parameters", "flops": "FLOPs", "peak_bytes": "peak bytes", "latency": "seconds"}
        of = {name: f"{limit} of its" if name in self._parts else str(limit) for name, limit in self.limits.items()}
        return ", ".join(f"{amount} {units[name]}" for name, amount in of.items()) or "no limit"


@checked(GrowError, "these are no prices")
@dataclass(frozen=True, config=CLOSED)
class Prices:
    """What cost is worth in loss.

    Attributes:
        parameters: nats a parameter.
        flops: nats a FLOP.
        peak_bytes: nats a byte of activations alive at once.
        latency: nats a second of the forward pass of one example.

    Raises:
        GrowError: a price is no number, or below 0; all of them at once.

    Source: Lawton, Galstyan, Ver Steeg 2024 for the price of a parameter.
    """

    parameters: Real = 0.0
    flops: Real = 0.0
    peak_bytes: Real = 0.0
    latency: Real = 0.0

    @property
    def given(self) -> dict[str, float]:
        """The prices that are not zero, by name."""
        return {name: price for name, price in asdict(self).items() if price}

    def of(self, cost: Cost) -> float:
        """Return the price of a cost, in nats; that of latency is not part of it."""
        return self.parameters * cost.parameters + self.flops * cost.flops + self.peak_bytes * cost.peak_bytes

    def by_flops(self, seconds_per_flop: float) -> Prices:
        """Return prices in which latency is taken to be proportional to FLOPs, as far as nothing is measured."""
        return replace(self, flops=self.flops + self.latency * seconds_per_flop, latency=0.0)
