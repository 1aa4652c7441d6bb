"""What growth may cost: hard budgets, and prices that weigh cost against loss."""

from __future__ import annotations

from dataclasses import dataclass

from archir.cost import Cost
from archir.errors import GrowError


@dataclass(frozen=True)
class Budget:
    """Hard limits on the cost of the grown network.

    Attributes:
        parameters: most trainable parameters, None for no limit.
        flops: most FLOPs of the forward pass of one example, None for no limit.
    """

    parameters: int | None = None
    flops: int | None = None

    def allows(self, cost: Cost) -> bool:
        """Say whether a network of some cost is within the limits."""
        within = self.parameters is None or cost.parameters <= self.parameters
        return within and (self.flops is None or cost.flops <= self.flops)

    def check(self, seed: Cost) -> None:
        """Check that a seed network leaves room to grow.

        Raises:
            GrowError: there is no limit, or the seed exceeds one.
        """
        if self.parameters is None and self.flops is None:
            raise GrowError("growth needs a budget", mend="give a limit on parameters or on FLOPs")
        if not self.allows(seed):
            raise GrowError(
                "the budget is below the size of the seed",
                where=f"seed: {seed.parameters} parameters, {seed.flops} FLOPs",
                why=f"budget: {self}",
                mend="raise the budget or start from a smaller network",
            )

    def stage(self, seed: Cost, step: int, steps: int) -> Budget:
        """Return the limits of one growth step: geometrically spaced between the seed and the final budget."""

        def between(low: int, high: int | None) -> int | None:
            return None if high is None else round(low * (high / max(low, 1)) ** (step / steps))

        return Budget(between(seed.parameters, self.parameters), between(seed.flops, self.flops))

    def __str__(self) -> str:
        parts = [f"{self.parameters} parameters"] if self.parameters is not None else []
        parts += [f"{self.flops} FLOPs"] if self.flops is not None else []
        return ", ".join(parts) or "no limit"


@dataclass(frozen=True)
class Prices:
    """What cost is worth in loss.

    Attributes:
        parameters: nats a parameter.
        flops: nats a FLOP.

    Source: Lawton, Galstyan, Ver Steeg 2024 for the price of a parameter.
    """

    parameters: float = 0.0
    flops: float = 0.0

    def of(self, cost: Cost) -> float:
        """Return the price of a cost, in nats."""
        return self.parameters * cost.parameters + self.flops * cost.flops
