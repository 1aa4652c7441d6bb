"""A graph made ready to be evaluated many times in evaluation mode, with taps on the edges perturbations use."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from archir.cost import cost
from archir.errors import ScoreError
from archir.ir import ops
from archir.ir.device_memory import is_out_of_memory
from archir.ir.execute import Call, compile_call, mode_argument
from archir.ir.graph import Graph
from archir.ir.node import Argument, Leaf, Node, Tree, Use, Value, build
from archir.ir.operators.normalisation import BATCH_NORM
from archir.ir.registry import operator_of
from archir.ir.types import ScalarType
from archir.rewrite.perturbation import Edge
from archir.scoring.affine import Absorbed, Affine, absorb, affine_of
from archir.scoring.batch_statistics import is_coupled, with_batch_statistics
from archir.scoring.targets import Targets, tensors_of

Inputs = torch.Tensor | Sequence[Any] | Mapping[str, Any]
"""What a model is called with: one tensor, positional arguments, or arguments by name."""


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation of a program gave.

    Attributes:
        outputs: the returned values, in order.
        values: the values that were to be kept, detached; stored tensors among them.
        taps: for each tapped edge a tensor at which `torch.autograd.grad` gives the gradient on that edge.
    """

    outputs: tuple[torch.Tensor, ...]
    values: Mapping[Value, torch.Tensor]
    taps: Mapping[Edge, torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Step:
    """One call: the operand aliases to be made before it, the call, and the values no longer needed after it."""

    node: int
    call: Call | Affine
    aliases: tuple[tuple[Use, Value, Value], ...]
    results: int
    dropped: tuple[Value, ...]


def make_tap(operand: torch.Tensor) -> torch.Tensor:
    """Return the same tensor as one of its own, at which a gradient can be taken."""
    return operand.view_as(operand) if operand.requires_grad else operand.detach().requires_grad_()


class Program:
    """The calls of a graph in order, in evaluation mode, weights frozen.

    Dropout is off and batch normalisation uses its running statistics, unless those of the batch are asked for; where
    nobody looks in between, the convolution before it does it. `detach` is seen through, because a change does pass
    it. Only what lies downstream of a tapped edge is recorded for differentiation.
    """

    def __init__(
        self,
        graph: Graph,
        edges: Collection[Edge] = (),
        *,
        keep: Collection[Value] = (),
        batch_statistics: bool = False,
        like: Program | None = None,
    ) -> None:
        """Compile a graph.

        Args:
            graph: the program.
            edges: the edges to tap.
            keep: the values to keep.
            batch_statistics: take the graph with the statistics of the batch wherever a batch normalisation is.
            like: a program of the same graph, to share the weights of convolutions with that normalise, too.

        Raises:
            ScoreError: the graph uses random numbers, or statistics of the batch that were not asked for, even in
                evaluation mode.
        """
        if batch_statistics:
            graph = with_batch_statistics(graph)
        _refuse_noise(graph, batch_statistics)
        self.graph = graph
        self.batch_statistics = batch_statistics
        self.coupled = is_coupled(graph)
        self.keep = frozenset(keep)
        self.edges = tuple(dict.fromkeys(edges))
        self.device = graph.device
        self._stored = {Value(i): t for i, t in graph.tensors.items()}
        self._tapped_values = frozenset(e for e in self.edges if isinstance(e, Value))
        self._results = graph.output.values
        self._tapped_results = {i: u for i, (u, _) in enumerate(graph.output.operands()) if u in self.edges}
        self._channels_last = self._images_on_cpu()
        self._absorbed: dict[int, Absorbed | None] = {} if like is None else like._absorbed
        self._steps = tuple(self._compile())

    def __call__(self, inputs: Mapping[Value, Any]) -> Evaluation:
        """Evaluate the program on the inputs of one batch, as `bind` gives them.

        Raises:
            ScoreError: an operator rejects its operands.
        """
        live: dict[Value, Any] = {**self._stored, **inputs}
        if self._channels_last:
            images = {v: t for v, t in inputs.items() if isinstance(t, torch.Tensor) and t.dim() == 4}
            live |= {v: t.contiguous(memory_format=torch.channels_last) for v, t in images.items()}
        taps: dict[Edge, torch.Tensor] = {}
        with torch.set_grad_enabled(bool(self.edges)):
            for value in self._tapped_values & inputs.keys():
                taps[value] = live[value] = live[value].detach().requires_grad_()
            for step in self._steps:
                for use, value, alias in step.aliases:
                    taps[use] = live[alias] = make_tap(live[value])
                try:
                    results = step.call(live.__getitem__)
                except (RuntimeError, TypeError, ValueError, IndexError) as error:
                    raise self._rejected(step.node, error) from error
                for index in range(step.results):
                    value, result = Value(step.node, index), results[index]
                    if value in self._tapped_values:
                        result = result if result.requires_grad else result.detach().requires_grad_()
                        taps[value] = result
                    live[value] = result
                for value in step.dropped:
                    del live[value]
            outputs = tuple(live[v] for v in self._results)
            for i, use in self._tapped_results.items():
                taps[use] = tap = make_tap(outputs[i])
                outputs = (*outputs[:i], tap, *outputs[i + 1 :])
        kept = {v: live[v].detach() if isinstance(live[v], torch.Tensor) else live[v] for v in self.keep}
        return Evaluation(outputs, kept, taps)

    def tapped(self, edges: Collection[Edge] = (), *, keep: Collection[Value] = ()) -> Program:
        """Return the same program with other taps, which keeps other values."""
        return Program(self.graph, edges, keep=keep, batch_statistics=self.batch_statistics, like=self)

    @cached_property
    def bytes_per_example(self) -> int:
        """The bytes of all activations of one example, views left out."""
        return cost(self.graph).bytes

    @cached_property
    def stored_bytes(self) -> int:
        """The bytes of all stored tensors."""
        return sum(t.nbytes for t in self.graph.tensors.values())

    def structure(self, outputs: Sequence[Any]) -> Any:
        """Return outputs nested as the model returns them."""
        return build(self.graph.signature.result, outputs)

    def bind(self, inputs: Inputs) -> dict[Value, Any]:
        """Return the value of every input of the graph for what a model would be called with.

        Args:
            inputs: one tensor, a tuple of positional arguments, or a mapping of arguments by name.

        Raises:
            ScoreError: they do not fit the signature, or a shape or element type differs.
        """
        graph, signature = self.graph, self.graph.signature
        found: dict[int, Any] = {}
        if isinstance(inputs, Mapping):
            given = dict(inputs)
            slots: list[tuple[str, Leaf]] = [
                (graph.inputs[leaf].name if isinstance(leaf, int) else f"arg{i}", leaf)
                for i, leaf in enumerate(signature.args.children)
            ]
            slots += zip(signature.kwargs.keys, signature.kwargs.children, strict=True)
            for name, leaf in slots:
                if name in given:
                    _unnest(leaf, given.pop(name), name, found)
            if given:
                known = ", ".join(name for name, _ in slots)
                raise ScoreError(f"the model takes no argument {min(given)!r}", hint=f"it takes {known}")
        else:
            args = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
            if len(args) > len(signature.args.children):
                raise ScoreError(f"the model takes {len(signature.args.children)} arguments, not {len(args)}")
            for i, (leaf, given_arg) in enumerate(zip(signature.args.children, args, strict=False)):
                _unnest(leaf, given_arg, f"argument {i}", found)
        missing = [n.name for i, n in enumerate(graph.inputs) if i not in found]
        if missing:
            raise ScoreError(f"the batch lacks the input {missing[0]!r}")
        return {Value(n.id): self._checked(n, found[i]) for i, n in enumerate(graph.inputs)}

    def _checked(self, node: Node, given: Any) -> Any:
        type_ = node.results[0]
        if isinstance(type_, ScalarType):
            return given
        fits = isinstance(given, torch.Tensor) and given.dim() == len(type_.shape) and given.dtype == type_.dtype
        if not fits or any(isinstance(s, int) and s != n for s, n in zip(type_.shape, given.shape, strict=True)):
            shown = f"{list(given.shape)} of {given.dtype}" if isinstance(given, torch.Tensor) else repr(given)
            raise ScoreError(f"the input {node.name!r} should be {type_}, not {shown}")
        return given.to(self.device)

    def _compile(self) -> Iterator[_Step]:
        calls, affine = self._take_over()

        def prepare(node: Node) -> Call | Affine:
            x = node.arguments.get("input")
            if node.id in affine and isinstance(x, Value):
                return replace(affine[node.id], x=x)
            return compile_call(plain_call(node), device=self.device)

        tapped = {e: Value(-1 - i) for i, e in enumerate(self.edges) if isinstance(e, Use)}
        needed = self.keep | frozenset(self._results)
        last: dict[Value, int] = {v: n.id for n in calls for v in n.values}
        for node in calls:
            aliases: list[tuple[Use, Value, Value]] = []

            def tap(use: Use, value: Value, made: list[tuple[Use, Value, Value]] = aliases) -> Value:
                if use not in tapped:
                    return value
                made.append((use, value, tapped[use]))
                return tapped[use]

            mapped = {name: _map_uses(node.id, name, a, (), tap) for name, a in node.arguments.items()}
            operands = {*node.values}
            dropped = [v for v in operands if last[v] == node.id and v not in needed and v not in self._stored]
            dropped += [alias for _, _, alias in aliases]
            dropped += [v for v in node.made if v not in last and v not in needed]
            call = prepare(replace(node, arguments=mapped))
            yield _Step(node.id, call, tuple(aliases), len(node.results), tuple(dropped))

    def _images_on_cpu(self) -> bool:
        """Say whether images are better kept with their channels last: the CPU's convolutions reorder them if not."""
        convolves = any(n.op in ("aten.conv2d.default", "aten.convolution.default") for n in self.graph.calls)
        single = any(t.dtype == torch.float32 for t in self.graph.tensors.values())
        return self.device.type == "cpu" and convolves and single

    def _take_over(self) -> tuple[list[Node], Mapping[int, Affine]]:
        """Return all calls, convolutions doing the normalisation after them, and normalisations as affine maps."""
        calls, affine = {n.id: n for n in self.graph.calls}, {}
        seen = self.keep | self._tapped_values | frozenset(self._results)
        for norm in self.graph.calls:
            found = affine_of(norm, self._stored)
            if found is None:
                continue
            affine[norm.id] = found
            (use, *others) = self.graph.uses(found.x)
            if found.x.node in calls and not others and use not in self.edges and found.x not in seen:
                if norm.id not in self._absorbed:
                    self._absorbed[norm.id] = absorb(calls[found.x.node], found, self._stored)
                layer = self._absorbed[norm.id]
                if layer is not None:
                    calls[found.x.node], tensors = layer
                    self._stored |= tensors
                    affine[norm.id] = replace(found, done=True)
        return list(calls.values()), affine

    def _rejected(self, id_: int, error: Exception) -> ScoreError:
        node = self.graph.node(id_)
        return ScoreError(
            f"{node.op} rejects its operands",
            where=node.place,
            why=f"{type(error).__name__}: {error}",
            hint="score on smaller batches" if is_out_of_memory(error) else "check the shapes of the batches",
        )


_PLAIN = {
    "aten.detach.default": "aten.alias.default",
    "aten.view.default": "aten.reshape.default",
    "aten._unsafe_view.default": "aten.reshape.default",
}


def plain_call(node: Node) -> Node:
    """Return a call as the scorer makes it: `detach` lets changes pass, and views may copy.

    Copying matters because images are kept with their channels last, whatever the strides the program was written for.
    """
    if node.op not in _PLAIN:
        return node
    names = {"size": "shape"} if node.op != "aten.detach.default" else {}
    return replace(node, op=_PLAIN[node.op], arguments={names.get(n, n): a for n, a in node.arguments.items()})


def _map_uses(node: int, name: str, argument: Argument, position: tuple[int, ...], to: Any) -> Argument:
    if isinstance(argument, Value):
        found: Value = to(Use(node, name, position), argument)
        return found
    if isinstance(argument, tuple):
        return tuple(_map_uses(node, name, part, (*position, i), to) for i, part in enumerate(argument))
    return argument


def _refuse_noise(graph: Graph, batch_statistics: bool) -> None:
    """Raise an error if an evaluation would depend on chance or, unless asked for, on which examples share a batch."""
    noisy = [n for n in graph.calls if _is_noisy(n) and not (batch_statistics and n.op == BATCH_NORM)]
    if noisy:
        raise ScoreError(
            f"the model cannot be scored: {', '.join(sorted({n.op for n in noisy}))} is active in evaluation mode",
            where="; ".join(n.place for n in noisy[:5]),
            why="scores would be noise",
            hint="capture the model in evaluation mode, with running statistics; or score with batch_statistics=True",
        )


def _is_noisy(node: Node) -> bool:
    target = ops.function(node.op)
    random = isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags
    flag = operator_of(node.op).mode
    if not flag:
        return random
    if node.op == "aten.instance_norm.default" or mode_argument(node) is not None:
        return False
    if flag == "dropout_p" or node.argument(flag) is not True:
        return False
    rates = {"dropout", "p"} & set(ops.schema(node.op).names)
    return not rates or any(node.argument(name) != 0 for name in rates)


def _unnest(leaf: Leaf, given: Any, name: str, found: dict[int, Any]) -> None:
    if isinstance(leaf, int):
        found[leaf] = given
    elif isinstance(leaf, Tree):
        keys: Collection[Any] = leaf.keys if leaf.kind == "dict" else range(len(leaf.children))
        try:
            parts = [given[key] for key in keys]
        except (KeyError, IndexError, TypeError) as error:
            raise ScoreError(f"{name} does not have the nesting the model was captured with") from error
        for key, child, part in zip(keys, leaf.children, parts, strict=True):
            _unnest(child, part, f"{name}[{key!r}]", found)
    elif given is not leaf.value and given != leaf.value:
        raise ScoreError(f"{name} is {given!r}, and the program was captured for {leaf.value!r}")


def number_of_examples(targets: Targets) -> int:
    """Return the number of examples of a batch, the length of its targets.

    Raises:
        ScoreError: the targets are no tensors, are empty, or differ in length.
    """
    found = list(tensors_of(targets))
    if not found or not all(isinstance(t, torch.Tensor) and t.dim() and len(t) for _, t in found):
        raise ScoreError(
            "a batch is a pair (inputs, targets) with targets a tensor of one or more examples",
            hint="several tensors may be a tuple or a mapping; the first axis of each runs over the examples",
        )
    if len({len(t) for _, t in found}) > 1:
        raise ScoreError("the targets differ in length: " + ", ".join(f"{len(t)} in {name}" for name, t in found))
    return len(found[0][1])
