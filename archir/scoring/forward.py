"""Forward mode, node by node: tangents started on edges are pushed through what lies downstream, several at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from archir.errors import ScoreError
from archir.ir import ops
from archir.ir.device_memory import is_out_of_memory
from archir.ir.node import Use, Value
from archir.ir.operators.attention import ATTENTION
from archir.ir.operators.operator import SUMMANDS, Kind
from archir.ir.registry import operator_of
from archir.ir.types import is_float
from archir.rewrite.perturbation import Edge
from archir.scoring.downstream import Downstream, Operator, compile_operator

Values = Mapping[Value, Any]
Rule = Callable[..., tuple[torch.Tensor, ...]]
"""Gives the tangents of the results of a call, for one tangent of each of its moving operands."""


@dataclass(frozen=True)
class Tangents:
    """The tangents of candidates that have successive numbers; those of all others are zero.

    Attributes:
        tensor: `[candidates, *shape of the value]`.
        first: the number of the first candidate.
        chain: the calls of diagonal operators by whose derivatives it is still to be multiplied.
    """

    tensor: torch.Tensor
    first: int = 0
    chain: tuple[int, ...] = ()

    def over(self, numbers: range) -> torch.Tensor:
        """Return the tangents of the candidates of these numbers, all its own among them."""
        if len(numbers) == len(self.tensor):
            return self.tensor
        found = self.tensor.new_zeros(len(numbers), *self.tensor.shape[1:])
        found[self.first - numbers.start :][: len(self.tensor)] = self.tensor
        return found

    def __add__(self, other: Tangents) -> Tangents:
        """Return the sum; neither may have a chain."""
        numbers = _numbers([self, other])
        return Tangents(self.over(numbers) + other.over(numbers), numbers.start)


def _numbers(tangents: Iterable[Tangents]) -> range:
    """Return the numbers of the candidates that may have a tangent other than zero, and those between them."""
    spans = [(t.first, t.first + len(t.tensor)) for t in tangents]
    return range(min(start for start, _ in spans), max(stop for _, stop in spans))


class Linearisation:
    """The derivative of a program at its values on one batch, applied to the tangents of any number of candidates.

    Linear operators are called again on the tangent, without bias. Pointwise operators and batch normalisation by
    running statistics are multiplications by a derivative found once a batch; chains of them are one multiplication.
    Everything else is one `torch.func.jvp` of that call; where an operator has no forward mode, its product is found by
    two reverse passes. Several tangents go through each call at once (`torch.vmap`), those alone that have reached it;
    where a call does not allow that, one after another.

    Source: the double-reverse trick is Townsend's (2017).
    """

    def __init__(self, downstream: Downstream, values: Values) -> None:
        """Take the values of one batch.

        Args:
            downstream: the calls downstream.
            values: at least `downstream.needs`.
        """
        self._downstream, self._values = downstream, values
        self._diagonals: dict[tuple[int, ...], torch.Tensor] = {}
        self._cache: dict[int, Any] = {}
        self._differentiated: dict[str, str] = {}
        self._one_by_one: set[str] = set()

    @property
    def methods(self) -> dict[str, str]:
        """How operators were differentiated that are neither linear nor diagonal, or that took tangents one by one.

        That is `jvp`, `jvp (math attention)`, `two reverse passes` or `called again`, and then `, one by one` where
        several tangents came together and could not go through the call together.
        """
        alone = {op: self._differentiated.get(op, "called again") + ", one by one" for op in self._one_by_one}
        return self._differentiated | alone

    @torch.no_grad()
    def __call__(self, start: Mapping[Edge, Tangents]) -> list[torch.Tensor | None]:
        """Return the tangents of every output for tangents injected on edges; None where an output does not move.

        Args:
            start: tangents in the shapes of the values on the edges, edges of `downstream`, without chains.

        Returns:
            `[candidates, *shape of the output]` each; the numbers of the candidates run from zero to the last that
            starts anywhere.
        """
        candidates = range(_numbers(start.values()).stop)
        found = {e: t for e, t in start.items() if isinstance(e, Value)}
        for operator, dropped in zip(self._downstream.operators, self._downstream.dropped, strict=True):
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
                found[value] = self._dense(found[value]) + self._dense(tangent) if value in found else tangent
        results: list[torch.Tensor | None] = []
        for use, value in zip(self._downstream.output_uses, self._downstream.results, strict=True):
            tangent = self._operand(value, use, found, start)
            results.append(None if tangent is None else self._dense(tangent).over(candidates))
        return results

    def _operand(
        self, value: Value, use: Use, found: dict[Value, Tangents], start: Mapping[Edge, Tangents]
    ) -> Tangents | None:
        tangent, injected = found.get(value), start.get(use)
        if injected is None:
            if tangent is not None and tangent.chain and value in self._downstream.shared:
                tangent = found[value] = self._dense(tangent)
            return tangent
        return injected if tangent is None else injected + self._dense(tangent)

    def _dense(self, tangent: Tangents) -> Tangents:
        if not tangent.chain:
            return tangent
        return Tangents(tangent.tensor * self._diagonal(tangent.chain), tangent.first)

    def _diagonal(self, chain: tuple[int, ...]) -> torch.Tensor:
        if chain not in self._diagonals:
            self._diagonals[chain] = self._diagonal(chain[:-1]) * self._diagonals[chain[-1:]]
        return self._diagonals[chain]

    def _step(self, operator: Operator, tangents: Sequence[Tangents | None]) -> list[Tangents | None]:
        node, known = operator.node, operator_of(operator.node.op)
        given = {i: t for i, t in enumerate(tangents) if t is not None}
        moving = tuple(given)
        arguments = {operator.uses[i].argument for i in moving}
        first = given[moving[0]]
        if known.kind is Kind.DROPOUT:
            return [first]
        if not any(map(is_float, node.results)):
            return [None] * len(node.results)
        if len(moving) == 1 and self._is_diagonal(operator, moving[0]):
            return [replace(first, chain=(*first.chain, node.id))]
        numbers = _numbers(given.values())
        dense = [self._dense(t).over(numbers) for t in given.values()]
        results: Sequence[torch.Tensor | None]
        if arguments <= known.linear_in(node.arguments):
            results = self._each(operator, partial(self._linear, operator, moving), dense)
        elif arguments <= known.multilinear:
            results = self._each(operator, partial(self._multilinear, operator, moving), dense)
        elif known.places is not None:
            results = (self._pick(operator, known.places, dense[0]),)
        else:
            results = self._jvp(operator, [self._values[v] for v in operator.operands], moving, dense)
        return [None if r is None or not r.is_floating_point() else Tangents(r, numbers.start) for r in results]

    def _each(self, operator: Operator, function: Rule, tangents: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return what a function of one tangent of each moving operand gives, for all; the first axis is theirs."""
        op = operator.node.op
        if len(tangents[0]) > 1 and op not in self._one_by_one:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="There is a performance drop")
                try:
                    found: tuple[torch.Tensor, ...] = torch.vmap(function)(*tangents)
                    return found
                except (RuntimeError, UserWarning) as error:  # it has no batching rule
                    if is_out_of_memory(error):
                        raise
                    self._one_by_one.add(op)
        return _stacked([function(*one) for one in zip(*tangents, strict=True)])

    def _is_diagonal(self, operator: Operator, operand: int) -> bool:
        """Say whether a call multiplies its one moving operand elementwise; its derivative is then at hand."""
        node, known = operator.node, operator_of(operator.node.op)
        result, source = self._values.get(Value(node.id)), self._values[operator.operands[operand]]
        real = isinstance(result, torch.Tensor) and result.is_floating_point() and result.shape == source.shape
        if not real or not (known.pointwise or known.derivative) or known.linear_in(node.arguments):
            return False
        if self._cache.get(node.id, operand) != operand:
            return False
        if (node.id,) not in self._diagonals:
            found = self._derivative(operator, operand)
            if found is None:
                return False
            self._cache[node.id] = operand
            self._diagonals[node.id,] = found
        return True

    def _derivative(self, operator: Operator, operand: int) -> torch.Tensor | None:
        """Return the elementwise derivative of a call in one operand, None if it has none."""
        node, rule = operator.node, operator_of(operator.node.op).derivative
        operands = [self._values[v] for v in operator.operands]
        if rule is not None:
            given = {u.argument: o for u, o in zip(operator.uses, operands, strict=True)}
            arguments = {n: given[n] if n in given else node.argument(n) for n in ops.schema(node.op).names}
            return rule(arguments, operator.uses[operand].argument)
        (found,) = self._jvp(operator, operands, [operand], [torch.ones_like(operands[operand])[None]])
        assert found is not None
        return found[0]

    def _linear(self, operator: Operator, moving: Sequence[int], *tangents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        node, given = operator.node, dict(zip(moving, tangents, strict=True))
        linear = operator_of(node.op).linear
        if linear == SUMMANDS:
            return (self._sum(operator, given),)
        return operator(
            [
                given[i]
                if i in given
                else torch.zeros_like(self._values[v])
                if u.argument in linear
                else self._values[v]
                for i, (u, v) in enumerate(zip(operator.uses, operator.operands, strict=True))
            ]
        )

    def _sum(self, operator: Operator, tangents: Mapping[int, torch.Tensor]) -> torch.Tensor:
        node = operator.node
        by_name = {operator.uses[i].argument: t for i, t in tangents.items()}
        alpha: Any = node.argument("alpha") if "alpha" in node.arguments else 1
        factor = -alpha if node.op.startswith("aten.sub") else alpha
        left, right = by_name.get("self"), by_name.get("other")
        shape = self._values[Value(node.id)].shape
        if left is None or right is None:
            only = left if right is None else right * factor if factor != 1 else right
            assert only is not None
            return only if only.shape == shape else only.expand(shape)
        return torch.add(left, right, alpha=factor)

    def _multilinear(self, operator: Operator, moving: Sequence[int], *tangents: torch.Tensor) -> tuple[torch.Tensor]:
        operands = [self._values[v] for v in operator.operands]
        parts = [
            operator([tangent if j == i else o for j, o in enumerate(operands)], bias=False)[0]
            for i, tangent in zip(moving, tangents, strict=True)
        ]
        return (sum(parts[1:], parts[0]),)

    def _pick(self, operator: Operator, places: tuple[str, int], tangents: torch.Tensor) -> torch.Tensor:
        """Return the elements of the tangent at the places where the results come from."""
        node, (name, axes) = operator.node, places
        if node.id not in self._cache:
            _, found = compile_operator(replace(node, op=f"aten.{name}.default"))([self._values[operator.operands[0]]])
            self._cache[node.id] = found
        index: torch.Tensor = self._cache[node.id]
        flat = index.flatten(-axes)
        pooled = tangents.flatten(-axes).gather(-1, flat.expand(len(tangents), *flat.shape))
        return pooled.reshape(len(tangents), *index.shape)

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

        def push(*one: torch.Tensor) -> tuple[torch.Tensor, ...]:
            pushed: tuple[torch.Tensor, ...] = torch.func.jvp(function, primals, one)[1]
            return pushed

        node = operator.node
        method = "jvp (math attention)" if node.op == ATTENTION else "jvp"
        with _forward_mode(node.op == ATTENTION, operator_of(node.op).kind is Kind.RECURRENT):
            try:
                pushed = self._each(operator, push, tangents)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                pushed = _two_reverse_passes(function, primals, tangents, operator)
                method = "two reverse passes"
        self._differentiated[node.op] = method
        rest = iter(pushed)
        return tuple(next(rest) if keep else None for keep in real)


def _stacked(results: Sequence[Sequence[torch.Tensor]]) -> tuple[torch.Tensor, ...]:
    """Return the results of several tangents along a new first axis; one alone is not copied."""
    return tuple(each[0][None] if len(each) == 1 else torch.stack(each) for each in zip(*results, strict=True))


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


def _two_reverse_passes(
    function: Callable[..., tuple[torch.Tensor, ...]],
    primals: tuple[torch.Tensor, ...],
    tangents: Sequence[torch.Tensor],
    operator: Operator,
) -> tuple[torch.Tensor, ...]:
    """Return `J v` for every tangent v, one by one, as the derivative of `Jᵀ w` in w, which does not depend on w."""
    node, last = operator.node, len(tangents[0]) - 1
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
            pushed = [
                torch.autograd.grad(pulled, weights, one, retain_graph=i < last, materialize_grads=True)
                for i, one in enumerate(zip(*tangents, strict=True))
            ]
        except RuntimeError as error:
            raise ScoreError(
                f"{node.op} can be differentiated neither in forward nor twice in reverse mode",
                where=node.place,
                why=str(error),
                hint="use screening alone (refine=0), or replace the operator",
            ) from error
    return _stacked(pushed)
