"""What others do with a budget: contraction by Torch-Pruning on our schedule, and random search at the same cost."""

from __future__ import annotations

import itertools
import runpy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from archir.cost import Cost, cost, training_flops
from archir.emit.python import to_python
from archir.errors import GrowError
from archir.growing.batches import Batches, stream
from archir.growing.recalibration import recalibrate
from archir.growing.start import expand
from archir.growing.trainer import Trainer
from archir.growing.training import Batch, evaluate
from archir.ir.graph import Graph
from archir.scoring.budget import Budget
from frontends.pytorch import trace
from passes.prune import Prune
from tools.growth.allocations import budget, drawn, uniform
from tools.growth.tasks import Sizes, Task
from tools.growth.training import Outcome
from tools.rival_pruning import EACH, Scored, prune_until, score

LOOK = 0.05
"""The part of the steps after which a network that a random search drew is judged."""


def contracted(importance: str) -> Callable[[Task, int, float], Outcome]:
    """Return the arm that Torch-Pruning contracts where archir would: from the same network, at the same steps.

    It comes down to the same budgets, of parameters and of FLOPs, and stays as it is where it is within one already. It
    scores as many examples of the validation split as archir does. The optimiser begins anew with each smaller network,
    which has not the tensors of the one before. Where the library fails that is what is recorded.
    """

    def arm(task: Task, seed: int, rate: float) -> Outcome:
        options, limits = task.training(seed, rate), budget(task)
        found = expand(
            task.network(task.seed_sizes, seed),
            validation=task.dataset.validation,
            examples=len(task.dataset.train),
            loss=task.loss,
            budget=limits,
            morphisms=(Prune(),),
            options=options,
        )
        assert found is not None
        seen = task.dataset.validation.take(slice(options.score_examples))
        trainer, batches, step, spent = Trainer(found.graph, options), _batches(task, seed), 0, 0
        stops, sizes = options.growth_at(), [cost(found.graph)]
        torch.manual_seed(seed)
        for number, stop in enumerate([*stops, options.steps], 1):
            done = trainer.train(itertools.islice(batches, stop - step), task.loss, first_step=step)
            step, spent = stop, spent + training_flops(trainer.graph(), done.examples)
            stage = limits.stage(sizes[0], number, len(stops))
            if number <= len(stops) and not stage.allows(sizes[-1]):
                averaged = Batches(task.dataset.train, options.batch_size, seed)
                recalibrate(trainer.module, itertools.islice(stream(averaged), options.recalibrate_batches))
                spent += cost(trainer.graph()).flops * options.recalibrate_batches * options.batch_size
                spent += training_flops(trainer.graph(), len(seen) + min(len(seen), EACH))
                scored = score(_real(trainer.graph()), seen, task.loss)
                small = _within(stage, scored, _inputs(task), importance)
                trainer = Trainer(small, options)
                sizes.append(cost(small))
        trainer = trainer.averaged(task.dataset.train)
        notes = {"parameters": [c.parameters for c in sizes], "flops": [c.flops for c in sizes]}
        return Outcome(trainer.graph(), trainer.module.eval(), spent, (), notes)

    return arm


def searched(factor: float) -> Callable[[Task, int, float], Outcome]:
    """Return the arm that draws allocations at random for so many times the FLOPs of training the uniform network.

    The uniform network, which is the first, and others are trained for `LOOK` of the steps each; the best of them on
    the validation split then goes on to the end.
    """

    def arm(task: Task, seed: int, rate: float) -> Outcome:
        steps, options = round(LOOK * task.options.steps), task.training(seed, rate)
        whole = training_flops(task.network(uniform(task), seed), options.steps * options.batch_size)
        spent, best = 0, None
        losses: list[float | None] = []
        for number, sizes in enumerate(_allocations(task, seed)):
            graph = task.network(sizes, seed)
            look = training_flops(graph, steps * options.batch_size)
            if spent and spent + look + whole * (1 - LOOK) > factor * whole:
                break
            trainer, batches = Trainer(graph, options), _batches(task, seed)
            torch.manual_seed(seed)
            spent += look
            losses.append(None)
            with suppress(GrowError):  # one that diverges is out of the question
                trainer.train(itertools.islice(batches, steps), task.loss)
                found = evaluate(trainer.averaged(task.dataset.train).module, task.dataset.validation, task.loss)
                losses[-1] = found.loss
                if best is None or task.score(found) > best[0]:
                    best = task.score(found), trainer, batches, number
        if best is None:
            raise GrowError("every network that was drawn diverges")
        _, trainer, batches, kept = best
        done = trainer.train(itertools.islice(batches, options.steps - steps), task.loss, first_step=steps)
        spent += training_flops(trainer.graph(), done.examples)
        trainer = trainer.averaged(task.dataset.train)
        return Outcome(trainer.graph(), trainer.module.eval(), spent, (), {"losses": losses, "kept": kept})

    return arm


def _within(limits: Budget, scored: Scored, example: torch.Tensor, importance: str) -> Graph:
    """Return the largest network that Torch-Pruning makes within the limits, by a few parts in a hundred.

    Raises:
        GrowError: it makes none.
    """
    unit = cost(trace(scored.net, (example,))).flops / _products(scored.net, example)

    def fits(within: Budget, net: nn.Module) -> bool:
        parameters = sum(p.numel() for p in net.parameters())
        return within.allows(Cost(parameters, round(unit * _products(net, example))))

    # What is no product of matrices is not counted there, so that the FLOPs may be a little more.
    for part in (1.0, 0.99, 0.98, 0.96, 0.92):
        net = prune_until(scored, example, importance, partial(fits, limits.scaled(part)))
        small = trace(net, (example,))
        if limits.allows(cost(small)):
            return small
    raise GrowError(f"no network pruned by {importance} is within {limits}")


def _products(net: nn.Module, example: torch.Tensor) -> int:
    """Return the FLOPs of the products of matrices and the convolutions of a network."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(example)
    return int(counter.get_total_flops())


def _allocations(task: Task, seed: int) -> Iterator[Sizes]:
    """Yield the uniform allocation, and random ones, others for each seed."""
    yield uniform(task)
    for number in itertools.count(1000 * (seed + 1)):
        yield drawn(task, number)


def _batches(task: Task, seed: int) -> Iterator[Batch]:
    options = task.training(seed, task.rate)
    return stream(Batches(task.dataset.train, options.batch_size, seed, options.augmentation))


def _inputs(task: Task) -> torch.Tensor:
    inputs = task.dataset.train.take(slice(2)).inputs
    assert isinstance(inputs, torch.Tensor)
    return inputs


def _real(graph: Graph) -> nn.Module:
    """Return a network as modules of torch, which Torch-Pruning asks for."""
    with tempfile.TemporaryDirectory() as folder:
        module = runpy.run_path(str(to_python(graph, Path(folder)).path))["load"]()
    assert isinstance(module, nn.Module)
    return module
