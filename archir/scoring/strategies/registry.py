"""The strategies by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from archir.errors import ScoreError, suggest
from archir.scoring.strategies.data_free import Cheapest, Net2Net, Random, Uniform
from archir.scoring.strategies.gradmax import GradMax
from archir.scoring.strategies.joint import JointGaussNewton, LinearisedNetwork
from archir.scoring.strategies.pruning import Magnitude, Taylor
from archir.scoring.strategies.sampled import SampledJoint
from archir.scoring.strategies.single import AdditiveGaussNewton, BruteForce, FirstOrder
from archir.scoring.strategies.splitting import SplittingIndex
from archir.scoring.strategies.strategy import Strategy

_ALL: tuple[Strategy, ...] = (
    LinearisedNetwork(),
    JointGaussNewton(),
    SampledJoint(),
    AdditiveGaussNewton(),
    FirstOrder(),
    BruteForce(),
    Random(),
    Uniform(),
    Cheapest(),
    Net2Net(),
    SplittingIndex(),
    GradMax(),
    Magnitude(),
    Taylor(),
)

STRATEGIES: Mapping[str, Strategy] = MappingProxyType({strategy.name: strategy for strategy in _ALL})
"""Every strategy by its name."""


DEFAULT = LinearisedNetwork().name
"""The strategy that is used unless another is asked for."""


def find_strategy(name: str | Strategy) -> Strategy:
    """Return the strategy of a name; one of your own as it is.

    Raises:
        ScoreError: there is none.
    """
    if not isinstance(name, str):
        return name
    if name not in STRATEGIES:
        raise ScoreError(f"there is no strategy {name!r:.80}", hint=suggest(name, STRATEGIES))
    return STRATEGIES[name]
