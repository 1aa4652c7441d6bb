"""Trains a module, and evaluates it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import nn

from archir.errors import DivergenceError, GrowError, NotFiniteError, ProcessError, ScoreError
from archir.growing.batches import Batches, Drawn
from archir.growing.device import device_of, too_little_memory, within_memory
from archir.growing.examples import Inputs, Split
from archir.growing.global_statistics import global_statistics
from archir.growing.parallel import TrainingStep, distributed
from archir.growing.precision import half_type, make_scaler, overflows
from archir.growing.ranks import in_step
from archir.growing.sharding import is_sharded
from archir.growing.shards import whole
from archir.growing.training_loss import Mixed, training_loss
from archir.ir.device_memory import attempt, is_out_of_memory
from archir.ir.running import failing_call
from archir.scoring.losses import NO_LABEL, Loss, LossFunction, class_axis, labels_of
from archir.scoring.processes import ALONE, Processes, exchanging, is_lost, lost
from archir.scoring.program import number_of_examples
from archir.scoring.targets import Targets, map_tensors

Batch = tuple[Inputs, Targets]


@dataclass(frozen=True)
class Training:
    """What a stretch of training did.

    Attributes:
        steps: number of steps taken.
        examples: number of examples seen.
        loss: mean loss over these examples, each under the weights it met; None if all batches were skipped.
        skipped: number of batches in which nothing is labelled, which change nothing.
        last: loss of the last step, under the weights before it; None where `loss` is.
        overflowed: number of the steps that changed no weight, for the scaled gradients were beyond float16.
    """

    steps: int
    examples: int
    loss: float | None
    skipped: int = 0
    last: float | None = None
    overflowed: int = 0


@dataclass(frozen=True)
class Metrics:
    """How a module does on a split.

    Attributes:
        loss: mean loss over the examples.
        accuracy: part of the labels predicted right; None where the targets are not labels, or the loss is coupled.
    """

    loss: float
    accuracy: float | None


def train(
    module: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    optimiser: torch.optim.Optimizer,
    *,
    rate: Callable[[int], float] | None = None,
    first_step: int = 0,
    clip: float | None = None,
    minimised: LossFunction | None = None,
    precision: str = "float32",
    scaler: torch.amp.GradScaler | None = None,
    on_step: Callable[[int, float], None] | None = None,
    processes: Processes = ALONE,
    on_top: nn.Module | None = None,
) -> Training:
    """Take one optimiser step on each batch, in training mode; a batch without any label is skipped.

    Several processes take the same steps, each on its part of every batch: gradients, losses and the statistics of
    batch normalisations are those of the whole batch.

    Args:
        module: what is trained; left in training mode.
        batches: pairs of inputs and targets, finitely many; of several processes each gives its parts.
        loss: what is minimised, or stands for it in messages.
        optimiser: holds the module's parameters.
        rate: learning rate of each step, counted from `first_step`; the optimiser's own if not given.
        first_step: number of the first step.
        clip: largest norm of the gradient of all parameters together, above 0; longer ones are scaled down.
        minimised: what is minimised in its place, if given; see `training_loss`.
        precision: `float32`; `bfloat16` or `float16` for outputs computed in it where that is safe; or `auto`, bfloat16
            on CUDA. In float16 the loss is scaled up, and a step whose gradients are then beyond it is left out.
        scaler: what scales the loss; a fresh one if not given.
        on_step: called after each step with its number and loss.
        processes: those that share the batches out among them.
        on_top: the module with its loss, made by `with_loss`, so that it need not be made for every call.

    Raises:
        DivergenceError: the loss or the gradient is not finite; the weights are those before that step.
        GrowError: the loss does not depend on the weights, the model rejects a batch, there are no batches, there is
            too little memory for one, or `clip` is not above 0.
        ScoreError: outputs and targets do not fit the loss.
        ProcessError: another process has failed or ended, or has other numbers of batches.
    """
    if clip is not None and not 0 < clip < math.inf:
        raise GrowError(f"the gradient cannot be clipped to a norm of {clip}", hint="give a number above 0")
    module.train()
    on_top = with_loss(module, loss, minimised, precision, processes) if on_top is None else on_top
    scaler = make_scaler(module, precision) if scaler is None else scaler
    step, examples, skipped, overflowed, total, last = first_step, 0, 0, 0, 0.0, None
    for inputs, targets in in_step(processes, batches):
        unlabelled = _is_unlabelled(targets.first if isinstance(targets, Mixed) else targets, loss)
        own = number_of_examples(targets)
        count, labelled = (int(n) for n in processes.total(own, not unlabelled))
        if not labelled:
            step, skipped = step + 1, skipped + 1
            continue
        if rate is not None:
            for group in optimiser.param_groups:
                group["lr"] = rate(step)
        optimiser.zero_grad(set_to_none=True)
        with exchanging(), global_statistics(processes):
            value: torch.Tensor = on_top(inputs, targets)
        with differentiating(loss, value):
            torch.autograd.backward(scaler.scale(_weighted(value, loss, own, count)))
        scaler.unscale_(optimiser)
        found = float(value.detach())
        if processes.group is not None:
            found = processes.total(found * own)[0] / count
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if not gradients:
            raise GrowError(f"the loss {loss.name} depends on none of the weights of the model")
        # Means, as DistributedDataParallel and FSDP leave them. A loss that is as many times larger instead would have
        # as many times less room in float16.
        for gradient in gradients if processes.size > 1 else ():
            gradient *= processes.size
        norm = whole(nn.utils.get_total_norm(gradients))
        finite = bool(torch.isfinite(norm))
        if not math.isfinite(found) or not (finite or overflows(scaler, gradients)):
            optimiser.zero_grad(set_to_none=True)
            raise DivergenceError(
                f"the loss is {found} and the norm of its gradient {float(norm)} at step {step}",
                step=step,
                loss=found,
                hint="lower the learning rate, or clip the gradient; the weights are those before this step",
            )
        if clip is not None and finite:
            nn.utils.clip_grads_with_norm_(module.parameters(), clip, norm)
        with within_memory("take a step of the optimiser"):
            scaler.step(optimiser)
        scaler.update()
        overflowed += not finite
        examples, total, last = examples + count, total + found * count, found
        if on_step is not None:
            on_step(step, found)
        step += 1
    if not examples and not skipped:
        raise GrowError("there are no batches to train on")
    mean = total / examples if examples else None
    return Training(step - first_step - skipped, examples, mean, skipped, last, overflowed)


def with_loss(
    module: nn.Module,
    loss: Loss,
    minimised: LossFunction | None,
    precision: str,
    processes: Processes,
    *,
    run: Callable[..., Any] | None = None,
) -> nn.Module:
    """Return a module that gives the loss of a batch, whose gradients are means over processes; see `train`.

    Args:
        module: what is trained.
        loss: the loss.
        minimised: what is minimised in its place, if given.
        precision: what the outputs are computed in.
        processes: those that share the batches out among them.
        run: what is called in place of the module, such as the same compiled.
    """
    minimised = training_loss(loss) if minimised is None else minimised
    outputs_of = partial(outputs_in, run=run, half=half_type(module, precision))
    gathers = processes if loss.coupled else ALONE
    shares = processes if is_sharded(module) else ALONE
    return distributed(TrainingStep(module, outputs_of, minimised, gathers, shares), processes)


def _weighted(value: torch.Tensor, loss: Loss, own: int, count: int) -> torch.Tensor:
    """Return the loss of a part such that its gradients, summed over the processes, are those of the whole batch.

    A coupled loss is that of the whole batch already, differentiated through the outputs of a part.
    """
    return value if loss.coupled or own == count else value * (own / count)


def outputs_in(
    module: nn.Module, inputs: Inputs, *, half: torch.dtype | None, run: Callable[..., Any] | None = None
) -> Any:
    """Return the outputs of a module, in float32 even where they were computed in half precision.

    Args:
        module: the module.
        inputs: a batch of inputs.
        half: the element type they are computed in where that is safe, if any.
        run: what is called in its place, if given.

    Raises:
        GrowError: the module rejects them, or there is too little memory.
    """
    run = module if run is None else run
    if half is None:
        return call(run, inputs)
    first = inputs if isinstance(inputs, torch.Tensor) else next(iter(inputs.values()))
    with torch.autocast(first.device.type, half):
        outputs = call(run, inputs)
    return map_tensors(lambda t: t.float() if t.dtype is half else t, outputs)


@contextmanager
def differentiating(loss: Loss, value: torch.Tensor) -> Iterator[None]:
    """Differentiate the loss of a batch within the block, whose errors are told as those of the loss.

    Raises:
        GrowError: it depends on nothing that is trained, cannot be differentiated, or there is too little memory.
        ProcessError: another process has ended.
    """
    if not value.requires_grad:
        raise GrowError(
            f"the loss {loss.name} does not depend on the weights",
            why="it is cut off from the outputs of the model: by detach, item, numpy, or no_grad",
            hint="make it of the outputs by operations of torch",
        )
    try:
        yield
    except ProcessError:
        raise
    except Exception as error:  # of any operator, or of the user's own backward
        if is_lost(error):
            raise lost(error) from error
        if is_out_of_memory(error):
            raise too_little_memory("differentiate the loss of a batch", "", error) from error
        why = f"{type(error).__name__}: {error}"
        raise GrowError(f"the loss {loss.name} cannot be differentiated", why=why) from error


def evaluate(
    module: nn.Module,
    batches: Drawn | Split,
    loss: Loss,
    *,
    batch_size: int = 256,
    coupled: bool = False,
    processes: Processes = ALONE,
) -> Metrics:
    """Return the loss and the accuracy of a module on a split, in evaluation mode, without gradients.

    Args:
        module: what is evaluated; its mode is left as it was.
        batches: the examples.
        loss: what is measured.
        batch_size: largest number of examples at once, where a split is given; the value of a coupled loss may
            depend on it. Where memory runs out, a batch is taken in halves, unless the module is held in shards: all
            processes gather them as often.
        coupled: whether the outputs for an example depend on the others of its batch, which is then taken whole.
        processes: those that share a split out among them, unless the loss is coupled; batches say so themselves.

    Raises:
        NotFiniteError: the loss is not finite.
        GrowError: nothing is labelled, the model rejects the inputs, or there is too little memory for a batch that
            cannot be halved.
        ScoreError: outputs and targets do not fit the loss.
        ProcessError: another process has failed or ended.
    """
    total, right, labels, labelled, examples = 0.0, 0, 0, False, 0
    shared = ALONE if loss.coupled else processes
    given = Batches(batches, batch_size, processes=shared) if isinstance(batches, Split) else batches
    chosen, among = replace(given, device=device_of(module)), given.processes
    uncut = coupled or loss.coupled or is_sharded(module)
    with evaluating(module), torch.no_grad():
        for inputs, targets in in_step(among, chosen):
            examples += number_of_examples(targets)
            for done in _judged(module, inputs, targets, loss, uncut=uncut):
                total, right, labels = total + done.loss, right + done.right, labels + done.labels
                labelled = labelled or not done.empty
    loss_sum, hit, counted, any_label, count = among.total(total, right, labels, labelled, examples)
    if not any_label:
        raise GrowError(f"no example of {chosen.source} has a label", why=f"every label is {NO_LABEL}")
    mean = loss_sum / count
    if not math.isfinite(mean):
        raise NotFiniteError(f"the loss on {chosen.source} is {mean}", hint="the weights have diverged: lower the rate")
    return Metrics(mean, hit / counted if counted else None)


@dataclass(frozen=True)
class _Judged:
    """What a batch gave.

    Attributes:
        loss: its loss times the number of its examples.
        right: how many labels are predicted right.
        labels: of so many.
        empty: whether no example has a label.
    """

    loss: float
    right: int
    labels: int
    empty: bool


def _judge(module: nn.Module, inputs: Inputs, targets: Targets, loss: Loss) -> _Judged:
    outputs = call(module, inputs)
    value, hits = float(loss(outputs, targets)) * number_of_examples(targets), _hits(outputs, targets, loss)
    right, labels = (0, 0) if hits is None else (int(hits.sum()), hits.numel())
    return _Judged(value, right, labels, _is_unlabelled(targets, loss))


def _judged(module: nn.Module, inputs: Inputs, targets: Targets, loss: Loss, *, uncut: bool) -> Iterator[_Judged]:
    """Yield what a batch gave, or both of its halves where there is too little memory."""
    count = number_of_examples(targets)
    if uncut or count < 2:
        yield _judge(module, inputs, targets, loss)
        return
    found = attempt(lambda: _judge(module, inputs, targets, loss))
    if found is not None:
        yield found[0]
        return
    for half in (slice(0, count // 2), slice(count // 2, count)):
        some, wanted = (map_tensors(itemgetter(half), part) for part in (inputs, targets))
        yield from _judged(module, some, wanted, loss, uncut=uncut)


def call(module: Callable[..., Any], inputs: Inputs) -> Any:
    """Return the outputs of a module, or of what stands for it, for one batch of inputs.

    Raises:
        GrowError: the module rejects them, or there is too little memory.
        ProcessError: another process has ended, of those that hold its weights.
    """
    try:
        return module(inputs) if isinstance(inputs, torch.Tensor) else module(**inputs)
    except (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        named = {"inputs": inputs} if isinstance(inputs, torch.Tensor) else inputs
        shapes = ", ".join(f"{name} {list(t.shape)} {t.dtype}" for name, t in named.items())
        place = failing_call(error)
        if is_lost(error):
            raise lost(error) from error
        if is_out_of_memory(error):
            raise too_little_memory("run the model on a batch", shapes, error) from error
        raise GrowError(
            "the model rejects a batch",
            where=f"{shapes}; {place}" if place else shapes,
            why=f"{type(error).__name__}: {error}",
        ) from error


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for the length of the block."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _is_unlabelled(targets: Targets, loss: Loss) -> bool:
    """Say whether no example of a batch has a label, where the loss takes labels."""
    labels = labels_of(targets, loss)
    return labels is not None and bool((labels == NO_LABEL).all())


def _hits(outputs: Any, targets: Targets, loss: Loss) -> torch.Tensor | None:
    """Return which labels are predicted right, None where there are no labels."""
    if not isinstance(outputs, torch.Tensor) or not isinstance(targets, torch.Tensor) or loss.coupled:
        return None
    if loss.name == "bce_with_logits":
        return (outputs > 0) == (targets.reshape(outputs.shape) > 0.5)
    if targets.is_floating_point() or loss.name == "mse":
        return None
    try:
        axis = class_axis(outputs, targets)
    except ScoreError:
        return None
    return (outputs.argmax(axis) == targets)[targets != NO_LABEL]
