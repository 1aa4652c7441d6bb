"""A run to its end: it grows; what it found may be trained from scratch, and what it began to grow from without growth.

Both are runs of their own without growth steps, by the same engine, whose checkpoints are in folders of the run. They
go on as the run itself does. Where one of them fails, that is told, and the grown network is kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from archir.cost import cost
from archir.errors import ArchirError, FileError
from archir.growing.divergence import Recovery
from archir.growing.engine import Engine, Outcome
from archir.growing.fresh_start import drawn_afresh
from archir.growing.run import COUNTERFACTUAL, RETRAINED, Checkpoint, RunDirectory
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
    options, fork = engine.options, _Fork(engine.directory)
    found = replace(engine, fork=fork.keep if options.counterfactual else None).run(checkpoint)
    found = _better(engine, found) if options.retrain else found
    if options.counterfactual:
        _train_on(engine, fork)
    kept = {"kept": found.checkpoint.state["kept"]} if options.retrain else {}
    engine.log("finished", step=found.checkpoint.step, **_figures(found.checkpoint, found.metrics), **kept)
    return found.checkpoint.graph


class _Fork:
    """The checkpoint that the first growth step begins from, kept in a folder of the run, or in memory."""

    def __init__(self, directory: RunDirectory | None) -> None:
        self._directory = directory
        self.kept: Checkpoint | None = None

    def keep(self, checkpoint: Checkpoint) -> None:
        """Keep it, in place of an earlier one."""
        self.kept = checkpoint
        if self._directory is not None:
            self._directory.beside(COUNTERFACTUAL).save(checkpoint)


def _better(engine: Engine, grown: Outcome) -> Outcome:
    """Return the grown network or the same drawn anew and trained from scratch, whichever does better; it is saved.

    Its state tells what both have cost together.
    """
    graph, state = grown.checkpoint.graph, grown.checkpoint.state
    if state["kept"]:  # all of this was done before the run was interrupted
        return grown
    beside = replace(_beside(engine, RETRAINED), expansion=None)
    spent, chosen, better, note = Checkpoint(0, graph, {}, {"training_flops": 0, "seconds": 0.0}), grown, False, ""
    metrics = None
    try:
        beside = replace(beside, seed=drawn_afresh(graph, engine.begun, engine.morphisms, engine.options.seed))
        done = beside.run(_latest(beside))
        spent, metrics, better = done.checkpoint, done.metrics, is_better(done.metrics, grown.metrics)
        chosen = done if better else grown
    except FileError:
        raise
    except ArchirError as error:
        spent, note = beside.recovery.last or spent, _reason(error)
    told = {**_figures(spent, metrics), "grown": _figures(grown.checkpoint, grown.metrics)}
    engine.log(RETRAINED, step=engine.options.steps, **told, kept=better, note=note)
    counted = {name: state[name] + spent.state[name] for name in ("training_flops", "seconds")}
    same = {name: state[name] for name in ("growth_steps", "begun")}
    kept = {**chosen.checkpoint.state, **same, **counted, "kept": RETRAINED if better else "grown"}
    chosen = replace(chosen, checkpoint=replace(chosen.checkpoint, state=kept))
    if engine.directory is not None:
        engine.directory.save(chosen.checkpoint)
    return chosen


def is_better(retrained: Metrics, grown: Metrics) -> bool:
    """Say whether a network does better than the grown one: in accuracy where there is one, else in loss."""
    if retrained.accuracy is None or grown.accuracy is None:
        return retrained.loss < grown.loss
    return retrained.accuracy > grown.accuracy


def _train_on(engine: Engine, fork: _Fork) -> None:
    """Train the network that the first growth step began from to the end, and tell how it does."""
    beside = _beside(engine, COUNTERFACTUAL)
    start, metrics, note = _latest(beside) or fork.kept, None, ""
    if start is None:
        engine.log(COUNTERFACTUAL, step=engine.options.steps, note="its checkpoints are lost or damaged")
        return
    try:
        done = beside.run(start)
        start, metrics = done.checkpoint, done.metrics
    except FileError:
        raise
    except ArchirError as error:
        start, note = beside.recovery.last or start, _reason(error)
    share = engine.budget.share(cost(start.graph))
    if share > 1:
        note = "; ".join(filter(None, (note, f"over the budget: {share:.0%} of it")))
    engine.log(COUNTERFACTUAL, step=engine.options.steps, **_figures(start, metrics), note=note)


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


def _reason(error: ArchirError) -> str:
    return f"it failed: {error.what}"


def _beside(engine: Engine, name: str) -> Engine:
    """Return a run without growth steps that is kept in a folder of another one."""
    return replace(
        engine,
        options=engine.options.without_growth,
        directory=None if engine.directory is None else engine.directory.beside(name),
        log=engine.log.beside(name),
        recovery=Recovery(),
    )


def _latest(engine: Engine) -> Checkpoint | None:
    """Return where a run goes on, None if there is no whole checkpoint."""
    if engine.directory is None:
        return None
    try:
        return engine.directory.latest(accept=engine.check, on_damage=engine.log.damaged)
    except FileError:  # all of them are damaged
        return None
