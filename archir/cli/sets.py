"""The set that the command `score` chooses: what is predicted for it, and how that is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from archir.cli.console import print_table, say
from archir.cost import Cost, cost
from archir.scoring.batches import BoundBatch
from archir.scoring.scores import Score, Scores


@dataclass(frozen=True)
class ChosenSet:
    """A set of candidates and what it is predicted to do; changes of the loss are in nats for likelihoods.

    Attributes:
        members: the scores of its members, in the order they were chosen.
        additive: sum of what each is predicted to do alone.
        joint: what the joint model predicts.
        linearised_alone: change of the linearised network's loss, with θ as each member learned it alone.
        linearised_together: the same, with θ learned for all of them together.
        cost: what the set adds to the cost of the graph, for one example.
    """

    members: tuple[Score, ...]
    additive: float
    joint: float
    linearised_alone: float
    linearised_together: float
    cost: Cost


def choose_set(
    scores: Scores, members: int, *, batches: Sequence[BoundBatch], learn: Sequence[BoundBatch]
) -> ChosenSet:
    """Choose a set and learn its θ for all members together.

    Args:
        scores: the scores to choose by.
        members: most members.
        batches: the batches they were scored on.
        learn: batches to learn on.

    Raises:
        ScoreError: the loss is not finite, or does not fit a batch.
    """
    chosen = scores.choose(members)
    alone = scores.together(chosen)
    return ChosenSet(
        members=tuple(chosen),
        additive=scores.additive(chosen),
        joint=scores.joint(chosen),
        linearised_alone=alone.linearised(batches),
        linearised_together=alone.learned(learn).linearised(batches),
        cost=alone.cost() - cost(scores.graph),
    )


def set_as_json(found: ChosenSet) -> dict[str, Any]:
    """Return a set as JSON has it."""
    members = [
        {
            "spec": s.spec,
            "predicted": s.predicted,
            "parameters": s.candidate.cost.parameters,
            "flops": s.candidate.cost.flops,
        }
        for s in found.members
    ]
    return {
        "members": members,
        "additive": found.additive,
        "joint": found.joint,
        "linearised_alone": found.linearised_alone,
        "linearised_together": found.linearised_together,
        "parameters": found.cost.parameters,
        "flops": found.cost.flops,
        "peak_bytes": found.cost.peak_bytes,
    }


def print_set(found: ChosenSet) -> None:
    """Print a set: its members, what is predicted for it, and what it adds."""
    if not found.members:
        say("no set: none of the candidates is predicted to lower the loss")
        return
    say(f"a set of {len(found.members)}, each chosen given those before it")
    rows = [(s.spec, f"{s.predicted:+.5f}", f"{s.candidate.cost.parameters:+,}") for s in found.members]
    print_table(("member", ">Δ loss alone", ">Δ parameters"), rows)
    say(
        f"Δ loss: additive {found.additive:+.5f}, joint {found.joint:+.5f}, linearised {found.linearised_alone:+.5f}"
        f" with θ learned alone, {found.linearised_together:+.5f} with θ learned together"
    )
    say(f"Δ parameters {found.cost.parameters:+,}, Δ FLOPs {found.cost.flops:+,}")
