"""What is left of the effects of removals once the weights that stay have adapted to them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from archir.errors import ArchirError, ScoreError
from archir.ir.execute import compile_call
from archir.ir.node import Value
from archir.scoring.batches import BoundBatch, of_examples
from archir.scoring.objective import Objective
from archir.scoring.processes import ALONE, Processes
from archir.scoring.program import plain_call

RIDGE = 0.02
"""How little the weights move: the ridge, as a part of the sum of the eigenvalues of K. See docs/growth.md."""

FOLDS = 5
"""The parts of the units, each of which shows what weights leave that have adapted on the others."""

DIRECTIONS = 2**10
"""The number of directions that gradients of more weights are mixed into at random."""

AT_ONCE = 2**24
"""How many numbers the gradients of examples may have that are made at once."""


def left_over(
    effects: torch.Tensor, gradients: torch.Tensor, folds: torch.Tensor, processes: Processes = ALONE
) -> torch.Tensor:
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
        processes: those that share the work out among them; all are given the same rows.

    Returns:
        `[rows, candidates]`.

    Source: ours; K is the tangent kernel of Jacot, Gabriel, Hongler 2018, seen by the curvature's vectors. SENN
        (Mitchell et al. 2023) and TINY (Verbockhaven et al. 2024) project what weights can do out of what grows, per
        layer.
    """
    ridge = RIDGE * gradients.square().sum()
    if not 0 < ridge < math.inf:  # nothing depends on any weight, or the gradients are not finite
        return effects
    found = torch.zeros_like(effects)
    small, own = len(gradients) <= gradients.shape[1], gradients[processes.part(len(gradients))]
    kernel = processes.gather(own @ gradients.mT)[0] if small else processes.sum(own.mT @ own)[0]
    for fold in range(processes.rank, FOLDS, processes.size):
        inside, others = folds == fold, folds != fold
        if small:
            system = kernel[others][:, others] + ridge * torch.eye(int(others.sum()), dtype=kernel.dtype)
            undone = kernel[inside][:, others] @ torch.linalg.solve(system, effects[others])
        else:  # the same by way of the weights, of which there are fewer than rows
            w, v = gradients[others], gradients[inside]
            system = kernel - v.mT @ v + ridge * torch.eye(len(kernel), dtype=kernel.dtype)
            undone = v @ torch.linalg.solve(system, w.mT @ effects[others])
        found[inside] = effects[inside] - undone
    return processes.sum(found)[0]


_REFUSED = (ArchirError, RuntimeError, TypeError, ValueError, IndexError, Warning)
"""What calls raise that cannot be made so."""


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
            return self._products(batch.inputs, batch.examples)(vector)[None]
        for way in (self._at_once, self._one_by_one):
            with suppress(*_REFUSED):
                return way(batch, vector)
        return self._whole(batch, vector)

    def _at_once(self, batch: BoundBatch, vector: torch.Tensor) -> torch.Tensor:
        """Return the products for all examples by `torch.vmap`, as many at once as memory allows."""
        cut, one = self._of_one(batch)
        count = max(1, min(batch.examples, AT_ONCE // self.weights))
        starts = range(0, batch.examples, count)
        some = [({v: t[i : i + count] for v, t in cut.items()}, vector[i : i + count]) for i in starts]
        with warnings.catch_warnings(action="error"):  # such as that of an operator that is slow so
            return torch.cat([vmap(one)(*part) for part in some])

    def _one_by_one(self, batch: BoundBatch, vector: torch.Tensor) -> torch.Tensor:
        """Return the products for one example after another, where a call looks at numbers or knows no batches."""
        cut, one = self._of_one(batch)
        return torch.stack([one({v: t[i] for v, t in cut.items()}, vector[i]) for i in range(batch.examples)])

    def _whole(self, batch: BoundBatch, vector: torch.Tensor) -> torch.Tensor:
        """Return the products for one example after another, all others in the batch, where none can be alone."""
        alone = torch.eye(batch.examples, dtype=vector.dtype, device=vector.device)
        products = self._products(batch.inputs, batch.examples)
        return torch.stack([products(keep[:, None] * vector) for keep in alone])

    def _of_one(self, batch: BoundBatch) -> tuple[Mapping[Value, torch.Tensor], Callable[..., torch.Tensor]]:
        """Return the inputs whose first axis runs over the examples, and what makes the products of one of them.

        Raises:
            ScoreError: there is none.
        """
        cut = of_examples(self._objective.program, batch)
        if not cut:
            raise ScoreError("the batch cannot be taken apart")
        shared = {v: t for v, t in batch.inputs.items() if v not in cut}

        def one(inputs: Mapping[Value, Any], row: torch.Tensor) -> torch.Tensor:
            return self._products(shared | {v: t[None] for v, t in inputs.items()}, 1)(row[None])

        return {v: batch.inputs[v] for v in cut}, one

    def _products(self, inputs: Mapping[Value, Any], examples: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return what multiplies a vector with the derivatives of the outputs in all weights, and mixes these."""
        with sdpa_kernel(SDPBackend.MATH):
            pull = vjp(lambda weights: self._outputs(weights, inputs, examples), self._weights)[1]

        def products(vector: torch.Tensor) -> torch.Tensor:
            (found,) = pull(vector)
            flat = torch.cat([found[v].reshape(-1) for v in self._weights])
            flat = flat if flat.dtype == torch.float64 else flat.float()
            return flat.new_zeros(self._directions).index_add(0, self._place, flat * self._sign)

        return products

    def _outputs(self, weights: Mapping[Value, torch.Tensor], inputs: Mapping[Value, Any], examples: int) -> Any:
        live: dict[Value, Any] = {**self._stored, **weights, **inputs}
        for node, call in self._calls:
            live.update(zip(node.made, call(live.__getitem__), strict=False))
        return self._objective.flatten([live[v] for v in self._graph.output.values], examples)
