"""Forward mode, node by node: tangents started on edges are pushed through what lies downstream."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from archir.axes.rules.norm import uses_batch_statistics
from archir.errors import ScoreError
from archir.ir.execute import ATTENTION
from archir.ir.node import Node, Use, Value
from archir.rewrite.perturbation import Edge
from archir.score.tail import Operator, Tail
from archir.score.tangent_rules import (
    IDENTITIES,
    MULTILINEAR,
    RECURRENT,
    is_linear,
    is_pointwise,
    linear_arguments,
    short_name,
)

Values = Mapping[Value, Any]


@dataclass(frozen=True)
class _Tangent:
    """A tangent still to be multiplied by the derivatives of a chain of diagonal operators."""

    tensor: torch.Tensor
    chain: tuple[int, ...] = ()


class Linearisation:
    """The derivative of a program at its values on one batch, applied to one tangent after another.

    Linear operators are called again on the tangent, without bias. Pointwise operators and batch normalisation by
    running statistics are multiplications by a derivative found once a batch; chains of them are one multiplication.
    Everything else is one `torch.func.jvp` of that call; where an operator has no forward mode, its product is found by
    two reverse passes.

    Attributes:
        methods: for operators that are neither linear nor diagonal, how they were differentiated: `jvp`,
            `jvp (math attention)` or `two reverse passes`.

    Source: the double-reverse trick is Townsend's (2017).
    """

    def __init__(self, tail: Tail, values: Values) -> None:
        """Take the values of one batch.

        Args:
            tail: the calls downstream.
            values: at least `tail.needs`.
        """
        self._tail, self._values = tail, values
        self._diagonals: dict[tuple[int, ...], torch.Tensor] = {}
        self._cache: dict[int, Any] = {}
        self.methods: dict[str, str] = {}

    @torch.no_grad()
    def __call__(self, start: Mapping[Edge, torch.Tensor]) -> list[torch.Tensor | None]:
        """Return the tangent of every output for tangents injected on edges; None where an output does not move.

        Args:
            start: tangents in the shapes of the values on the edges, all of them edges of the tail.
        """
        found = {e: _Tangent(t) for e, t in start.items() if isinstance(e, Value)}
        for operator, dropped in zip(self._tail.operators, self._tail.dropped, strict=True):
            tangents = [
                self._operand(v, u, found, start) for u, v in zip(operator.uses, operator.operands, strict=True)
            ]
            if all(t is None for t in tangents):
                continue
            for value in dropped:
                found.pop(value, None)
            for i, tangent in enumerate(self._step(operator, tangents)):
                if tangent is None:
                    continue
                value = Value(operator.node.id, i)
                if value in found:
                    tangent = _Tangent(self._dense(found[value]) + self._dense(tangent))
                found[value] = tangent
        results: list[torch.Tensor | None] = []
        for use, value in zip(self._tail.output_uses, self._tail.results, strict=True):
            tangent = self._operand(value, use, found, start)
            results.append(None if tangent is None else self._dense(tangent))
        return results

    def _operand(
        self, value: Value, use: Use, found: dict[Value, _Tangent], start: Mapping[Edge, torch.Tensor]
    ) -> _Tangent | None:
        tangent, injected = found.get(value), start.get(use)
        if injected is None:
            if tangent is not None and tangent.chain and value in self._tail.shared:
                tangent = found[value] = _Tangent(self._dense(tangent))
            return tangent
        return _Tangent(injected if tangent is None else injected + self._dense(tangent))

    def _dense(self, tangent: _Tangent) -> torch.Tensor:
        return tangent.tensor * self._diagonal(tangent.chain) if tangent.chain else tangent.tensor

    def _diagonal(self, chain: tuple[int, ...]) -> torch.Tensor:
        if chain not in self._diagonals:
            self._diagonals[chain] = self._diagonal(chain[:-1]) * self._diagonals[chain[-1:]]
        return self._diagonals[chain]

    def _step(self, operator: Operator, tangents: Sequence[_Tangent | None]) -> list[_Tangent | None]:
        node = operator.node
        name = short_name(node)
        moving = [i for i, t in enumerate(tangents) if t is not None]
        arguments = {operator.uses[i].argument for i in moving}
        first = tangents[moving[0]]
        if name in IDENTITIES:
            return [first]
        if len(moving) == 1 and self._is_diagonal(operator, name, moving[0]):
            assert first is not None
            return [_Tangent(first.tensor, (*first.chain, node.id))]
        dense = [None if t is None else self._dense(t) for t in tangents]
        if is_linear(node) and arguments <= linear_arguments(node):
            results = self._linear(operator, name, dense)
        elif arguments <= MULTILINEAR.get(name, frozenset()):
            results = self._multilinear(operator, dense, moving)
        elif name == "max_pool2d":
            results = (self._max_pool(operator, dense[moving[0]]),)
        else:
            results = self._general(operator, dense, moving)
        moved = [isinstance(r, torch.Tensor) and r.is_floating_point() for r in results]
        return [_Tangent(r) if m else None for r, m in zip(results, moved, strict=True)]

    def _is_diagonal(self, operator: Operator, name: str, operand: int) -> bool:
        """Say whether a call multiplies its one moving operand elementwise; its derivative is then at hand."""
        node, use = operator.node, operator.uses[operand]
        batch_norm = name == "batch_norm" and use.argument == "input" and not uses_batch_statistics(node)
        result = self._values.get(Value(node.id))
        source = self._values[operator.operands[operand]]
        pointwise = (
            is_pointwise(node)
            and isinstance(result, torch.Tensor)
            and result.is_floating_point()
            and result.shape == source.shape
        )
        if not batch_norm and not pointwise:
            return False
        key = (node.id,)
        if self._cache.get(node.id, operand) != operand:
            return False
        if key not in self._diagonals:
            self._cache[node.id] = operand
            operands = [self._values[v] for v in operator.operands]
            self._diagonals[key] = (
                _batch_norm_scale(node, operator, operands) if batch_norm else self._derivative(operator, operand)
            )
        return True

    def _derivative(self, operator: Operator, operand: int) -> torch.Tensor:
        """Return the elementwise derivative of a pointwise call: its tangent for a tangent of ones."""
        operands = [self._values[v] for v in operator.operands]
        if short_name(operator.node) == "relu":
            x: torch.Tensor = operands[0]
            return (x > 0).to(x.dtype)
        if short_name(operator.node) == "mul":
            like: torch.Tensor = operands[operand]
            other: Any = operands[1 - operand] if len(operands) == 2 else operator.node.argument("other")
            return torch.as_tensor(other, dtype=like.dtype, device=like.device)
        (found,) = self._jvp(operator, operands, [operand], [torch.ones_like(operands[operand])])
        assert found is not None
        return found

    def _linear(self, operator: Operator, name: str, tangents: Sequence[torch.Tensor | None]) -> tuple[Any, ...]:
        node = operator.node
        operands = [self._values[v] for v in operator.operands]
        linear = linear_arguments(node)
        if name in ("add", "sub"):
            return (self._sum(operator, name, tangents),)
        filled = [
            t if t is not None else self._zeros(v) if u.argument in linear else o
            for t, u, v, o in zip(tangents, operator.uses, operator.operands, operands, strict=True)
        ]
        return operator(filled)

    def _sum(self, operator: Operator, name: str, tangents: Sequence[torch.Tensor | None]) -> torch.Tensor:
        node = operator.node
        by_name = {u.argument: t for u, t in zip(operator.uses, tangents, strict=True) if t is not None}
        alpha: Any = node.argument("alpha") if "alpha" in node.arguments else 1
        factor = -alpha if name == "sub" else alpha
        left, right = by_name.get("self"), by_name.get("other")
        shape = self._values[Value(node.id)].shape
        if left is None or right is None:
            only = left if right is None else right * factor if factor != 1 else right
            assert only is not None
            return only if only.shape == shape else only.expand(shape)
        return torch.add(left, right, alpha=factor)

    def _multilinear(
        self, operator: Operator, tangents: Sequence[torch.Tensor | None], moving: Sequence[int]
    ) -> tuple[Any, ...]:
        operands = [self._values[v] for v in operator.operands]
        total: torch.Tensor | None = None
        for i in moving:
            (part,) = operator([tangents[i] if j == i else o for j, o in enumerate(operands)], bias=False)
            total = part if total is None else total + part
        return (total,)

    def _max_pool(self, operator: Operator, tangent: torch.Tensor | None) -> torch.Tensor:
        assert tangent is not None
        node = operator.node
        if node.id not in self._cache:
            names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
            given: list[Any] = [node.argument(n) for n in names]
            _, found = torch.ops.aten.max_pool2d_with_indices(self._values[operator.operands[0]], *given)
            self._cache[node.id] = found
        index: torch.Tensor = self._cache[node.id]
        return tangent.flatten(-2).gather(-1, index.flatten(-2)).reshape(index.shape)

    def _general(
        self, operator: Operator, tangents: Sequence[torch.Tensor | None], moving: Sequence[int]
    ) -> tuple[Any, ...]:
        operands = [self._values[v] for v in operator.operands]
        pushed = [t for i in moving if (t := tangents[i]) is not None]
        return self._jvp(operator, operands, moving, pushed)

    def _jvp(
        self, operator: Operator, operands: Sequence[Any], moving: Sequence[int], tangents: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the tangents of all results of one call; None for those that are not real tensors."""
        real: list[bool] = []

        def function(*moved: torch.Tensor) -> tuple[torch.Tensor, ...]:
            given = list(operands)
            for i, tensor in zip(moving, moved, strict=True):
                given[i] = tensor
            results = operator(given)
            real[:] = [isinstance(r, torch.Tensor) and r.is_floating_point() for r in results]
            return tuple(r for r, keep in zip(results, real, strict=True) if keep)

        primals = tuple(operands[i] for i in moving)
        node, name = operator.node, short_name(operator.node)
        method = "jvp (math attention)" if node.op == ATTENTION else "jvp"
        with _forward_mode(node.op == ATTENTION, name in RECURRENT):
            try:
                pushed: tuple[torch.Tensor, ...] = torch.func.jvp(function, primals, tuple(tangents))[1]
            except (NotImplementedError, RuntimeError):
                pushed = _two_reverse_passes(function, primals, tuple(tangents), operator)
                method = "two reverse passes"
        self.methods[node.op] = method
        rest = iter(pushed)
        return tuple(next(rest) if keep else None for keep in real)

    def _zeros(self, value: Value) -> torch.Tensor:
        return torch.zeros_like(self._values[value])


@contextmanager
def _forward_mode(attention: bool, recurrent: bool) -> Iterator[None]:
    """Choose kernels that have a forward mode, and quieten what PyTorch has to say about its own internals."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN", category=UserWarning)
        if attention:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if recurrent:
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        yield


def _batch_norm_scale(node: Node, operator: Operator, operands: Sequence[Any]) -> torch.Tensor:
    """Return the factor of every channel, `γ / √(variance + ε)`, broadcastable to the input."""
    by_name = {u.argument: o for u, o in zip(operator.uses, operands, strict=True)}
    epsilon: Any = node.argument("eps")
    scale = torch.rsqrt(by_name["running_var"] + epsilon)
    if "weight" in by_name:
        scale = scale * by_name["weight"]
    found: torch.Tensor = scale.reshape([1, -1] + [1] * (by_name["input"].dim() - 2))
    return found


def _two_reverse_passes(
    function: Callable[..., tuple[torch.Tensor, ...]],
    primals: tuple[torch.Tensor, ...],
    tangents: tuple[torch.Tensor, ...],
    operator: Operator,
) -> tuple[torch.Tensor, ...]:
    """Return `J v` as the derivative of `Jᵀ w` in w, which does not depend on w."""
    node = operator.node
    with torch.enable_grad():
        inputs = [p.detach().requires_grad_() for p in primals]
        results = function(*inputs)
        weights = [torch.zeros_like(r, requires_grad=True) for r in results]
        moved = [i for i, r in enumerate(results) if r.requires_grad]
        try:
            pulled = torch.autograd.grad(
                [results[i] for i in moved],
                inputs,
                [weights[i] for i in moved],
                create_graph=True,
                materialize_grads=True,
            )
            pushed = torch.autograd.grad(pulled, weights, tangents, materialize_grads=True)
        except RuntimeError as error:
            raise ScoreError(
                f"{node.op} can be differentiated neither in forward nor twice in reverse mode",
                where=f"node {node.id} {node.location or ''}".strip(),
                why=str(error),
                mend="use screening alone (refine=0), or replace the operator",
            ) from error
    return tuple(pushed)
