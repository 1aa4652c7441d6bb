"""A run to its end: it grows; what it found may be trained from scratch, and what it began to grow from without growth.

Both are runs of their own without growth steps, by the same engine, whose checkpoints are in folders of the run. They
go on as the run itself does. Where one of them fails, that is told, and the grown network is kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from archir.cost import cost
from archir.errors import AlikeError
from archir.growing.beside import beside, latest, train_beside
from archir.growing.engine import Engine, Outcome
from archir.growing.fresh_start import drawn_afresh
from archir.growing.run import COUNTERFACTUAL, RETRAINED, Checkpoint
from archir.growing.training import Metrics
from archir.ir.graph import Graph


def conclude(engine: Engine, checkpoint: Checkpoint | None = None) -> Graph:
    """Carry out a run to its end, and return the network it ends with.

    Args:
        engine: the run.
        checkpoint: where it goes on; None to begin.

    Raises:
        ArchirError: see `archir.growing.grow.grow_graph`.
    """
    options, fork = engine.options, _Fork(engine)
    found = replace(engine, fork=fork.keep if options.counterfactual else None).run(checkpoint)
    found = _better(engine, found) if options.retrain else found
    if options.counterfactual:
        _tell_without_growth(engine, fork)
    kept = {"kept": found.checkpoint.state["kept"]} if options.retrain else {}
    engine.log("finished", step=found.checkpoint.step, **_figures(found.checkpoint, found.metrics), **kept)
    return found.checkpoint.graph


class _Fork:
    """The checkpoint that the first growth step begins from, kept in a folder of the run, or in memory."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.kept: Checkpoint | None = None

    def keep(self, checkpoint: Checkpoint) -> None:
        """Keep it, in place of an earlier one."""
        self.kept = checkpoint
        self._engine.write(checkpoint, COUNTERFACTUAL)


def _better(engine: Engine, grown: Outcome) -> Outcome:
    """Return the grown network or the same drawn anew and trained from scratch, whichever does better; it is saved.

    Its state tells what both have cost together.
    """
    graph, state = grown.checkpoint.graph, grown.checkpoint.state
    if state["kept"]:  # all of this was done before the run was interrupted
        return grown

    def begin(again: Engine) -> tuple[Engine, Checkpoint | None]:
        start = drawn_afresh(graph, engine.begun, engine.morphisms, engine.options.seed)
        again = replace(again, seed=start, expansion=None)
        return again, latest(again)

    ended = train_beside(beside(engine, RETRAINED), begin, graph)
    better = ended.metrics is not None and is_better(ended.metrics, grown.metrics)
    told = {**_figures(ended.checkpoint, ended.metrics), "grown": _figures(grown.checkpoint, grown.metrics)}
    engine.log(RETRAINED, step=engine.options.steps, **told, kept=better, note=ended.failure)
    chosen = Outcome(ended.checkpoint, ended.metrics) if better and ended.metrics else grown
    both = {name: state[name] + ended.checkpoint.state[name] for name in ("training_flops", "seconds")}
    grew = {name: state[name] for name in ("growth_steps", "begun")}
    kept = {**chosen.checkpoint.state, **grew, **both, "kept": RETRAINED if better else "grown"}
    chosen = replace(chosen, checkpoint=replace(chosen.checkpoint, state=kept))
    engine.write(chosen.checkpoint)
    return chosen


def is_better(retrained: Metrics, grown: Metrics) -> bool:
    """Say whether a network does better than the grown one: in accuracy where there is one, else in loss."""
    if retrained.accuracy is None or grown.accuracy is None:
        return retrained.loss < grown.loss
    return retrained.accuracy > grown.accuracy


def _tell_without_growth(engine: Engine, fork: _Fork) -> None:
    """Train the network that the first growth step began from to the end, and tell how it does."""

    def begin(ungrown: Engine) -> tuple[Engine, Checkpoint | None]:
        start = latest(ungrown) or fork.kept
        if start is None:
            raise AlikeError("its checkpoints are lost or damaged")
        return ungrown, start

    ended = train_beside(beside(engine, COUNTERFACTUAL), begin, engine.begun)
    share = engine.budget.share(cost(ended.checkpoint.graph))
    over = f"over the budget: {share:.0%} of it" if share > 1 else ""
    told = _figures(ended.checkpoint, ended.metrics)
    engine.log(COUNTERFACTUAL, step=engine.options.steps, **told, note="; ".join(filter(None, (ended.failure, over))))


def _figures(checkpoint: Checkpoint, metrics: Metrics | None) -> dict[str, Any]:
    """Return what is told of a network: how good it is, if that is known, what it costs, and what its training did."""
    price, state = cost(checkpoint.graph), checkpoint.state
    return {
        "loss": metrics and metrics.loss,
        "accuracy": metrics and metrics.accuracy,
        "parameters": price.parameters,
        "flops": price.flops,
        "training_flops": state["training_flops"],
        "seconds": state["seconds"],
    }
