"""Compressing a trained network: contracted into a budget step by step, and trained on in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from archir.cost import cost
from archir.errors import GrowError
from archir.growing.examples import Split
from archir.growing.feasibility import check_reachable
from archir.growing.grow import Kept, Run, carry_out, checked_options
from archir.growing.log import Listener
from archir.growing.options import GrowOptions
from archir.ir.graph import Graph
from archir.rewrite.morphism import Morphism
from archir.scoring.budget import Budget
from archir.scoring.losses import Loss, find_loss
from archir.scoring.processes import ALONE, Processes


def compress_graph(
    graph: Graph,
    *,
    train: Split,
    validation: Split,
    budget: Budget,
    morphisms: Sequence[Morphism],
    loss: str | Callable[..., torch.Tensor] | Loss = "cross_entropy",
    options: GrowOptions | None = None,
    directory: Path | None = None,
    config: str = "",
    resume: bool = False,
    replace: bool = False,
    on_event: Listener | None = None,
    processes: Processes = ALONE,
) -> Run:
    """Contract a trained network into a budget, and train it on in between and afterwards.

    It is the run of `grow_graph` from the other side: the first of `options.growth_steps` contractions comes before any
    training, the budgets of the steps are spaced geometrically between what the network costs and the final one, and
    the weights of the units that stay take over what the removed ones gave unless the options say otherwise. It is kept
    and goes on as such a run does.

    Args:
        graph: the network with its trained weights.
        train: examples the weights are learned on.
        validation: examples everything is chosen on.
        budget: hard limits on the cost of the compressed network, or parts of what the network costs.
        morphisms: the kinds of rewrite it may be contracted by.
        loss: name of a loss, or a callable of outputs and targets.
        options: how it is contracted and trained; `first_growth` is not looked at.
        directory: where to keep the run; nothing is kept if not given.
        config: text that tells what the run is, kept in the directory.
        resume: go on with the run in the directory.
        replace: remove the run that is in the directory, if any.
        on_event: is told every event as it happens, those of networks that are trained beside the run included.
        processes: those that carry it out together.

    Raises:
        GrowError: the network is within the budget already, or cannot be made as small, or the options expand it or
            take no growth step; and as `grow_graph`.
        ScoreError: as `grow_graph`.
        FileError: as `grow_graph`.
        ProcessError: as `grow_graph`.
    """
    chosen, found, kinds = compressing(checked_options(options, budget)), find_loss(loss), tuple(morphisms)
    now = cost(graph)
    budget = budget.resolved(now)
    if not budget.scarce:
        raise GrowError("compression needs a budget", hint="give a limit on parameters, FLOPs or peak bytes")
    if budget.allows(now):
        raise GrowError(
            "the network is within the budget already",
            where=f"network: {now.parameters} parameters, {now.flops} FLOPs, {now.peak_bytes} peak bytes",
            why=f"budget: {budget}",
            hint="lower the budget, or let the network grow into it: archir grow",
        )
    check_reachable(budget, graph, kinds)
    kept = Kept(directory, config, resume, replace, on_event, processes)
    return carry_out(graph, train, validation, budget, chosen, found, kinds, kept)


def compressing(options: GrowOptions) -> GrowOptions:
    """Return options as compression takes them: no expansion, the first contraction at once, with compensation.

    Raises:
        GrowError: they expand the network, or take no growth step.
    """
    if options.expansion not in (None, 1.0):
        raise GrowError("a network that is compressed is not expanded", why=f"expansion is {options.expansion}")
    if not options.growth_steps:
        raise GrowError("compression takes one growth step at least", why="growth_steps is 0")
    compensate = True if options.compensate is None else options.compensate
    return dataclasses.replace(options, expansion=1.0, first_growth=0.0, compensate=compensate)
