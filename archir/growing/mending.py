"""Mending a network that units were removed from, without training: compensation, and fresh batch statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from archir.axes.infer import infer_widths
from archir.growing.batches import stream
from archir.growing.ranks import in_step
from archir.growing.recalibration import recalibrate
from archir.growing.step import StepContext
from archir.growing.training import Batch
from archir.ir.graph import Graph, Patch
from archir.ir.operators.normalisation import BATCH_NORM
from archir.rewrite.morphism import UnitMorphism
from archir.rewrite.pipeline import Rewrites, rewrite_together
from archir.scoring.compensate import removes_units, taken_over

COMPENSATED, RECALIBRATED = "compensated", "recalibrated"
"""What may be done, as the history of a run calls it."""


@dataclass(frozen=True)
class Mended:
    """What a set of rewrites does once it is mended.

    Attributes:
        patch: the rewriting; its maps say where the weights come from, its graph after holds what they have become.
        how: what was done, in order.
    """

    patch: Patch
    how: tuple[str, ...]


def mend(step: StepContext, rewrites: Rewrites, plain: Patch) -> Mended:
    """Return a set of rewrites with what lowers the loss after it, of two things done one after the other.

    The weights of the units that stay take over what the removed ones gave, by least squares on training batches, if
    the options ask for it; units that other rewrites of the set remove or merge are not compensated for. And the batch
    statistics are averaged anew, unless those of each batch are used. Each is kept where it lowers the loss on the
    examples that are checked on.

    Args:
        step: what the step is taken on.
        rewrites: the rewrites, each with its θ.
        plain: what they do.

    Raises:
        GrowError: batch statistics are not finite.

    Source: He, Zhang, Sun 2017 (channel pruning) for the least squares.
    """
    found, loss, how = plain, step.measure(plain.after), list[str]()
    patch = _compensated(step, rewrites) if step.options.compensate else None
    if patch is not None and (lower := step.measure(patch.after)) < loss:
        found, loss = patch, lower
        how.append(COMPENSATED)
    if not step.options.batch_statistics and any(n.op == BATCH_NORM for n in plain.after.calls):
        patch = replace(found, after=_recalibrated(step, found.after))
        if step.measure(patch.after) < loss:
            found = patch
            how.append(RECALIBRATED)
    return Mended(found, tuple(how))


def _compensated(step: StepContext, rewrites: Rewrites) -> Patch | None:
    """Return what a set does where its prunes are compensated for; None if it has none."""
    widths = infer_widths(step.graph)
    prunes = [m for m, _ in rewrites if isinstance(m, UnitMorphism) and removes_units(widths, m)]
    if not prunes:
        return None
    # The weights change beyond what the maps say: the graph before stays as it is, so that averages are told of it.
    with step.flops.counting():
        ready = taken_over(step.graph, in_step(step.sharing, _few(step)), prunes, processes=step.sharing)
    patch = rewrite_together(ready, rewrites)
    return replace(patch, before=step.graph)


def _recalibrated(step: StepContext, graph: Graph) -> Graph:
    module = graph.module()
    with step.flops.counting():
        recalibrate(module, _few(step), processes=step.sharing)
    return graph.with_tensors(module.state_dict())


def _few(step: StepContext) -> Iterator[Batch]:
    """Yield the training batches it is done on."""
    return stream(step.learned_on(step.seed), count=step.options.recalibrate_batches)
