"""What is done with a network, task by task, to see how the cost of each grows with its size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import TypeVar

import torch

from archir.axes.infer import infer_widths
from archir.growing.examples import Examples
from archir.growing.grow import grow_graph
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.run import Checkpoint, RunDirectory, create_run
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.ir.structure import structure_of
from archir.ir.verify import verify, verify_patch
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism, Site
from archir.rewrite.reference import refer
from archir.rewrite.set_cost import cost_of
from archir.scoring.budget import Budget
from archir.scoring.losses import find_loss
from archir.scoring.objective import make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.score import score
from archir.scoring.screen import screen
from passes.catalog import MORPHISMS, morphisms
from passes.residual_branch import ResidualBranch
from passes.split import Split

Act = Callable[[], object]
Found = TypeVar("Found")

EXAMPLES, CLASSES, FEATURES = 16, 4, 8
LEARN_STEPS, REFINE, UNITS = 2, 16, 4
"""Steps of learning θ, candidates refined, and for how many units of an inner width growth has room."""

EVERY: tuple[Morphism, ...] = tuple(found for kind in MORPHISMS if isinstance(found := kind(), Morphism))
"""All kinds of rewrite that have candidates, with the options they have unless others are asked for."""


def fresh(graph: Graph) -> Graph:
    """Return the same graph with nothing known of it yet."""
    return Graph(graph.name, structure_of(graph.nodes), graph.tensors, graph.signature)


def analysed(graph: Graph) -> Graph:
    """Return the same graph with nothing known of it but its widths, and the order of its nodes."""
    found = fresh(graph)
    infer_widths(found)
    return found


def tasks(graph: Graph, folder: Path) -> Mapping[str, Callable[[], Act]]:
    """Return for each task by name what prepares it, and returns what is to be timed.

    Args:
        graph: a residual network of `tools.residual`, its weights small.
        folder: where to keep checkpoints; it need not be there.
    """
    torch.manual_seed(0)
    batch = torch.randn(EXAMPLES, FEATURES), torch.randint(0, CLASSES, (EXAMPLES,))
    split = _split(graph)
    stream = Split(_of_most_places(graph), (0,))
    run, numbers = create_run(folder, ""), count()
    checkpoint = Checkpoint(0, graph, {f"momentum.{n}": graph.tensor(n) for n in graph.by_name}, {})
    run.save(checkpoint)

    def candidates() -> Act:
        copy = analysed(graph)
        return lambda: sum(len(site.members) for kind in EVERY for site in kind.sites(copy))

    def one() -> Act:
        objective = make_objective(analysed(graph), "cross_entropy")
        (site,) = (s for s in _sites(split, objective.graph) if s.label == split.width)
        perturbation = split.perturbation(objective.graph, site)
        assert not isinstance(perturbation, Miss)
        values = {Value(i): tensor for i, tensor in objective.graph.tensors.items()}
        theta = perturbation.initial_theta(values, 0)
        return lambda: screen(objective, [perturbation], [theta], [batch])

    def score_all() -> Act:
        objective = make_objective(analysed(graph), "cross_entropy")
        options = ScoreOptions(steps=LEARN_STEPS, refine=REFINE)
        return lambda: score(objective, [batch], morphisms=morphisms(), options=options)

    def verify_rewrite() -> Act:
        patch = split.patch(analysed(graph))
        return lambda: verify_patch(patch, patch.touched)

    def write() -> Act:
        copy = Checkpoint(next(numbers) % 2, fresh(graph), checkpoint.tensors, {})
        return lambda: run.save(copy)

    return {
        "analyse": lambda: _on(fresh(graph), infer_widths),
        "find": candidates,
        "perturb": lambda: _on(analysed(graph), lambda g: _perturb(split, g)),
        "screen": one,
        "score": score_all,
        "apply": lambda: _on(analysed(graph), split.patch),
        "apply widest": lambda: _on(analysed(graph), stream.patch),
        "splice": lambda: _on(analysed(graph), _splice(graph).patch),
        "verify patch": verify_rewrite,
        "verify": lambda: _on(fresh(graph), verify),
        "write": write,
        "read": lambda: lambda: RunDirectory(folder).load(0),
        "grow": lambda: _on(fresh(graph), lambda g: _grow(g, UNITS * _unit_cost(graph, split))),
    }


def _on(graph: Graph, do: Callable[[Graph], object]) -> Act:
    return lambda: do(graph)


def _split(graph: Graph) -> Split:
    """Return a split of a unit in the middle of a network, of a width that stands in one block alone."""
    found = infer_widths(graph).free
    fewest = min(len(width.places) for width in found)
    inner = [width for width in found if len(width.places) == fewest]
    return Split(inner[len(inner) // 2].name, (0,))


def _of_most_places(graph: Graph) -> str:
    return max(infer_widths(graph), key=lambda width: len(width.places)).name


def _splice(graph: Graph) -> ResidualBranch:
    """Return the insertion of a branch in the middle of a network."""
    adds = [node for node in graph.calls if node.op == "aten.add.Tensor"]
    return ResidualBranch(refer(graph, Value(adds[len(adds) // 2].id)))


def _sites(split: Split, graph: Graph) -> list[Site]:
    widths = infer_widths(graph)
    return [Site(split.width, (split,) * widths[split.width].size, widths)]


def _perturb(split: Split, graph: Graph) -> None:
    (site,) = _sites(split, graph)
    assert not isinstance(split.perturbation(graph, site), Miss)


def _unit_cost(graph: Graph, split: Split) -> int:
    """Return the number of parameters that one unit more has."""
    return cost_of(graph, *_sites(split, graph)).parameters


def _grow(graph: Graph, room: int) -> None:
    """Train a network for two steps of a few examples, with one growth step between that splits few units."""
    generator = torch.Generator().manual_seed(0)
    found = [
        Examples(
            torch.randn(2 * EXAMPLES, FEATURES, generator=generator),
            torch.randint(0, CLASSES, (2 * EXAMPLES,), generator=generator),
        )
        for _ in range(2)
    ]
    options = GrowOptions(
        steps=2,
        batch_size=EXAMPLES,
        warmup=0,
        expansion=1.0,
        growth_steps=1,
        first_growth=0.5,
        last_growth=0.5,
        optimiser=OptimiserOptions("sgd", rate=1e-3),
        learn_steps=LEARN_STEPS,
        score_examples=EXAMPLES,
        recalibrate_batches=1,
        refine=REFINE,
        evaluate_every=0,
    )
    train, validation = found
    grow_graph(
        graph,
        train=train,
        validation=validation,
        budget=Budget(parameters=graph.parameter_count + room),
        morphisms=(Split(),),
        loss=find_loss("cross_entropy"),
        options=options,
    )
