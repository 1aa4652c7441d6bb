"""What a family of candidate rewrites does to the activations: `Δ(θ)`, exact, for all its members at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from archir.axes.terms import Atom, Term
from archir.ir.node import Use, Value
from archir.rewrite.theta import Theta

Edge = Use | Value
"""Where a perturbation is injected: one use of a value, or a value itself (all its uses)."""


@dataclass(frozen=True)
class Members:
    """Which member of a family each position of a perturbation belongs to.

    Attributes:
        axis: the axis of the perturbed tensor along which the members lie.
        index: the member of each position along it, -1 for none; `[size of the axis]`. Empty where its size is known
            at run time only: positions then belong to the units of `unit`, or all to the one member there is.
        example_axis: the axis along which the examples of a batch lie; None where no axis tells them apart: what is
            there is the same for all of them, or stands for all of them together.
        example_term: the axis term of that axis, if there is one; the batch itself is `batch_atom` in it.
        batch_atom: the term of the batch.
        terms: the terms of all axes.
        run_time: the atoms in them whose sizes are known at run time only, the batch among them.
        unit: the width whose units are the members.
    """

    axis: int
    index: torch.Tensor
    example_axis: int | None
    example_term: Term | None = None
    batch_atom: Term | None = None
    terms: tuple[Term, ...] = ()
    run_time: frozenset[Atom] = frozenset()
    unit: Atom | None = None


class Perturbation(Protocol):
    """The change of activations a family of candidates makes, as a function of its parameters θ.

    The inputs of the changed subgraph are held at their present values, so that `Δ` is exact in θ; only what lies
    downstream of the edges is left to be linearised.

    Source: Lawton, Galstyan, Ver Steeg 2024 for single channels; edges, subgraphs and families are ours.
    """

    @property
    def members(self) -> int:
        """Number of candidates in the family."""
        ...

    @property
    def edges(self) -> Mapping[Edge, Members]:
        """The edges it changes, and how their positions are shared out among the members."""
        ...

    @property
    def needs(self) -> frozenset[Value]:
        """The values of the unchanged program that `delta` reads, stored tensors included."""
        ...

    @property
    def theta(self) -> Theta:
        """The learnable tensors, empty if there is nothing to learn: for each a tensor it is measured by.

        That is a tensor of its shape, relative to whose numbers steps are taken and the trust region is bounded.
        """
        ...

    def initial_theta(self, values: Mapping[Value, torch.Tensor], seed: int) -> Theta:
        """Return θ to start learning from: small and random, never zero."""
        ...

    def delta(self, values: Mapping[Value, torch.Tensor], theta: Theta) -> Mapping[Edge, torch.Tensor]:
        """Return `Δ` on every edge, all members at once, in the shape of the value on the edge.

        Args:
            values: values of the unchanged program on a batch, at least those in `needs`.
            theta: the parameters of the family.
        """
        ...
