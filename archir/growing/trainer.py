"""A network in training: the graph, the live module made of it, and the optimiser, which change together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from archir.growing.batches import Batches, stream
from archir.growing.compiled import OFF, compiled
from archir.growing.device import CPU, find_device, moved, within_memory
from archir.growing.examples import Split
from archir.growing.optimiser_state import carry_state
from archir.growing.optimisers import optimiser_tensors, restore_optimiser
from archir.growing.options import GrowOptions
from archir.growing.precision import PREFIX as SCALE
from archir.growing.precision import make_scaler, restore_scaler, scaler_tensors
from archir.growing.recalibration import recalibrate
from archir.growing.sharding import shards, shared_out
from archir.growing.shards import whole
from archir.growing.training import Batch, Training, train, with_loss
from archir.growing.weight_average import PREFIX, carry_average, follow, restore_average, weights_of
from archir.ir.graph import Graph, Patch
from archir.scoring.losses import Loss
from archir.scoring.processes import ALONE, Processes


class Trainer:
    """A live module with its optimiser, the average of its weights, and the graph it was made from.

    Of several processes each may hold a shard of the module, of the state of the optimiser, and of the average, and
    nothing of the weights of the graph then; all of them ask for what is whole together.

    Attributes:
        device: where all of these are.
        program: the graph, with whatever weights: what the network costs is read off it.
        module: the live module.
        optimiser: its optimiser.
        rate: learning rate of each step, counted from 0; that of the options unless it is set.
    """

    def __init__(
        self,
        graph: Graph,
        options: GrowOptions,
        state: Mapping[str, torch.Tensor] | None = None,
        *,
        processes: Processes = ALONE,
    ) -> None:
        """Make the module of a graph, with a fresh optimiser and average, or those that go on from a state.

        All of it is on the device of the options, wherever the graph and the state are.

        Args:
            graph: the graph.
            options: how it is trained.
            state: what `state` returned.
            processes: those that train it together.

        Raises:
            GrowError: the graph has no trainable parameters, the state does not fit, there is no such device, or too
                little memory.
            ProcessError: another process has ended.
        """
        self.device = find_device(options.device)
        self._sharded = shards(options, processes) > 1
        graph = moved(graph, CPU if self._sharded else self.device)
        self._options = options
        self._processes = processes
        self._on_top: tuple[Loss, nn.Module] | None = None
        self.rate: Callable[[int], float] = options.rate
        with within_memory("hold what is trained"):
            self.module = live_module(graph, options)
            if self._sharded:
                shared_out(self.module, graph, processes, self.device)
                graph = without_parameters(graph)
            self.program = graph
            self.optimiser = options.optimiser.build(self.module)
            self._average = weights_of(self.module) if options.ema else {}
            self._scaler = make_scaler(self.module, options.precision)
            if state is not None:
                scale = {key: t for key, t in state.items() if key.startswith(SCALE)}
                restore_scaler(self._scaler, scale)
                state = {key: t for key, t in state.items() if key not in scale}
                averages = {key: t for key, t in state.items() if options.ema and key.startswith(PREFIX)}
                if options.ema:
                    self._average = restore_average(averages, self.module)
                restore_optimiser(self.optimiser, self.module, {k: t for k, t in state.items() if k not in averages})

    def train(
        self,
        batches: Iterable[Batch],
        loss: Loss,
        *,
        first_step: int = 0,
        on_step: Callable[[int, float], None] | None = None,
    ) -> Training:
        """Take one step on each batch as the options say; see `train` for the arguments and the errors."""

        def after(step: int, found: float) -> None:
            if self._average:
                follow(self._average, self.module, step, self._options.average_decay)
            if on_step is not None:
                on_step(step, found)

        if self._on_top is None or self._on_top[0] is not loss:
            self._on_top = loss, self._with_loss(loss)
        return train(
            self.module,
            batches,
            loss,
            self.optimiser,
            rate=self.rate,
            first_step=first_step,
            clip=self._options.clip,
            scaler=self._scaler,
            on_step=after,
            processes=self._processes,
            on_top=self._on_top[1],
        )

    def _with_loss(self, loss: Loss) -> nn.Module:
        """Return the module with its loss, compiled if that is asked for."""
        options = self._options
        run = None if options.compile == OFF else compiled(self.module, options.compile)
        return with_loss(self.module, loss, options.training_loss(loss), options.precision, self._processes, run=run)

    def graph(self, device: torch.device | None = None) -> Graph:
        """Return the graph with the weights as they are now, whole.

        Args:
            device: where they are to be; where the trainer is if not given.

        Raises:
            ProcessError: another process has ended.
        """
        return self._with(self.module.state_dict(), self.device if device is None else device)

    def _with(self, tensors: Mapping[str, torch.Tensor], device: torch.device) -> Graph:
        """Return the graph with other weights, on a device; one tensor that is held in shards after another."""
        found = {name: whole(t).contiguous().to(device) for name, t in tensors.items()}
        return moved(self.program.with_tensors(found), device)

    def averaged(self, examples: Split) -> Trainer:
        """Return the trainer of the averaged weights, or this one if none are averaged.

        Args:
            examples: training examples that its batch statistics are averaged over, where it has any: those of the
                weights are not its own.

        Raises:
            GrowError: see `recalibrate`.
        """
        if not self._average:
            return self
        options, names = self._options, self.program.by_name
        averaged = {names[name].id for name in self._average}
        rest = {name: t for name, t in self.module.state_dict().items() if names[name].id not in averaged}
        device = CPU if self._sharded else self.device
        graph, state = self._with({**rest, **self._average}, device), self.state(device)
        found = Trainer(graph, options, state, processes=self._processes)
        found.rate = self.rate
        if any(buffer.is_floating_point() for buffer in found.module.buffers()):
            batches = Batches(examples, options.batch_size, options.seed, None, self.device, self._processes)
            few = stream(batches, count=options.recalibrate_batches)
            recalibrate(found.module, few, processes=self._processes)
        return found

    def state(self, device: torch.device | None = None) -> dict[str, torch.Tensor]:
        """Return the state of the optimiser, the averaged weights and the scale of the loss, as named whole tensors.

        Args:
            device: where the first two are to be; where the trainer is if not given.

        Raises:
            ProcessError: another process has ended.
        """
        average = {PREFIX + name: whole(tensor).to(device, copy=True) for name, tensor in self._average.items()}
        return optimiser_tensors(self.optimiser, self.module, device) | average | scaler_tensors(self._scaler)

    def become(self, rewriting: Patch) -> Trainer:
        """Return the trainer of a grown graph.

        Momentum, second moments and averages are carried over like the weights; what is learned of the weights in the
        rewriting is added to the averages.
        """
        grown = Trainer(rewriting.after, self._options, processes=self._processes)
        grown.rate, grown._scaler = self.rate, self._scaler
        grown.optimiser.state.update(carry_state(self.optimiser, self.module, rewriting, grown.module))
        if self._average:
            grown._average = carry_average(self._average, rewriting, weights_of(grown.module))
        return grown


def without_parameters(graph: Graph) -> Graph:
    """Return a graph whose parameters have types, and no numbers: they are on the meta device."""
    kept = {n.id: graph.tensors[n.id] for n in graph.parameters if n.parameter and n.parameter.kind == "parameter"}
    return graph.with_stored({node: tensor.to("meta") for node, tensor in kept.items()})


def live_module(graph: Graph, options: GrowOptions) -> nn.Module:
    """Return the module of a graph as it is trained, its tensors laid out as the options say."""
    module: nn.Module = graph.module()
    if options.channels_last:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return module
