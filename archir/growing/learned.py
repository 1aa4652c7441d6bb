"""Has a network learned anything? Its loss is compared with that of networks drawn like it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from archir.errors import NotFiniteError
from archir.growing.batches import Batches
from archir.growing.birth import Birth, redrawn_alike
from archir.growing.recalibration import recalibrate
from archir.growing.training import evaluate
from archir.ir.graph import Graph
from archir.ir.operators.normalisation import BATCH_NORM
from archir.ir.seeds import derived_seed
from archir.scoring.losses import Loss

DRAWN = 16
"""How many networks are drawn."""

LEAST = 1e-3
"""The smallest decrease of the loss, relative to it, that counts as learned."""


@dataclass(frozen=True)
class Standing:
    """The loss of a network among those of networks that are drawn like it.

    Attributes:
        loss: its loss.
        drawn: theirs; infinite where they are not finite.
    """

    loss: float
    drawn: tuple[float, ...]

    @property
    def learned(self) -> bool:
        """Whether its loss is further below the lowest of theirs than that is below their median.

        Had the network itself been drawn so, its loss would be that low once in 200 times, were these losses normal.
        """
        finite = [loss for loss in self.drawn if math.isfinite(loss)]
        if len(finite) < len(self.drawn) / 2:
            return True
        low = min(finite)
        return low - self.loss > max(median(finite) - low, LEAST * abs(low))

    @property
    def birth(self) -> Birth:
        """How a wider network should start: with what was learned, if anything was."""
        return "split" if self.learned else "fresh"


def compare_with_fresh(graph: Graph, batches: Batches, loss: Loss, seed: int = 0) -> Standing:
    """Compare the loss of a network with those of `DRAWN` networks whose weights are drawn like its own.

    Batch statistics of all of them are those of the batches. A network that has learned something else, and has a new
    last layer, looks as if it had learned nothing.

    Args:
        graph: the network.
        batches: examples, of which a few hundred do.
        loss: the loss.
        seed: of what is drawn.

    Raises:
        GrowError: a loss is not finite, nothing is labelled, or the model rejects the inputs.
        ScoreError: outputs and targets do not fit the loss.

    Source: ours.
    """

    def loss_of(network: Graph) -> float:
        module = network.module()
        if any(node.op == BATCH_NORM for node in network.calls):
            recalibrate(module, batches)
        return evaluate(module, batches, loss).loss

    def drawn_loss(number: int) -> float:
        try:
            return loss_of(redrawn_alike(graph, derived_seed(seed, number)))
        except NotFiniteError:
            return math.inf

    return Standing(loss_of(graph), tuple(map(drawn_loss, range(DRAWN))))
