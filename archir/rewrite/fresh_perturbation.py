"""What fresh units do to the activations where they cannot be evaluated apart: all calls that see them are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from archir.ir.node import Value
from archir.rewrite.derived import DerivedPerturbation
from archir.rewrite.perturbation import Edge, Members
from archir.rewrite.subgraph import Values
from archir.rewrite.theta import Key, Theta, by_node, noise_like


@dataclass(frozen=True)
class FreshPlaces:
    """Where the fresh units of a width stand in a stored tensor, and where θ starts from there.

    Attributes:
        axis: the axis of the width.
        index: their places along it in the tensor with them; `[places]`.
        shape: of the tensor with them.
        born: what θ is where they hold what they are born with: that, or zero where that is a mean, to which θ is
            added; the shape with its positions along the axis replaced by the places.
    """

    axis: int
    index: torch.Tensor
    shape: torch.Size
    born: torch.Tensor

    def change(self, to: torch.Tensor) -> torch.Tensor:
        """Return how the tensor with them changes where θ is something else."""
        change = to.new_zeros(self.shape)
        return change.index_copy(self.axis, self.index.to(to.device), to - self.born.to(to))


@dataclass(frozen=True)
class FreshPerturbation:
    """`Δ(θ) = f'(θ) − f` on the results of what units are summed into; θ is what the fresh units hold, beyond means.

    At θ = 0 nothing changes: what is not a mean then is zero, and so is what would be seen of the fresh units.

    Attributes:
        derived: what the rewrite does, with θ added to what it stores.
        places: where the fresh units stand in each stored tensor that θ is for.
        theta: what θ is measured by: tensors of its shape, as large as the weights of the other units.
    """

    derived: DerivedPerturbation
    places: Mapping[int, FreshPlaces]
    theta: Theta

    @property
    def members(self) -> int:
        """One: the fresh units are scored together."""
        return 1

    @property
    def edges(self) -> Mapping[Edge, Members]:
        """The edges it changes."""
        return self.derived.edges

    @property
    def needs(self) -> frozenset[Value]:
        """The values of the unchanged program that are read."""
        return self.derived.needs

    def initial_theta(self, values: Values, seed: int) -> Theta:
        """Return what they are born with, a little off where that is the same for all of them."""
        generator = torch.Generator().manual_seed(seed)
        found: dict[Key, torch.Tensor] = {}
        for id_, like in by_node(self.theta).items():
            found[id_] = self.places[id_].born + noise_like(like, generator) * like.square().mean().sqrt() * 0.1
        return found

    def delta(self, values: Values, theta: Theta) -> Mapping[Edge, torch.Tensor]:
        """Return Δ on every edge."""
        changes: dict[Key, torch.Tensor] = {i: self.places[i].change(t) for i, t in by_node(theta).items()}
        return self.derived.delta(values, changes)
