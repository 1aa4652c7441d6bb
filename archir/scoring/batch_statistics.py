"""Graphs whose batch normalisations take their statistics from the batch, as they do in training."""

from __future__ import annotations

from archir.axes.rules.norm import uses_batch_statistics
from archir.errors import ScoreError
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.ir.operators.normalisation import BATCH_NORM

_FROZEN = "aten._native_batch_norm_legit_no_training.default"


def with_batch_statistics(graph: Graph) -> Graph:
    """Return a graph whose batch normalisations use the mean and the variance of the batch; running ones are left out.

    Calls keep their ids and their numbers in the text form, widths their names, so that a rewrite of one graph is
    written as that of the other.

    Raises:
        ScoreError: a batch normalisation was captured in a form that has no statistics of the batch.
    """
    frozen = [n for n in graph.calls if n.op == _FROZEN]
    if frozen:
        raise ScoreError(
            f"{_FROZEN} cannot take its statistics from the batch",
            where="; ".join(n.place for n in frozen[:5]),
            hint="capture the model without decomposing its operators",
        )
    calls = [n for n in graph.calls if n.op == BATCH_NORM and not uses_batch_statistics(n)]
    if not calls:
        return graph
    replaced = {a for n in calls for a in (n.arguments["running_mean"], n.arguments["running_var"])}
    with graph.edit(by="") as e:
        for node in calls:
            e.update(node.id, arguments={"running_mean": None, "running_var": None, "training": True})
        for parameter in graph.parameters:
            value = Value(parameter.id)
            if value in replaced and not e.uses(value):
                e.remove(parameter.id)
    return e.graph.with_history(*graph.history)


def is_coupled(graph: Graph) -> bool:
    """Say whether a batch normalisation of a graph couples the examples of a batch."""
    return any(n.op == BATCH_NORM and uses_batch_statistics(n) for n in graph.calls)
