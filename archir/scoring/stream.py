"""Wide outputs, such as those of a language model, scored a few positions at a time and never all held at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from archir.ir.graph import Graph
from archir.ir.node import Node, Value
from archir.rewrite.perturbation import Perturbation
from archir.scoring.batches import BoundBatch
from archir.scoring.losses import LOSSES, NO_LABEL, check_finite, class_axis, is_unknown, label_weights, unknown_classes
from archir.scoring.objective import Curvature, Objective, Pair, cross_entropy_root, random_signs
from archir.scoring.processes import WHOLE, Around
from archir.scoring.program import Program
from archir.scoring.targets import Targets

LARGEST_OUTPUTS = 2**21
"""The largest number of outputs that are held at once; where a batch has more they are made in chunks of so many."""


@dataclass(frozen=True)
class LastLayer:
    """The linear layer a model ends in: `z = W h + b`.

    Attributes:
        weight: `W`, `[classes, features]`.
        bias: `b`, `[classes]`, or None.
    """

    weight: torch.Tensor = field(repr=False)
    bias: torch.Tensor | None = field(repr=False)


@dataclass(frozen=True)
class StreamedObjective(Objective):
    """The cross-entropy on top of a program that ends at the input of its last layer.

    Its flat outputs are the features h, `[examples, positions · features]`. With p the softmax of `z = W h + b`, y the
    label and w the weight of a position, the gradient in h is `w Wᵀ (p − y)`, the Hessian `w Wᵀ (diag(p) − p pᵀ) W`,
    and its sampled root `√w Wᵀ (√p∘ε − p (√p·ε))`: each made for `LARGEST_OUTPUTS` numbers z at a time. The random
    signs ε are those that `Objective` draws for the whole outputs.

    Attributes:
        layer: the last layer.
    """

    layer: LastLayer = field(kw_only=True)

    def mean(self, flat: torch.Tensor, outputs: Sequence[Any], targets: Targets) -> torch.Tensor:
        """Return the mean loss for flat features; `[]`, in nats."""
        return self._losses(flat.reshape(outputs[0].shape), targets).mean()

    def means(self, flat: torch.Tensor, outputs: Sequence[Any], targets: Targets) -> torch.Tensor:
        """Return the mean loss for each of several flat features, one after another; `[sets]`."""
        return torch.stack([self.mean(one, outputs, targets) for one in flat])

    def check(self, outputs: Sequence[Any], targets: Targets) -> None:
        """Check the loss on a batch.

        Raises:
            ScoreError: it is not finite, or does not fit outputs and targets.
        """
        check_finite(self.loss, self._losses(outputs[0], targets))

    @torch.no_grad()
    def gradient(self, outputs: Sequence[Any], targets: Targets) -> Pair:
        """Return the flat features and the gradient of each example's loss in them; `[examples, features]` each.

        Raises:
            ScoreError: the loss does not fit outputs and targets, or is not finite.
        """
        weights = self._weights(outputs[0], targets)
        found, losses = outputs[0].new_empty(outputs[0].shape), torch.empty_like(weights)
        for rows, logits, labels in self._chunks(outputs[0], targets):
            scores = logits.log_softmax(1)
            losses[rows] = F.nll_loss(scores, labels, reduction="none", ignore_index=NO_LABEL)
            residual = scores.exp_()
            residual.scatter_add_(1, labels.clamp(min=0)[:, None], -torch.ones_like(residual[:, :1]))
            _rows(found)[rows] = residual @ self.layer.weight * weights[rows, None]
        check_finite(self.loss, (losses * weights).reshape(len(outputs[0]), -1).sum(1))
        return outputs[0].detach().flatten(1), found.flatten(1)

    @torch.no_grad()
    def hessian_product(self, outputs: Sequence[Any], targets: Targets, u: torch.Tensor) -> torch.Tensor:
        """Return `H u` for vectors in the space of the flat features; `[vectors, examples, features]`, as u is."""
        weights = self._weights(outputs[0], targets)
        found = u.new_empty(u.shape)
        for rows, logits, _ in self._chunks(outputs[0], targets):
            p = logits.softmax(1)
            for vector, product in zip(u, found, strict=True):
                moved = F.linear(vector.reshape(-1, self.layer.weight.shape[1])[rows], self.layer.weight)
                moved = (moved - (p * moved).sum(1, keepdim=True)) * p
                product.view(-1, self.layer.weight.shape[1])[rows] = moved @ self.layer.weight * weights[rows, None]
        return found

    def pairs(
        self,
        outputs: Sequence[Any],
        targets: Targets,
        curvature: Curvature,
        generator: torch.Generator,
        around: Around = WHOLE,
    ) -> Iterator[Pair]:
        """Yield vectors whose outer products, summed over all that are yielded, have the Hessian as their mean.

        Raises:
            ScoreError: the exact curvature is asked for with more than `LARGEST_DENSE` features an example.
        """
        if curvature is not Curvature.SAMPLED:
            yield from super().pairs(outputs, targets, curvature, generator, around)
            return
        with torch.no_grad():
            weights = self._weights(outputs[0], targets).sqrt()
            found, positions = outputs[0].new_empty(outputs[0].shape), outputs[0][0].numel() // outputs[0].shape[-1]
            self._skip(around.before * positions, generator)
            for rows, logits, labels in self._chunks(outputs[0], targets):
                root = cross_entropy_root(logits, labels, random_signs(logits, generator))
                _rows(found)[rows] = root @ self.layer.weight * weights[rows, None]
            self._skip(around.after * positions, generator)
        yield found.flatten(1), found.flatten(1)

    def _skip(self, positions: int, generator: torch.Generator) -> None:
        """Draw the signs of positions that other processes have."""
        size = max(1, LARGEST_OUTPUTS // len(self.layer.weight))
        for start in range(0, positions, size):
            random_signs(
                self.layer.weight[:0].new_empty(min(size, positions - start), len(self.layer.weight)), generator
            )

    @torch.no_grad()
    def _losses(self, hidden: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Return the loss of every example; `[examples]`."""
        losses = [
            F.cross_entropy(logits, labels, reduction="none", ignore_index=NO_LABEL)
            for _, logits, labels in self._chunks(hidden, targets)
        ]
        weighted = torch.cat(losses) * self._weights(hidden, targets)
        return weighted.reshape(len(hidden), -1).sum(1)

    def _chunks(self, hidden: torch.Tensor, targets: Targets) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Yield positions, all those of all examples in order, with their logits `[positions, classes]` and labels."""
        classes = len(self.layer.weight)
        assert isinstance(targets, torch.Tensor), "a loss with a name takes one tensor"
        class_axis(torch.empty((*hidden.shape[:-1], classes), device="meta"), targets)
        labels = targets.reshape(-1).long()
        if bool(is_unknown(labels, classes).any()):
            raise unknown_classes(labels, classes)
        size = max(1, LARGEST_OUTPUTS // classes)
        for start in range(0, len(labels), size):
            rows = slice(start, start + size)
            yield rows, F.linear(_rows(hidden.detach())[rows], self.layer.weight, self.layer.bias), labels[rows]

    def _weights(self, hidden: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Return what every position counts in the loss of its example; `[positions]`, all those of all examples."""
        assert isinstance(targets, torch.Tensor), "a loss with a name takes one tensor"
        return label_weights(targets).reshape(-1).to(hidden)


def streamed(objective: Objective, perturbations: Sequence[Perturbation], batches: Sequence[BoundBatch]) -> Objective:
    """Return an objective that makes wide outputs in chunks, or the same one where they are not wide or cannot be.

    They are wide if a batch has more than `LARGEST_OUTPUTS`. They can be made in chunks if the loss is the
    cross-entropy with class numbers, and the one output of the model is that of an `aten.linear` with stored weights,
    whose last axis runs over the classes. No family may change or read what lies beyond the input of that layer: its
    weights, its result, or the use of it. That input itself may be changed. One family that does change more, such as
    one that widens what the layer reads, keeps the whole network for all, because the joint model takes all together.

    Args:
        objective: the loss on top of the whole network.
        perturbations: all families that will be scored.
        batches: the batches they will be scored on.
    """
    graph = objective.program.graph
    node = _last_call(graph)
    if node is None or objective.loss is not LOSSES["cross_entropy"]:
        return objective
    result, places = Value(node.id), {u.argument: v for u, v in node.operands()}
    classes, positions = len(graph.tensors[places["weight"].node]), node.tensor_type().shape[1:-1]
    labels = [t for b in batches if isinstance(t := b.targets, torch.Tensor) and not t.is_floating_point()]
    fits = len(labels) == len(batches) and all(tuple(t.shape[1:]) == positions for t in labels)
    outputs = [t[0].numel() * classes * (b.examples + sum(b.around)) for b, t in zip(batches, labels, strict=fits)]
    # All processes have to do the same, whatever the sizes of their batches.
    (wide,) = objective.processes.total(fits and max(outputs, default=0) > LARGEST_OUTPUTS)
    if not wide:
        return objective
    beyond = {result, *graph.uses(result), *(places[a] for a in places if a != "input")}
    beyond |= {u for u, _ in node.operands() if u.argument != "input"}
    if any(beyond & p.edges.keys() or result in p.needs for p in perturbations):
        return objective
    bias = places.get("bias")
    layer = LastLayer(graph.tensors[places["weight"].node], None if bias is None else graph.tensors[bias.node])
    program = Program(end_early(graph, node), batch_statistics=objective.program.batch_statistics)
    return StreamedObjective(objective.graph, program, objective.loss, objective.processes, layer=layer)


def end_early(graph: Graph, last: Node) -> Graph:
    """Return a graph that ends at the input of its last layer.

    A call that gives back its input, dropout at rate zero, stands in the place of the layer: so the use of the input,
    at which families may make their changes, is still there under the same name.
    """
    same = replace(
        last,
        op="aten.dropout.default",
        arguments={"input": last.argument("input"), "p": 0.0, "train": False},
        results=(graph.type_of(dict((u.argument, v) for u, v in last.operands())["input"]),),
    )
    nodes = [same if n.id == last.id else n for n in graph.nodes]
    return Graph(graph.name, nodes, graph.tensors, graph.signature, graph.history)


def _last_call(graph: Graph) -> Node | None:
    """Return the call of a linear layer with stored weights whose result is all that a graph returns, if any."""
    results = graph.output.values
    if len(results) != 1 or not isinstance(graph.signature.result, int) or len(graph.uses(results[0])) != 1:
        return None
    node = graph.node(results[0].node)
    stored = {v for u, v in node.operands() if u.argument in ("weight", "bias")}
    linear = node.op == "aten.linear.default" and all(v.node in graph.tensors for v in stored)
    return node if linear and len(node.tensor_type().shape) > 1 else None


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return all positions of all examples in order; `[positions, features]`."""
    return tensor.reshape(-1, tensor.shape[-1])
