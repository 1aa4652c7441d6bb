"""A growth step that was decided on and is yet to be taken: what it is predicted to do, checked and applied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn, optim

from archir.cost import Cost, cost
from archir.errors import GrowError
from archir.growing.device import device_of
from archir.growing.given_batches import given_batches
from archir.growing.growth import Growth, take_step
from archir.growing.loop import (
    GrownAverage,
    Schedulers,
    check_average,
    check_optimiser,
    check_schedulers,
    grown_average,
    grown_optimiser,
    part_of,
    take_over,
)
from archir.growing.options import GrowOptions
from archir.growing.step import StepContext
from archir.growing.step_batches import deal
from archir.growing.training import evaluate
from archir.growing.unwrapped import check_unwrapped
from archir.growing.write_back import Writing, taken_back_on_failure, write_into
from archir.ir.graph import Graph, Patch
from archir.rewrite.morphism import Morphism
from archir.scoring.batch_statistics import with_batch_statistics
from archir.scoring.batches import AnyBatch
from archir.scoring.budget import Budget
from archir.scoring.losses import Loss, LossFunction
from archir.scoring.objective import Objective, make_objective
from archir.scoring.scores import Score


@dataclass(frozen=True)
class Check:
    """The true loss of a network before and after a growth step, on the same examples.

    Attributes:
        before: mean loss before.
        after: mean loss after.
    """

    before: float
    after: float

    @property
    def change(self) -> float:
        """What the step does to the loss; in nats for likelihoods."""
        return self.after - self.before


@dataclass(frozen=True)
class Plan:
    """A growth step for a model as it was when the step was decided on.

    Attributes:
        growth: what the step does; see `archir.growing.growth.Growth`.
        table: the scores of the candidates the set was chosen from, best first.
    """

    growth: Growth
    table: tuple[Score, ...] = field(repr=False)
    _objective: Objective = field(repr=False)

    @property
    def before(self) -> Graph:
        """The network the step is for."""
        return self._objective.graph

    @property
    def graph(self) -> Graph:
        """The network after the step; as it was if nothing is to be done."""
        return self.growth.graph

    @property
    def specs(self) -> tuple[str, ...]:
        """The rewrites it consists of; none if nothing keeps its promise, and `why` says so."""
        return self.growth.specs

    @property
    def predicted(self) -> float | None:
        """Predicted change of the loss on the examples the step was chosen on, in nats for likelihoods.

        None if nothing is predicted or nothing is done. What compares with `realised` is `expected`.
        """
        return self.growth.predicted

    @property
    def expected(self) -> float | None:
        """Predicted change of the loss on the examples the step was checked on, in nats for likelihoods.

        It owes nothing to these. None where `predicted` is, and where the network comes down to its budget.
        """
        return self.growth.expected

    @property
    def realised(self) -> float:
        """True change of the loss on the examples the step was checked on, in nats for likelihoods."""
        return self.growth.realised

    @property
    def cost(self) -> Cost:
        """What the network costs after the step."""
        return self.growth.cost

    @property
    def why(self) -> str:
        """Why the set holds no more, or why nothing is to be done."""
        return self.growth.why

    def check(self, batches: Iterable[AnyBatch]) -> Check:
        """Return the true loss before and after the step on other batches, in evaluation mode.

        Args:
            batches: pairs of inputs and targets, or mappings, as `archir.propose` takes them.

        Raises:
            GrowError: a loss is not finite, nothing is labelled, or code of the user's that makes the batches fails.
            ScoreError: there are no batches, they cannot be iterated, or one does not fit the network.
        """
        program, loss = self._objective.program, self._objective.loss
        given = given_batches(program, batches)

        def measure(graph: Graph) -> float:
            judged = with_batch_statistics(graph) if program.batch_statistics else graph
            return evaluate(judged.module(), given, loss, coupled=self._objective.coupled).loss

        return Check(measure(self.before), measure(self.graph))

    def apply(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer | None = None,
        *,
        scheduler: Schedulers = None,
        ema: nn.Module | None = None,
        in_place: bool = False,
    ) -> tuple[nn.Module, Any]:
        """Return the model after the step and an optimiser of it that goes on where the other one is.

        The model is a new module with the names of the old one, its modes, and what of it is frozen, but without its
        hooks and the methods and attributes of classes of the user's. The model and the optimiser that are given stay
        as they are, and no longer belong to the loop. All groups of the optimiser are kept with their options; see
        `archir.growing.parameter_groups` for where new parameters go, and
        `archir.growing.optimiser_state.carry_state` for what becomes of its state. Gradients are left out, so it is
        called between steps. A `GradScaler` goes on as it is. Where nothing is to be done all is returned as it is.

        In place, where only widths change, the new weights and sizes are put into the model, the average and the
        optimiser that are given; see `archir.growing.write_back.write_into`.

        Args:
            model: the model the step was decided on, its weights as they were then.
            optimizer: its optimiser, any of `torch.optim` but `LBFGS`; None if there is none.
            scheduler: its schedulers, one or several, which are bound to the optimiser that is returned, and so are
                those that they hold.
            ema: a moving average of the model, such as `torch.optim.swa_utils.AveragedModel`, which goes on in place.
            in_place: change the model and the optimiser that are given, and return these.

        Raises:
            GrowError: the model is wrapped, or is not that of the plan; the optimiser or the average is not that of the
                model, or a scheduler not that of the optimiser, or it holds it under several names; something cannot be
                carried over; or, in place, more than widths changes, or a size is written into the code of the model.
                Nothing has changed then.
        """
        check_same(model, self.before)
        if optimizer is not None:
            check_optimiser(optimizer, model)
        schedulers = check_schedulers(scheduler, optimizer, in_place=in_place)
        if ema is not None:
            check_average(ema, model)
        rewriting = self.growth.rewriting
        if rewriting is None:
            return model, optimizer
        if in_place:
            self._put(rewriting, model, [] if optimizer is None else [optimizer], [] if ema is None else [ema])
            return model, optimizer
        grown = in_the_manner_of(model, rewriting.after)
        found = None if optimizer is None else grown_optimiser(optimizer, model, rewriting, grown)
        average: GrownAverage | None = None if ema is None else grown_average(ema, model, rewriting, grown)
        for one in schedulers:
            one.optimizer = found
        if average is not None:
            average.put()
        return grown, found

    def put_into(
        self, model: nn.Module, optimizers: Sequence[optim.Optimizer] = (), averages: Sequence[nn.Module] = ()
    ) -> None:
        """Put the step into a part of what is trained, in place, where only widths change.

        As `apply` does, but with any number of optimisers and averages; the optimisers may hold parameters of other
        modules, too, which stay as they are. Schedulers and whatever else is bound to an optimiser need nothing.

        Args:
            model: the model the step was decided on, its weights as they were then.
            optimizers: those that hold some of its parameters.
            averages: moving averages of it.

        Raises:
            GrowError: as `apply` does. Nothing has changed then.
        """
        check_same(model, self.before)
        parts = [part_of(one, model) for one in optimizers]
        for part in parts:
            check_optimiser(part, model)
        if self.growth.rewriting is not None:
            self._put(self.growth.rewriting, model, optimizers, averages)

    def _put(
        self,
        rewriting: Patch,
        model: nn.Module,
        optimizers: Sequence[optim.Optimizer],
        averages: Sequence[nn.Module],
    ) -> None:
        grown = in_the_manner_of(model, rewriting.after)
        parts = [part_of(one, model) for one in optimizers]
        found = [grown_optimiser(part, model, rewriting, grown) for part in parts]
        averaged = [grown_average(one, model, rewriting, grown) for one in averages]
        writings: list[Writing] = []
        with taken_back_on_failure(writings):
            writings.append(write_into(model, self.before, grown, self.graph))
            for average in averaged:
                writings.append(write_into(average.inner, self.before, average.module, self.graph))
        for optimizer, part, its in zip(optimizers, parts, found, strict=True):
            take_over(optimizer, part, its)

    def __str__(self) -> str:
        was, now = self.growth.before, self.growth.cost
        checked = "on the examples it was checked on"
        if self.expected is not None:
            told = f"{self.expected:+.4f} predicted, {self.realised:+.4f} realised {checked}"
        elif self.predicted is not None:
            chosen = "on those it was chosen on"
            told = f"{self.realised:+.4f} realised {checked}, {self.predicted:+.4f} predicted {chosen}"
        else:
            told = f"nothing predicted, {self.realised:+.4f} realised {checked}"
        return "\n".join(
            [
                *(self.specs or (f"nothing is to be done: {self.why}",)),
                f"parameters {was.parameters:,} -> {now.parameters:,}, FLOPs {was.flops:,} -> {now.flops:,}",
                f"loss: {told}",
            ]
        )


def make_plan(
    graph: Graph,
    batches: Iterable[AnyBatch],
    *,
    loss: str | LossFunction | Loss,
    budget: Budget,
    morphisms: Sequence[Morphism],
    options: GrowOptions,
    learn: Iterable[AnyBatch] | None = None,
    check: Iterable[AnyBatch] | None = None,
) -> Plan:
    """Decide on a growth step: learn θ, score, select a set within a budget, check it; see `archir.propose`.

    Raises:
        GrowError: there is no budget, or there are too few batches.
        ScoreError: the loss is unknown, not finite, or does not fit a batch; or the graph is noisy.
    """
    budget = budget.resolved(cost(graph))
    if not budget.limits:
        raise GrowError("growth needs a budget", hint="give a limit on parameters, FLOPs, peak bytes or latency")
    objective = make_objective(graph, loss, batch_statistics=options.batch_statistics)
    size, most, steps = options.batch_size, options.score_examples, options.learn_steps
    dealt = deal(objective, batches, size=size, most=most, steps=steps, learn=learn, check=check)
    if options.compensate is None:
        options = replace(options, compensate=True)
    step = StepContext(graph, dealt, objective.loss, budget, options, morphisms, options.seed)
    growth, scores = take_step(step)
    return Plan(growth, scores.table, objective)


def check_same(model: nn.Module, graph: Graph) -> None:
    """Check that a model holds what a graph does, number by number.

    Raises:
        GrowError: it is wrapped, has other tensors, or has been trained, moved or changed since.
    """
    if not isinstance(model, nn.Module):
        raise GrowError(f"a model is an nn.Module, not a {type(model).__name__}")
    check_unwrapped(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    own = {**parameters, **dict(model.named_buffers(remove_duplicate=False))}
    stored = {name for name, node in graph.by_name.items() if node.parameter and node.parameter.kind == "parameter"}
    wrong = [f"{name} is not in the model" for name in sorted(stored - parameters.keys())]
    wrong += [f"{name} is not in the plan" for name in sorted(parameters.keys() - stored)]
    for name, tensor in own.items():
        if name in graph.by_name:
            known = graph.tensor(name)
            alike = tensor.shape == known.shape and tensor.dtype == known.dtype
            if not alike:
                wrong.append(
                    f"{name} was {list(known.shape)} of {known.dtype}, is {list(tensor.shape)} of {tensor.dtype}"
                )
            elif not torch.equal(tensor.detach(), known.to(tensor.device)):
                wrong.append(f"{name} holds other numbers")
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise GrowError(
            "this is not the model that the plan was made for, as it was then",
            why="; ".join(wrong[:5]) + more,
            hint="apply a plan before the next step of training, to the model it was made for, or propose anew",
        )


def in_the_manner_of(model: nn.Module, graph: Graph) -> nn.Module:
    """Return the module of a graph, where a model is, in its modes, and with the same parameters frozen."""
    grown: nn.Module = graph.module()
    grown.to(device_of(model))
    frozen = {name: not p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
    for name, parameter in grown.named_parameters(remove_duplicate=False):
        if name in frozen:
            parameter.requires_grad_(not frozen[name])
    parts = dict(model.named_modules())
    for name, part in grown.named_modules():
        part.training = parts[name].training if name in parts else model.training
    return grown
