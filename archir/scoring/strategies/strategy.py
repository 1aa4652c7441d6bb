"""What a strategy is."""

from __future__ import annotations

from typing import Protocol

from archir.scoring.strategies.context import ScoringContext
from archir.scoring.strategies.result import StrategyResult


class Strategy(Protocol):
    """A way to score and choose candidates. An implementation is a frozen dataclass, whose fields are its options."""

    @property
    def name(self) -> str:
        """Its name on the command line and in configurations."""
        ...

    @property
    def summary(self) -> str:
        """One line for people."""
        ...

    @property
    def running_statistics(self) -> bool:
        """Whether it takes the running statistics of batch normalisations alone, not those of the batch."""
        ...

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph.

        Raises:
            ScoreError: the loss is not finite or does not fit a batch.
        """
        ...
