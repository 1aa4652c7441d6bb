"""The work of the command `score`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archir.api import morphisms
from archir.axes.describe import axis_names
from archir.axes.infer import infer_widths
from archir.axes.terms import leaves
from archir.axes.widths import Widths
from archir.cli.console import print_table, say, standard_error
from archir.cli.sets import ChosenSet, choose_set, print_set, set_as_json
from archir.errors import FileError, ScoreError
from archir.grow.batches import Batches
from archir.grow.config import loss_of
from archir.grow.data import load_data
from archir.grow.ranges import COUNT, SCORING, Range, out_of_range
from archir.ir.files import write_file
from archir.ir.graph import Graph
from archir.ir.load import load
from archir.ir.node import Value
from archir.ir.text import print_graph
from archir.plugins import find_passes
from archir.rewrite.morphism import Morphism
from archir.score.families import Family
from archir.score.learn import Recipe
from archir.score.losses import Loss
from archir.score.score import Score, Scores
from archir.score.score import score as score_candidates

_RANGES: dict[str, Range] = {
    **{name: SCORING[name] for name in ("refine", "chunk", "seed", "batch_statistics")},
    **dict.fromkeys(("examples", "batch_size"), COUNT),
    "learn_steps": SCORING["steps"],
}


@dataclass(frozen=True)
class ScoreOptions:
    """How candidates are scored.

    Attributes:
        examples: validation examples they are scored on.
        batch_size: examples of a batch.
        learn_steps: steps in which θ is learned, on training batches.
        refine: number of candidates refined in forward mode, best first.
        chunk: most tangents pushed through the tail at once; as many as fit into memory if None.
        seed: seed of everything random.
        batch_statistics: normalise by the statistics of each batch.
    """

    examples: int
    batch_size: int
    learn_steps: int
    refine: int
    chunk: int | None
    seed: int
    batch_statistics: bool = False

    def __post_init__(self) -> None:
        problems = out_of_range(self, _RANGES)
        if problems:
            raise ScoreError("these options cannot be scored with", where="; ".join(problems))


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


def read_subject(
    net: Path, data: str, loss: str, passes: str, options: ScoreOptions, plugins: Sequence[str]
) -> Subject:
    """Read what a command is to score.

    Raises:
        FileError: a file is missing or damaged.
        GrowError: the data make no sense.
        ParseError: there is no such pass.
        PassError: a pass is no morphism, or a plugin cannot be used.
        ScoreError: there is no such loss.
    """
    graph, kinds, found_loss = load(net), morphisms(passes, registry=find_passes(plugins)), loss_of(loss)
    dataset = load_data(data, seed=options.seed)
    held_out = dataset.validation.take(slice(0, options.examples))
    batches = Batches(held_out, options.batch_size)
    learn = Batches(dataset.train, options.batch_size, options.seed)
    return Subject(graph, kinds, found_loss, batches, learn, len(held_out))


def score(
    net: Path,
    data: str,
    loss: str,
    passes: str,
    options: ScoreOptions,
    *,
    plugins: Sequence[str],
    top: int,
    as_json: bool,
    members: int | None = None,
    save: Path | None = None,
    annotate: Path | None = None,
) -> None:
    """List the candidates of a graph with the lowest predicted loss, and a set of them.

    Args:
        net: the graph.
        data: what `load_data` takes.
        loss: name of a loss, or `file.py:function`.
        passes: specifications of the kinds of rewrite.
        options: how they are scored.
        plugins: modules whose passes are known, too.
        top: number of candidates to list.
        as_json: print JSON.
        members: most members of a set to choose and learn together; None to choose none.
        save: where to write all scores as JSON.
        annotate: where to write the text of the graph with the best prediction at each place.

    Raises:
        FileError: a file is missing or damaged, or cannot be written.
        GrowError: the data make no sense.
        ParseError: there is no such pass.
        PassError: a pass is no morphism, or a plugin cannot be used.
        ScoreError: there is no such loss, or the graph cannot be scored on the data.
    """
    subject = read_subject(net, data, loss, passes, options, plugins)
    with standard_error().status("scoring"):
        scores = score_candidates(
            subject.graph,
            subject.batches,
            loss=subject.loss,
            morphisms=subject.morphisms,
            learn=subject.learn,
            steps=options.learn_steps,
            refine=options.refine,
            chunk=options.chunk,
            batch_statistics=options.batch_statistics,
            seed=options.seed,
        )
        chosen = None
        if members is not None:
            recipe = Recipe(options.learn_steps, seed=options.seed)
            chosen = choose_set(scores, members, batches=subject.batches, learn=subject.learn, recipe=recipe)
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
        family = scores.family(s.spec)
        node = _place(family, widths, order)
        if node is None or (node, family.site.label) in seen:
            continue
        seen.add((node, family.site.label))
        comments.setdefault(node, []).append(f"{s.spec}: {s.predicted:+.5f} ± {s.stderr:.5f}")
    text = {node: "; ".join(found) for node, found in comments.items()}
    return print_graph(graph, names=axis_names(widths), comments=text)


def _place(family: Family, widths: Widths, order: dict[int, int]) -> int | None:
    """Return the id of the call at which a family is best spoken of; None where it changes no call."""
    atom = next((w.atom for w in widths if w.name == family.site.label), None)
    if atom is not None:
        for node in widths.graph.calls:
            axes = (widths.axes.get(Value(node.id, i), ()) for i in range(len(node.results)))
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
        raise FileError(f"cannot write {path}", why=str(error), mend="name a file in a folder that exists") from error


def _found(scores: Scores, top: int, chosen: ChosenSet | None) -> dict[str, Any]:
    return {
        "candidates": len(scores),
        "scores": [_row(s) for s in list(scores)[:top]],
        "set": None if chosen is None else set_as_json(chosen),
        "misses": [{"site": label, "reason": miss.reason} for label, miss in scores.misses],
    }


def _row(score: Score) -> dict[str, Any]:
    return {
        "spec": score.spec,
        "predicted": score.predicted,
        "stderr": None if math.isnan(score.stderr) else score.stderr,
        "first_order": score.first_order,
        "curvature": score.curvature,
        "second_order": score.curvature / 2,
        "parameters": score.candidate.cost.parameters,
        "flops": score.candidate.cost.flops,
        "peak_bytes": score.candidate.cost.peak_bytes,
        "gain_per_thousand_parameters": _gain(score),
        "refined": score.refined,
    }


def _gain(score: Score) -> float | None:
    """Return the predicted fall of the loss for each thousand parameters added; None for those that add none."""
    added = score.candidate.cost.parameters
    return -1000 * score.predicted / added if added > 0 else None


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
    gain = _gain(score)
    return (
        score.spec,
        f"{score.predicted:+.5f}",
        f"± {score.stderr:.5f}",
        f"{score.first_order:+.5f}",
        f"{score.curvature / 2:+.5f}",
        f"{score.candidate.cost.parameters:+,}",
        f"{score.candidate.cost.flops:+,}",
        "" if gain is None else f"{gain:+.4f}",
    )
