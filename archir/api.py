"""The functions of the public face that need the passes, the axes and the frontends together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch.distributed import ProcessGroup

from archir.axes.infer import infer_widths
from archir.axes.widths import Widths
from archir.captured import Model, graph_of, graph_on, trace_on
from archir.cost import cost
from archir.errors import PassError, ScoreError
from archir.growing.compress import compress_graph
from archir.growing.device import find_device
from archir.growing.examples import Split
from archir.growing.given import Given, split_of
from archir.growing.grow import Run, checked_options, grow_graph
from archir.growing.input_types import input_types
from archir.growing.log import Listener
from archir.growing.options import GrowOptions
from archir.growing.reading import each_batch
from archir.ir.graph import Graph
from archir.kinds import COMPRESSING, Kinds, Passes, named_passes
from archir.kinds import morphisms as find_morphisms
from archir.plugins import Plugin, Registry, find_passes
from archir.rewrite.pipeline import apply_passes
from archir.rewrite.spec import format_spec
from archir.scoring.batches import AnyBatch
from archir.scoring.budget import Budget
from archir.scoring.compensate import compensated
from archir.scoring.families import Candidate, Family
from archir.scoring.losses import Loss, LossFunction
from archir.scoring.objective import Curvature, make_objective
from archir.scoring.options import Price, ScoreOptions
from archir.scoring.processes import Processes
from archir.scoring.program import Inputs
from archir.scoring.ranges import CLOSED, Real, checked
from archir.scoring.score import score as score_candidates
from archir.scoring.scores import Scores
from archir.scoring.strategies.registry import DEFAULT
from archir.scoring.strategies.strategy import Strategy
from archir.scoring.surroundings import as_if_alone
from archir.scoring.targets import Targets
from passes.prune import Prune


def widths(model: Model, example: Inputs | None = None) -> Widths:
    """Return the widths of a graph: the free ones, and through `.frozen` the others with their reasons.

    Args:
        model: the graph, or a module.
        example: what a module is called with, to capture it.

    Raises:
        CaptureError: a module comes without an example, or cannot be captured.
    """
    return infer_widths(graph_of(model, example))


def passes(plugins: Iterable[Plugin] = (), *, base: Path = Path()) -> Registry:
    """Return passes by name: those that come with archir, those of installed packages, and those of plugins.

    An installed package offers its passes by an entry point of the group `archir.passes`.

    Args:
        plugins: modules whose passes are added (`"package.module"`, `"path/to/file.py"`, or the module itself), or
            passes.
        base: folder that the paths of files start from; modules are looked for there, too.

    Raises:
        FileError: there is no such file.
        PassError: a module cannot be loaded or defines no pass, a pass is not made as passes are, or its name is taken.
    """
    return find_passes(plugins, base=base)


def apply(model: Model, passes: Passes, *, registry: Registry | None = None, example: Inputs | None = None) -> Graph:
    """Apply passes, given as text (`"split{width=w3, units=[5]}; prune{width=w1, units=[0]}"`) or as objects.

    Args:
        model: the graph, or a module.
        passes: what to apply, one after the other: a text, an object, or a list of such.
        registry: the passes a text may name; those of `archir.passes()` if not given.
        example: what a module is called with, to capture it.

    Raises:
        CaptureError: a module comes without an example, or cannot be captured.
        ParseError: a text is not a specification.
        PassError: a pass does not apply.
    """
    return apply_passes(graph_of(model, example), named_passes(passes, registry=registry))


@checked(ScoreError, "these options are out of range")
@dataclass(frozen=True, config=CLOSED)
class _Compensation:
    """How removed units are compensated for."""

    ridge: Real


@as_if_alone()
def prune_with_compensation(
    model: Model,
    batches: Iterable[tuple[Inputs, Targets] | Mapping[str, Any]],
    prunes: str | Prune | Sequence[str | Prune],
    *,
    ridge: float = 1e-4,
) -> Graph:
    """Remove units, and let the weights of those that stay take over what they gave, by least squares.

    Args:
        model: the graph, or a module, which is captured on the first batch.
        batches: pairs of inputs and targets, or mappings with an entry of targets; these are not looked at.
        prunes: the units to remove, as text (`"prune{width=w3, units=[5]}"`), as objects, or a list of such; all are
            those of the graph as it is given.
        ridge: of the least squares, relative to the mean square of the activations.

    Raises:
        CaptureError: a module cannot be captured.
        ParseError: a text is not a specification, or names other passes than prune.
        PassError: a unit is not there, none would be left, or something else is given than prunes.
        ScoreError: there are no batches, the graph is noisy in evaluation mode, or the ridge is no number
            from 0; or it is called within `torch.inference_mode`.
    """
    options = _Compensation(ridge=ridge)
    chosen: list[Prune] = []
    for pass_ in named_passes(prunes, registry={Prune.name: Prune}):
        if not isinstance(pass_, Prune):
            raise PassError(f"{format_spec(pass_)} removes no units", hint="give prunes")
        chosen.append(pass_)
    graph, given = graph_on(model, batches)
    return compensated(graph, given, chosen, ridge=options.ridge)


def candidates(model: Model, morphisms: Kinds | None = None, *, example: Inputs | None = None) -> list[Candidate]:
    """Return every candidate rewrite of a graph, with its cost.

    Args:
        model: the graph, or a module.
        morphisms: the kinds of rewrite; split and prune if not given.
        example: what a module is called with, to capture it.

    Raises:
        CaptureError: a module comes without an example, or cannot be captured.
        ParseError: a text is no specification, or names no known pass.
        PassError: one is no morphism, or there is none.
    """
    graph, found = graph_of(model, example), list[Candidate]()
    for morphism in find_morphisms(morphisms):
        for site in morphism.sites(graph):
            found += Family(graph, morphism, site, graph).candidates
    return found


@as_if_alone()
def score(
    model: Model,
    batches: Iterable[AnyBatch],
    *,
    morphisms: Kinds | None = None,
    loss: str | LossFunction | Loss = "cross_entropy",
    learn: Iterable[AnyBatch] | None = None,
    steps: int = 100,
    rate: float = 0.05,
    radius: float = 0.5,
    refine: int = 64,
    refine_most: int = 512,
    chunk: int | None = None,
    price: Price | None = None,
    budget: Budget | None = None,
    curvature: Curvature = Curvature.SAMPLED,
    batch_statistics: bool = False,
    strategy: str | Strategy = DEFAULT,
    shortlist: int = 32,
    seed: int = 0,
    group: ProcessGroup | None = None,
) -> Scores:
    """Predict what every candidate rewrite of a graph, and any set of them, would do to the loss.

    Args:
        model: the graph, batch statistics recalibrated; or a module, which is captured on the first batch.
        batches: pairs (inputs, targets) to score on, inputs a tensor, a tuple of arguments, or a mapping by name,
            targets a tensor, or several nested in tuples, lists and mappings if the loss is a callable, which gets
            them as they are; or mappings with an entry `labels`, `label`, `targets` or `target`, such as a DataLoader
            may give. NumPy's arrays are taken as tensors, their fractions as those of the weights.
        morphisms: the kinds of rewrite; split and prune if not given.
        loss: name of a loss, or a callable of outputs and targets.
        learn: batches to learn θ on; those scored on if not given, and the predictions are then optimistic.
        steps: see `ScoreOptions`, as for all that follow but the last.
        rate: step size of learning.
        radius: trust region.
        refine: number of candidates to refine one by one.
        refine_most: most sets that candidates are taken in where the budget asks for more, each alone if there are no
            more of them; two for each width at least.
        chunk: most of them that are refined at once.
        price: what cost is worth, in nats.
        budget: limits of the sets that are to be chosen, or parts of what the graph costs.
        curvature: how the second order is estimated.
        batch_statistics: normalise by the statistics of the batch.
        strategy: the strategy that scores and chooses.
        shortlist: number of candidates judged in each step of a selection.
        seed: seed of everything random.
        group: processes of `torch.distributed` that share the batches out among them. Each calls this with its own, as
            many to learn on as the others, and makes the same calls on the scores; all get the same results.

    Raises:
        CaptureError: a module cannot be captured.
        GrowError: a module is wrapped, or code of the user's that makes the batches fails.
        ScoreError: the loss is unknown, not finite, or does not fit a batch; there are no batches; the graph is
            noisy in evaluation mode; there is no such strategy; options are out of range; or it is called within
            `torch.inference_mode`.
    """
    graph, given = graph_on(model, batches)
    options = ScoreOptions(
        steps=steps,
        rate=rate,
        radius=radius,
        refine=refine,
        refine_most=refine_most,
        chunk=chunk,
        price=price,
        budget=None if budget is None else budget.resolved(cost(graph)),
        curvature=curvature,
        batch_statistics=batch_statistics,
        shortlist=shortlist,
        seed=seed,
    )
    objective = make_objective(graph, loss, batch_statistics=options.batch_statistics, group=group)
    kinds = find_morphisms(morphisms)
    learned = None if learn is None else each_batch(learn, "learn")
    return score_candidates(objective, given, morphisms=kinds, learn=learned, strategy=strategy, options=options)


def grow(
    model: Model,
    *,
    train: Given,
    validation: Given,
    budget: Budget | int,
    loss: str | Callable[..., torch.Tensor] | Loss = "cross_entropy",
    options: GrowOptions | None = None,
    morphisms: Kinds | None = None,
    device: str | None = None,
    directory: str | Path | None = None,
    config: str = "",
    resume: bool = False,
    on_event: Listener | None = None,
    group: ProcessGroup | None = None,
) -> Run:
    """Train a network and let it grow under a budget.

    Args:
        model: the seed; a module is traced with the first examples of `train`.
        train: examples the weights are learned on: a pair (inputs, targets) of tensors or arrays, a split of
            `archir.load_data`, a data set with a length such as those of `torch.utils.data`, a `DataLoader`, or what
            gives batches when it is iterated, or a function that makes it; see `archir.growing.given.split_of`. Those
            that are not in memory are read batch by batch, never whole. In a growth step, `learn_steps` batches of
            them are in memory, and twice `score_examples` of `validation`. Element types are brought into those of the
            model. The size of batches and their order are those of the options, whatever a loader says, and do not
            depend on how many processes read; what can only be iterated keeps its own order. What was interrupted goes
            on with the same batches.
        validation: examples everything is chosen on, likewise.
        budget: hard limits, or the largest number of trainable parameters.
        loss: name of a loss, or a callable of outputs and targets.
        options: how it is trained and grown.
        morphisms: the kinds of rewrite; those of `options.kinds` if not given.
        device: where all of it is computed, in place of `options.device`: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        directory: where to keep the run; nothing is kept if not given.
        config: text that tells what the run is, kept in the directory.
        resume: go on with the run in the directory.
        on_event: is told every event as it happens, those of networks that are trained beside the run included.
        group: processes of `torch.distributed` that carry it out together; see `archir.growing.grow.grow_graph`.

    Raises:
        CaptureError: the module cannot be captured.
        GrowError: the budget is below the seed, the loss is not finite, the options make no sense, what is given are no
            examples with targets, has no length, can be iterated only once, or is to be read to its end and has none,
            or code that reads it fails.
        ScoreError: the network cannot be scored, or examples that are mappings have no entry of targets.
        FileError: the directory cannot be written, holds another run, or is damaged; or examples are missing where they
            should be, differ in number or shape, or are not finite.
        ProcessError: processes were given different runs, have come to different networks, or one has failed or ended.
    """
    chosen = checked_options(options).on(device)
    find_device(chosen.device)
    split, held_out = _splits(model, train, validation)
    graph = model if isinstance(model, Graph) else trace_on(model, split)
    return grow_graph(
        graph,
        train=split,
        validation=held_out,
        budget=budget if isinstance(budget, Budget) else Budget(parameters=budget),
        morphisms=find_morphisms(chosen.kinds if morphisms is None else morphisms),
        loss=loss,
        options=chosen,
        directory=None if directory is None else Path(directory),
        config=config,
        resume=resume,
        on_event=on_event,
        processes=Processes(group, parts=True),
    )


def compress(
    model: Model,
    *,
    train: Given,
    validation: Given,
    budget: Budget,
    loss: str | Callable[..., torch.Tensor] | Loss = "cross_entropy",
    options: GrowOptions | None = None,
    morphisms: Kinds | None = None,
    device: str | None = None,
    directory: str | Path | None = None,
    config: str = "",
    resume: bool = False,
    on_event: Listener | None = None,
    group: ProcessGroup | None = None,
) -> Run:
    """Contract a trained network into a budget in some steps, and train it on in between and afterwards.

    Args:
        model: the trained network; a module is traced with the first examples of `train`.
        train: examples the weights are learned on, as `grow` takes them.
        validation: examples everything is chosen on, likewise.
        budget: hard limits, or parts of what the network costs: `Budget(flops=0.5)`.
        loss: name of a loss, or a callable of outputs and targets.
        options: how it is contracted, in `growth_steps` steps the first of which comes before any training, and
            trained: `steps` steps in all.
        morphisms: the kinds of rewrite; prune if not given.
        device: where all of it is computed, in place of `options.device`.
        directory: where to keep the run; nothing is kept if not given.
        config: text that tells what the run is, kept in the directory.
        resume: go on with the run in the directory.
        on_event: is told every event as it happens, those of networks that are trained beside the run included.
        group: processes of `torch.distributed` that carry it out together; see `archir.growing.grow.grow_graph`.

    Raises:
        CaptureError: the module cannot be captured.
        GrowError: the network is within the budget, or cannot be made as small; and as `grow`.
        ScoreError: as `grow`.
        FileError: as `grow`.
        ProcessError: as `grow`.
    """
    chosen = checked_options(options).on(device)
    find_device(chosen.device)
    split, held_out = _splits(model, train, validation)
    return compress_graph(
        model if isinstance(model, Graph) else trace_on(model, split),
        train=split,
        validation=held_out,
        budget=budget,
        morphisms=find_morphisms(COMPRESSING if morphisms is None else morphisms),
        loss=loss,
        options=chosen,
        directory=None if directory is None else Path(directory),
        config=config,
        resume=resume,
        on_event=on_event,
        processes=Processes(group, parts=True),
    )


def _splits(model: Model, train: Given, validation: Given) -> tuple[Split, Split]:
    """Return what a user gives to train and to validate a model on as splits."""
    names = input_types(model).keywords
    given = (("the training data", train), ("the validation data", validation))
    first, second = (split_of(data, where, names=names) for where, data in given)
    return first, second
