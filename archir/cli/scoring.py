"""The work of the command `score`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic.dataclasses

from archir.axes.describe import axis_names
from archir.axes.infer import infer_widths
from archir.axes.terms import leaves
from archir.axes.widths import Widths
from archir.cli.console import print_table, say, standard_error
from archir.cli.nets import load_net
from archir.cli.sets import ChosenSet, choose_set, print_set, set_as_json
from archir.errors import FileError, ScoreError
from archir.growing.batches import Batches
from archir.growing.config import loss_of
from archir.growing.data import load_data
from archir.ir.files import write_file
from archir.ir.graph import Graph
from archir.ir.text import print_graph
from archir.kinds import morphisms
from archir.plugins import find_passes
from archir.rewrite.morphism import Morphism
from archir.scoring.batches import BoundBatch, bind_batches
from archir.scoring.families import Family
from archir.scoring.losses import Loss
from archir.scoring.objective import make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.ranges import CLOSED, Count, checked
from archir.scoring.score import score as score_candidates
from archir.scoring.scores import Score, Scores
from archir.scoring.strategies.registry import DEFAULT, find_strategy
from archir.scoring.strategies.strategy import Strategy


@dataclass(frozen=True)
class Subject:
    """What is scored, and on what.

    Attributes:
        graph: the graph.
        morphisms: the kinds of rewrite.
        loss: the loss.
        batches: held-out examples that candidates are scored on.
        learn: training examples that θ is learned on.
        examples: number of the held-out ones.
    """

    graph: Graph
    morphisms: tuple[Morphism, ...]
    loss: Loss
    batches: Batches
    learn: Batches
    examples: int


@checked(ScoreError, "nothing can be scored on these examples")
@pydantic.dataclasses.dataclass(frozen=True, config=CLOSED)
class _Examples:
    """How many examples are scored on, and how many at once."""

    examples: Count
    batch_size: Count


def read_subject(
    net: Path,
    data: str,
    loss: str,
    passes: str,
    *,
    examples: int,
    batch_size: int,
    seed: int,
    plugins: Sequence[str],
) -> Subject:
    """Read what a command is to score.

    Raises:
        CaptureError: nodes of an ONNX file cannot be read.
        FileError: a file is missing or damaged.
        GrowError: the data make no sense.
        ParseError: there is no such pass.
        PassError: a pass is no morphism, or a plugin cannot be used.
        ScoreError: there is no such loss, or there are to be no examples.
    """
    _Examples(examples, batch_size)
    graph, kinds, found_loss = load_net(net), morphisms(passes, registry=find_passes(plugins)), loss_of(loss)
    dataset = load_data(data, seed=seed)
    held_out = dataset.validation.take(slice(0, examples))
    batches, learn = Batches(held_out, batch_size), Batches(dataset.train, batch_size, seed)
    return Subject(graph, kinds, found_loss, batches, learn, len(held_out))


def score(
    subject: Subject,
    options: ScoreOptions,
    *,
    top: int,
    as_json: bool,
    members: int | None = None,
    save: Path | None = None,
    annotate: Path | None = None,
) -> None:
    """List the candidates of a graph with the lowest predicted loss, and a set of them.

    Args:
        subject: what is scored.
        options: how.
        top: number of candidates to list.
        as_json: print JSON.
        members: most members of a set to choose and learn together; None to choose none.
        save: where to write all scores as JSON.
        annotate: where to write the text of the graph with the best prediction at each place.

    Raises:
        FileError: a file cannot be written.
        ScoreError: the graph cannot be scored on the data.
    """
    with standard_error().status("scoring"):
        scores, batches, learn = _scored(subject, options)
        chosen = None if members is None else choose_set(scores, members, batches=batches, learn=learn)
    if save is not None:
        _write(save, json.dumps(_found(scores, len(scores), chosen), indent=2) + "\n")
    if annotate is not None:
        _write(annotate, annotated(scores) + "\n")
    if as_json:
        say(json.dumps(_found(scores, top, chosen), indent=2))
        return
    say(f"{len(scores)} candidates, scored on {subject.examples} examples of the validation data")
    print_table(COLUMNS, [_cells(s) for s in list(scores)[:top]])
    if chosen is not None:
        say("")
        print_set(chosen)


def list_order(subject: Subject, rule: str, options: ScoreOptions, *, top: int, as_json: bool) -> None:
    """List the candidates of a graph that a strategy would take first.

    Args:
        subject: what is scored.
        rule: name of the strategy.
        options: how.
        top: number of candidates to list.
        as_json: print JSON.

    Raises:
        ScoreError: there is no such strategy, or the graph cannot be scored on the data.
    """
    strategy = find_strategy(rule)
    with standard_error().status("scoring"):
        scores, _, _ = _scored(subject, options, strategy)
    ordered = sorted(scores.choice, key=lambda s: s.order)
    if as_json:
        rows = [{"spec": s.spec, "order": s.order, "predicted": s.predicted, **_cost(s)} for s in ordered[:top]]
        found = {"rule": scores.strategy, "candidates": scores.candidates, "ranked": rows, "misses": _misses(scores)}
        say(json.dumps(found, indent=2))
        return
    say(f"{len(ordered)} of {scores.candidates} candidates, {strategy.summary}")
    cells = [(s.spec, f"{s.order:.5g}", _signed(s.predicted), _cells(s)[5]) for s in ordered[:top]]
    print_table(("candidate", ">order", ">Δ loss", ">Δ parameters"), cells)


def _scored(
    subject: Subject, options: ScoreOptions, strategy: str | Strategy = DEFAULT
) -> tuple[Scores, Sequence[BoundBatch], Sequence[BoundBatch]]:
    """Return the scores, and the batches that were scored on and learned on, bound to the graph."""
    objective = make_objective(subject.graph, subject.loss, batch_statistics=options.batch_statistics)
    batches = bind_batches(objective.program, subject.batches)
    learn = bind_batches(objective.program, subject.learn, most=max(options.steps, 1))
    scores = score_candidates(
        objective, batches, morphisms=subject.morphisms, learn=learn, strategy=strategy, options=options
    )
    return scores, batches, learn


def annotated(scores: Scores) -> str:
    """Return the text of the scored graph with widths, and the best prediction for each width or value as a comment.

    The comment on a width stands where it first occurs in the result of a call, that on another candidate at the first
    call it changes. The text parses back to the same graph.
    """
    graph = scores.graph
    widths = infer_widths(graph)
    order = {node.id: number for number, node in enumerate(graph.calls)}
    seen: set[tuple[int, str]] = set()
    comments: dict[int, list[str]] = {}
    for s in scores:
        family = s.candidate.family
        node = _place(family, widths, order)
        if node is None or (node, family.site.label) in seen:
            continue
        seen.add((node, family.site.label))
        comments.setdefault(node, []).append(f"{s.spec}: {_signed(s.predicted)} ± {s.stderr:.5f}")
    text = {node: "; ".join(found) for node, found in comments.items()}
    return print_graph(graph, names=axis_names(widths), comments=text)


def _place(family: Family, widths: Widths, order: dict[int, int]) -> int | None:
    """Return the id of the call at which a family is best shown; None where it changes no call."""
    atom = next((w.atom for w in widths if w.name == family.site.label), None)
    if atom is not None:
        for node in widths.graph.calls:
            axes = (widths.axes.get(value, ()) for value in node.made)
            if any(atom in leaves(term) for terms in axes for term in terms):
                return node.id
    return min((e.node for e in family.perturbation.edges if e.node in order), key=order.__getitem__, default=None)


def _write(path: Path, text: str) -> None:
    """Write a text into a file, all of it or nothing.

    Raises:
        FileError: it cannot be written.
    """
    try:
        write_file(path, text.encode())
    except OSError as error:
        raise FileError(f"cannot write {path}", why=str(error), hint="name a file in a folder that exists") from error


def _found(scores: Scores, top: int, chosen: ChosenSet | None) -> dict[str, Any]:
    return {
        "candidates": len(scores),
        "scores": [_row(s) for s in list(scores)[:top]],
        "set": None if chosen is None else set_as_json(chosen),
        "misses": _misses(scores),
    }


def _misses(scores: Scores) -> list[dict[str, str]]:
    return [{"site": label, "reason": miss.reason} for label, miss in scores.misses]


def _row(score: Score) -> dict[str, Any]:
    return {
        "spec": score.spec,
        "predicted": score.predicted,
        "stderr": None if score.stderr is None or math.isnan(score.stderr) else score.stderr,
        "first_order": score.first_order,
        "curvature": score.curvature,
        "second_order": _second_order(score),
        **_cost(score),
        "gain_per_thousand_parameters": _gain(score),
        "refined": score.refined,
    }


def _cost(score: Score) -> dict[str, int]:
    found = score.candidate.cost
    return {"parameters": found.parameters, "flops": found.flops, "peak_bytes": found.peak_bytes}


def _second_order(score: Score) -> float | None:
    return None if score.curvature is None else score.curvature / 2


def _gain(score: Score) -> float | None:
    """Return the predicted fall of the loss for each thousand parameters added; None for those that add none."""
    added = score.candidate.cost.parameters
    return -1000 * score.predicted / added if added > 0 and score.predicted is not None else None


def _signed(number: float | None, digits: int = 5) -> str:
    return "" if number is None else f"{number:+.{digits}f}"


COLUMNS = (
    "candidate",
    ">Δ loss",
    ">std. error",
    ">first order",
    ">second order",
    ">Δ parameters",
    ">Δ FLOPs",
    ">gain/1,000 par.",
)
"""The columns of the table: the change of the loss is the sum of its first and second order parts."""


def _cells(score: Score) -> tuple[str, ...]:
    return (
        score.spec,
        _signed(score.predicted),
        "" if score.stderr is None else f"± {score.stderr:.5f}",
        _signed(score.first_order),
        _signed(_second_order(score)),
        f"{score.candidate.cost.parameters:+,}",
        f"{score.candidate.cost.flops:+,}",
        _signed(_gain(score), 4),
    )
