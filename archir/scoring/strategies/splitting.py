"""The splitting index: how much a unit gains to second order by splitting along its best direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from archir.axes.infer import infer_widths
from archir.errors import ScoreError
from archir.ir.node import Node, Value
from archir.rewrite.miss import Miss
from archir.rewrite.replay import Replay
from archir.rewrite.subgraph import Subgraph, subgraph_of
from archir.rewrite.theta import noise_like
from archir.scoring.families import Family
from archir.scoring.processes import ALONE, Processes
from archir.scoring.strategies.context import ScoringContext, only
from archir.scoring.strategies.result import FamilyResult, StrategyResult
from archir.scoring.strategies.unit_vectors import UnitVectors, unit_vectors
from archir.scoring.tapped import Gradient, backward, tapped_program

Product = Callable[[torch.Tensor], torch.Tensor]
"""Multiplies the matrix of every unit by a vector of its own; `[units, size]` to `[units, size]`."""


@dataclass(frozen=True)
class _Observation:
    """What one batch gave.

    Attributes:
        values: values of the program.
        gradient: the gradient of every example's loss on the edges.
        examples: number of examples.
    """

    values: Mapping[Value, torch.Tensor]
    gradient: Gradient
    examples: int


@dataclass(frozen=True)
class SplittingIndex:
    """Split the units whose splitting matrix has the smallest eigenvalue, along its eigenvector.

    `S_u = mean_n Σ g ∇²_w h_u(w)`, the Hessian of the first order in the weights of one unit; the children `w ± θ` of
    halved outgoing weight change the loss by `½ θᵀ S θ`, as long as θ is small: θ is the eigenvector, of a length that
    is a small part of that of the weights. Units whose eigenvalue is not negative gain nothing by splitting and are not
    ranked. The eigenvalues are found by Lanczos steps on all units of a width at once, and exact where a unit has no
    more weights than steps are taken.

    Attributes:
        length: ‖θ‖ relative to ‖w‖; the trust region bounds it, too.
        steps: most Lanczos steps.
        batches: most batches of those that θ is found on; their activations are kept.
        sharpness: β of the softplus that stands for ReLU in S, whose own second derivative is zero almost
            everywhere.

    Source: Liu, Wu, Wang 2019 (Splitting Steepest Descent), equation 6; Lanczos and the softplus are ours.
    """

    name: str = "splitting-index"
    summary: str = "split: the smallest eigenvalue of the splitting matrix, θ its eigenvector"
    running_statistics: bool = True
    length: float = 0.01
    steps: int = 32
    batches: int = 4
    sharpness: float = 5.0

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph."""
        observed = self._observe(context)
        return StrategyResult(tuple(only("split", f) or self._judge(context, f, observed) for f in context.families))

    def _observe(self, context: ScoringContext) -> list[_Observation]:
        perturbations = [f.perturbation for f in context.families if only("split", f) is None]
        program = tapped_program(context.streamed.program, perturbations)
        found: list[_Observation] = []
        for batch in context.learn[: self.batches]:
            evaluation = program(batch.inputs)
            gradient, _ = backward(context.streamed, evaluation, batch.targets)
            found.append(_Observation(evaluation.values, gradient, batch.examples))
        return found

    def _judge(self, context: ScoringContext, family: Family, observed: Sequence[_Observation]) -> FamilyResult | Miss:
        widths = infer_widths(context.graph)
        width = widths[family.site.label]
        subgraph = subgraph_of(widths, width)
        if isinstance(subgraph, Miss):
            return subgraph
        smooth = replace(subgraph, nodes=tuple(_smoothed(n, self.sharpness) for n in subgraph.nodes))
        units = unit_vectors(widths, width, subgraph.weights)
        packed = units.pack(context.graph.tensors)
        generator = torch.Generator().manual_seed(context.options.seed)
        start = noise_like(packed, generator)
        try:
            with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
                product = splitting_product(smooth, units, observed, context.objective.processes)
                value, vector = smallest_eigenpairs(product, start, min(self.steps, units.size))
        except (RuntimeError, NotImplementedError) as error:
            raise ScoreError(
                f"the splitting matrix of width {width.name} cannot be found", why=f"{type(error).__name__}: {error}"
            ) from error
        length = min(self.length, context.options.radius) * packed.norm(dim=1, keepdim=True)
        order = torch.where(value < 0, value, torch.inf).to("cpu", torch.float64)
        return FamilyResult(order, theta={n: t for n, t in units.unpack(vector * length).items()})


def splitting_product(
    subgraph: Subgraph, units: UnitVectors, observed: Sequence[_Observation], processes: Processes = ALONE
) -> Product:
    """Return the product with the splitting matrices of all units of a subgraph.

    Args:
        subgraph: the subgraph of the width.
        units: how its weights are shared out among the units.
        observed: values and gradients of some batches.
        processes: those over whose batches it is a mean.
    """
    like = next(iter(observed)).values
    weights = [Value(n) for n in units.shapes]
    replay = Replay(subgraph, units.shapes)
    theta = {w.node: torch.zeros_like(like[w]).requires_grad_() for w in weights}
    (examples,) = processes.total(sum(o.examples for o in observed))
    with torch.enable_grad():
        total = torch.zeros((), dtype=like[weights[0]].dtype, device=like[weights[0]].device)
        for one in observed:
            (ends,) = replay(one.values, theta)
            for use, value in subgraph.ends:
                if use in one.gradient and value in ends:
                    total = total + (one.gradient[use] * ends[value]).sum() / examples
        slopes = (
            torch.autograd.grad(total, list(theta.values()), create_graph=True, materialize_grads=True)
            if total.requires_grad
            else ()
        )
    curved = [(n, s) for n, s in zip(theta, slopes, strict=False) if s.requires_grad]

    def product(vectors: torch.Tensor) -> torch.Tensor:
        if not curved:
            return torch.zeros_like(vectors)
        directions = units.unpack(vectors)
        found = torch.autograd.grad(
            [s for _, s in curved],
            list(theta.values()),
            [directions[n] for n, _ in curved],
            retain_graph=True,
            materialize_grads=True,
        )
        return processes.sum(units.pack(dict(zip(theta, found, strict=True))))[0]

    return product


def smallest_eigenpairs(product: Product, start: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest eigenvalue of symmetric matrices and its unit eigenvector, by Lanczos steps.

    Args:
        product: multiplies every matrix by a vector.
        start: `[matrices, size]`, random.
        steps: number of steps, `size` at most; with as many the result is exact.

    Returns:
        `[matrices]` and `[matrices, size]`.

    Source: Lanczos 1950, with full reorthogonalisation.
    """
    basis = [start / start.norm(dim=1, keepdim=True)]
    diagonal: list[torch.Tensor] = []
    beside: list[torch.Tensor] = []
    generator = torch.Generator().manual_seed(steps)
    for step in range(steps):
        w = product(basis[-1])
        diagonal.append((w * basis[-1]).sum(1))
        if step == steps - 1:
            break
        scale = w.norm(dim=1)
        w = _orthogonal(w, basis)
        length = w.norm(dim=1)
        # Where the space reached so far is mapped into itself, the search goes on in a direction of its own.
        ended = length <= 100 * torch.finfo(w.dtype).eps * scale
        other = _orthogonal(noise_like(w, generator), basis)
        w = torch.where(ended[:, None], other, w)
        beside.append(torch.where(ended, 0, length))
        basis.append(w / w.norm(dim=1, keepdim=True))
    matrix = torch.diag_embed(torch.stack(diagonal, 1))
    if beside:
        off = torch.diag_embed(torch.stack(beside, 1), offset=1)
        matrix = matrix + off + off.mT
    values, vectors = torch.linalg.eigh(matrix)
    found = torch.einsum("us,sud->ud", vectors[:, :, 0], torch.stack(basis))
    return values[:, 0], found / found.norm(dim=1, keepdim=True)


def _orthogonal(w: torch.Tensor, basis: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return vectors less their parts in the space of a basis; twice, against rounding."""
    for _ in range(2):
        for b in basis:
            w = w - (w * b).sum(1, keepdim=True) * b
    return w


def _smoothed(node: Node, sharpness: float) -> Node:
    """Return a call with ReLU replaced by softplus."""
    if node.op not in ("aten.relu.default", "aten.relu_.default"):
        return node
    return replace(node, op="aten.softplus.default", arguments={**node.arguments, "beta": sharpness})
