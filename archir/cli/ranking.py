"""The work of the command `score` with another rule than the scorer's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archir.cli.console import print_table, say, standard_error
from archir.cli.scoring import ScoreOptions, read_subject
from archir.score.strategies.ranking import Ranked, Ranking
from archir.score.strategies.rules import find_rule, rank


def rank_candidates(
    net: Path,
    data: str,
    loss: str,
    passes: str,
    options: ScoreOptions,
    *,
    rule: str,
    plugins: Sequence[str],
    top: int,
    as_json: bool,
) -> None:
    """List the candidates of a graph that a rule would take first.

    Args:
        net: the graph.
        data: what `load_data` takes.
        loss: name of a loss, or `file.py:function`.
        passes: specifications of the kinds of rewrite.
        options: how θ is learned, and on what candidates are scored.
        rule: name of the rule.
        plugins: modules whose passes are known, too.
        top: number of candidates to list.
        as_json: print JSON.

    Raises:
        FileError: a file is missing or damaged.
        GrowError: the data make no sense.
        ParseError: there is no such pass.
        PassError: a pass is no morphism, or a plugin cannot be used.
        ScoreError: there is no such rule or loss, or the graph cannot be scored on the data.
    """
    found_rule = find_rule(rule)
    subject = read_subject(net, data, loss, passes, options, plugins)
    with standard_error().status("ranking"):
        ranking = rank(
            subject.graph,
            subject.batches,
            rule=found_rule,
            loss=subject.loss,
            morphisms=subject.morphisms,
            learn=subject.learn,
            steps=options.learn_steps,
            seed=options.seed,
        )
    best = ranking.table[:top]
    if as_json:
        say(json.dumps(_found(ranking, best), indent=2))
        return
    say(f"{len(ranking)} of {ranking.candidates} candidates, {found_rule.summary}")
    print_table(("candidate", ">order", ">Δ loss", ">Δ parameters"), [_cells(r) for r in best])


def _found(ranking: Ranking, best: Sequence[Ranked]) -> dict[str, Any]:
    rows = [
        {
            "spec": r.spec,
            "order": r.order,
            "predicted": r.predicted,
            "parameters": r.candidate.cost.parameters,
            "flops": r.candidate.cost.flops,
            "peak_bytes": r.candidate.cost.peak_bytes,
        }
        for r in best
    ]
    misses = [{"site": label, "reason": miss.reason} for label, miss in ranking.misses]
    return {"rule": ranking.rule, "candidates": ranking.candidates, "ranked": rows, "misses": misses}


def _cells(ranked: Ranked) -> tuple[str, ...]:
    predicted = "" if ranked.predicted is None else f"{ranked.predicted:+.5f}"
    return ranked.spec, f"{ranked.order:.5g}", predicted, f"{ranked.candidate.cost.parameters:+,}"
