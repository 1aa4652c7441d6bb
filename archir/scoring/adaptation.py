"""What is left of the effects of removals once the weights that stay have adapted to them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from archir.ir.execute import compile_call
from archir.ir.node import Value
from archir.scoring.batches import BoundBatch, of_examples
from archir.scoring.objective import Objective
from archir.scoring.program import plain_call

RIDGE = 0.02
"""How little the weights move: the ridge, as a part of the sum of the eigenvalues of K. See docs/growth.md."""

FOLDS = 5
"""The parts of the units, each of which shows what weights leave that have adapted on the others."""

DIRECTIONS = 2**12
"""The number of directions that gradients of more weights are mixed into at random."""

AT_ONCE = 2**24
"""How many numbers the gradients of examples may have that are made at once."""


def left_over(effects: torch.Tensor, gradients: torch.Tensor, folds: torch.Tensor) -> torch.Tensor:
    """Return what is left of the effects of candidates on units once the weights have adapted on other units.

    With `C` the effects, `W` the gradients, `K = W Wᵀ` and `λ = RIDGE tr K`, weights that move by the δ with the least
    `‖C_A + W_A δ‖² + λ ‖δ‖²` on the units A of all other folds leave on the units B of a fold

        C_B − K_BA (K_AA + λ)⁻¹ C_A

    Judged on A itself many weights would leave next to nothing of anything. K is that of the network as it is: the
    weights of what is removed adapt with the others, which is right as long as each unit is a small part of it.

    Args:
        effects: products of the curvature's vectors with what each candidate does; `[rows, candidates]`.
        gradients: products of the same vectors with what each weight does; `[rows, weights]`.
        folds: the fold that the unit of each row is in; `[rows]`.

    Returns:
        `[rows, candidates]`.

    Source: ours; K is the tangent kernel of Jacot, Gabriel, Hongler 2018, seen by the curvature's vectors. SENN
        (Mitchell et al. 2023) and TINY (Verbockhaven et al. 2024) project what weights can do out of what grows, per
        layer.
    """
    kernel = gradients @ gradients.mT
    ridge = RIDGE * kernel.diagonal().sum()
    if not ridge > 0:  # nothing depends on any weight
        return effects
    found = torch.empty_like(effects)
    for fold in range(FOLDS):
        inside, others = folds == fold, folds != fold
        system = kernel[others][:, others] + ridge * torch.eye(int(others.sum()), dtype=kernel.dtype)
        found[inside] = effects[inside] - kernel[inside][:, others] @ torch.linalg.solve(system, effects[others])
    return found


class WeightGradients:
    """Makes, for each unit of a batch, products of a vector at its outputs with the derivatives in all weights.

    Of more than `DIRECTIONS` weights each is added, with a random sign, to one of so many directions at random: inner
    products stay what they are in the mean, with a standard deviation of `‖v‖ ‖w‖ / √DIRECTIONS`.

    Source: Charikar, Chen, Farach-Colton 2002 for the mixing (count sketch).
    """

    def __init__(self, objective: Objective, seed: int) -> None:
        """Prepare the calls of a graph.

        Args:
            objective: gives the graph, and says what is a unit.
            seed: of the mixing, the same in all processes.
        """
        self._objective, self._graph = objective, objective.program.graph
        self._calls = [(n, compile_call(plain_call(n), device=self._graph.device)) for n in self._graph.calls]
        self._stored = {Value(i): t for i, t in self._graph.tensors.items()}
        trained = [Value(n.id) for n in self._graph.parameters if n.is_trainable]
        self._weights = {v: self._stored[v] for v in trained if self._stored[v].is_floating_point()}
        self.weights = sum(w.numel() for w in self._weights.values())
        generator = torch.Generator().manual_seed(seed)
        mixed = self.weights > DIRECTIONS
        size = (self.weights,)
        place = torch.randint(DIRECTIONS, size, generator=generator) if mixed else torch.arange(self.weights)
        sign = 2 * torch.randint(2, size, generator=generator) - 1
        self._place, self._sign = place.to(self._graph.device), sign.to(self._graph.device)
        self._directions = min(self.weights, DIRECTIONS)

    def __call__(self, batch: BoundBatch, vector: torch.Tensor) -> torch.Tensor:
        """Return the products for every unit of a batch.

        Args:
            batch: the batch.
            vector: at its flat outputs; `[examples, outputs]`.

        Returns:
            `[units, directions]`.
        """
        if self._objective.coupled:
            return self._mixed(batch.inputs, vector)[None]
        parts = of_examples(self._objective.program, batch)
        if not parts:
            alone = torch.eye(batch.examples, dtype=vector.dtype, device=vector.device)
            return torch.stack([self._mixed(batch.inputs, keep[:, None] * vector) for keep in alone])
        count = max(1, min(batch.examples, AT_ONCE // max(self.weights, 1)))
        found = [self._of_each(parts, batch, vector, slice(i, i + count)) for i in range(0, batch.examples, count)]
        return torch.cat(found)

    def _of_each(self, parts: frozenset[Value], batch: BoundBatch, vector: torch.Tensor, some: slice) -> torch.Tensor:
        """Return the products for some examples, all at once where the calls allow it."""
        cut = {v: batch.inputs[v][some] for v in parts}
        shared = {v: t for v, t in batch.inputs.items() if v not in parts}

        def one(inputs: Mapping[Value, Any], row: torch.Tensor) -> torch.Tensor:
            return self._mixed(shared | {v: t[None] for v, t in inputs.items()}, row[None])

        try:
            with warnings.catch_warnings(action="error"):  # such as that of an operator that is slow so
                found: torch.Tensor = vmap(one)(cut, vector[some])
                return found
        except (RuntimeError, Warning):  # a call that looks at numbers, or knows no batches
            rows = range(len(vector[some]))
            return torch.stack([one({v: t[i] for v, t in cut.items()}, vector[some][i]) for i in rows])

    def _mixed(self, inputs: Mapping[Value, Any], vector: torch.Tensor) -> torch.Tensor:
        """Return the products of a vector with the derivatives of the outputs in all weights, mixed."""
        with sdpa_kernel(SDPBackend.MATH):
            pull = vjp(lambda weights: self._outputs(weights, inputs, len(vector)), self._weights)[1]
            (found,) = pull(vector)
        flat = torch.cat([found[v].reshape(-1) for v in self._weights])
        return flat.new_zeros(self._directions).index_add(0, self._place, flat * self._sign)

    def _outputs(self, weights: Mapping[Value, torch.Tensor], inputs: Mapping[Value, Any], examples: int) -> Any:
        live: dict[Value, Any] = {**self._stored, **weights, **inputs}
        for node, call in self._calls:
            live.update(zip(node.made, call(live.__getitem__), strict=False))
        return self._objective.flatten([live[v] for v in self._graph.output.values], examples)
