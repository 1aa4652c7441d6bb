"""How long it takes to choose 50 of 400 refined candidates, and whether the choice is that of an exhaustive search.

The networks are trained for a moment on scikit-learn's digits. In `units` the candidates are the splits and prunes of
all units of a perceptron, in `all` those of every morphism in a small residual network. The exhaustive search judges
every candidate in every step by the linearised network, one after another, and applies every set it considers, as the
selection did before it was made to judge a few; the sums over a set that both take are the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from archir.axes.infer import infer_widths
from archir.errors import PassError
from archir.growing.data import load_data
from archir.growing.examples import Examples
from archir.ir.graph import Graph
from archir.rewrite.compose import Compose
from archir.rewrite.morphism import Morphism, WidthMorphism
from archir.rewrite.pipeline import merged_changes, rewrite_together
from archir.scoring.families import Candidate
from archir.scoring.objective import make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.refine import LinearBatch, Refinement
from archir.scoring.score import score
from archir.scoring.scores import Score, Scores
from frontends.pytorch import trace
from passes.catalog import MORPHISMS
from passes.prune import Prune
from passes.split import Split
from tests.models.vision import BasicBlock, conv_block

REFINED, CHOSEN, BATCH, STEPS, ROUNDS = 400, 50, 64, 60, 3
EVERY: tuple[Morphism, ...] = tuple(kind() for kind in MORPHISMS if issubclass(kind, Morphism) and kind is not Compose)


def run() -> Mapping[str, float]:
    """Return the figures."""
    return {**selection("units", _perceptron, (Split(), Prune())), **selection("all", _residual, EVERY)}


def selection(name: str, build: Callable[[], nn.Module], morphisms: Sequence[Morphism]) -> dict[str, float]:
    """Return how long both searches take on one network, in seconds of the processor, and whether they choose alike."""
    torch.manual_seed(0)
    data = load_data("digits", validation=0.5, seed=0)
    train = data.train.take(slice(None))
    graph = _trained(build(), train)
    scored = _batches(data.validation.take(slice(0, 4 * BATCH)))
    options = ScoreOptions(steps=20, refine=REFINED)
    objective = make_objective(graph, "cross_entropy")
    scores = score(objective, scored, morphisms=morphisms, learn=_batches(train), options=options)
    times = []
    chosen: list[Score] = []
    for _ in range(ROUNDS):
        start = time.process_time()
        chosen = scores.choose(CHOSEN)
        times.append(time.process_time() - start)
    start = time.process_time()
    expected = _exhaustive(scores, CHOSEN)
    exhaustive = time.process_time() - start
    lost = scores.linearised(chosen) - scores.linearised(expected)
    return {
        f"selection_seconds_{name}": min(times),
        f"selection_seconds_{name}_exhaustive": exhaustive,
        f"selection_over_exhaustive_{name}": min(times) / exhaustive,
        f"selection_same_choice_{name}": float(chosen == expected),
        f"selection_loss_given_away_{name}": lost,
        f"selection_refined_{name}": scores.refined,
        f"selection_chosen_{name}": len(chosen),
    }


def _exhaustive(scores: Scores, most: int) -> list[Score]:
    """Return what is chosen when every step judges every candidate anew, and tries all that was chosen again."""
    refinement, choice = scores.refinement, scores.choice
    assert refinement is not None
    chosen: list[int] = []
    waiting, current = set(range(len(choice))), 0.0
    while len(chosen) < most:
        after = _judged(refinement, chosen, sorted(waiting))
        for candidate in sorted(waiting, key=lambda c: (after[c], c)):
            if not after[candidate] < current or _go_together(
                scores.graph, [choice[c].candidate for c in (*chosen, candidate)]
            ):
                break
            waiting.discard(candidate)
        else:
            break
        if not after[candidate] < current:
            break
        chosen.append(candidate)
        waiting.discard(candidate)
        current = after[candidate]
    return [choice[c] for c in chosen]


@torch.no_grad()
def _judged(refinement: Refinement, chosen: list[int], waiting: Sequence[int]) -> dict[int, float]:
    """Return the change of the linearised network's loss with each candidate added, one call of the loss for each."""
    found, examples = dict.fromkeys(waiting, 0.0), sum(len(b.flat) for b in refinement.batches)
    for batch in refinement.batches:
        moved, count = batch.flat + batch.pushed[chosen].sum(0), len(batch.flat)

        before = _loss(refinement, batch, batch.flat)
        for c in waiting:
            found[c] += (_loss(refinement, batch, moved + batch.pushed[c]) - before) * count / examples
    return found


def _loss(refinement: Refinement, batch: LinearBatch, flat: torch.Tensor) -> float:
    return float(refinement.objective.mean(flat, batch.outputs, batch.targets))


def _go_together(graph: Graph, candidates: Sequence[Candidate]) -> bool:
    """Say whether candidates go together; where some are no changes of widths, by applying all of them."""
    changes = [c.morphism for c in candidates if isinstance(c.morphism, WidthMorphism)]
    claimed = [call for c in candidates if c.morphism not in changes for call in c.family.claims]
    if len(set(claimed)) < len(claimed):
        return False
    like = [None if c.morphism in changes else c.family.perturbation.theta for c in candidates]
    try:
        if claimed:
            rewrite_together(graph, [(c.morphism, theta) for c, theta in zip(candidates, like, strict=True)])
            return True
        return all(
            change.source for change in merged_changes(infer_widths(graph), [(m, None) for m in changes]).values()
        )
    except PassError:
        return False


def _batches(examples: Examples) -> list[tuple[torch.Tensor, torch.Tensor]]:
    assert isinstance(examples.inputs, torch.Tensor) and isinstance(examples.targets, torch.Tensor)
    return list(zip(*(torch.split(t, BATCH) for t in (examples.inputs, examples.targets)), strict=True))


def _trained(module: nn.Module, examples: Examples) -> Graph:
    optimiser = torch.optim.Adam(module.parameters(), 4e-3)
    batches = _batches(examples)
    for step in range(STEPS):
        inputs, targets = batches[step % len(batches)]
        optimiser.zero_grad()
        torch.autograd.backward(F.cross_entropy(module(inputs), targets))
        optimiser.step()
    return trace(module.eval(), (batches[0][0][:2],))


def _perceptron() -> nn.Module:
    width = REFINED // 4
    hidden = (nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))


def _residual() -> nn.Module:
    blocks = (conv_block(1, 16), BasicBlock(16, 16), BasicBlock(16, 32, 2), BasicBlock(32, 32))
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
