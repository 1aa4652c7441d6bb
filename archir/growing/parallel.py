"""A module with the loss of its training on top, the processes of a group each taking a part of every batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from archir.growing.device import within_memory
from archir.growing.examples import Inputs
from archir.growing.sharding import is_sharded
from archir.scoring.losses import LossFunction
from archir.scoring.processes import ALONE, Processes, exchanging
from archir.scoring.program import number_of_examples
from archir.scoring.targets import Targets, map_tensors, tensors_of


class TrainingStep(nn.Module):
    """Gives the loss of a batch, of which several processes may each have a part.

    A coupled loss is computed by each of them, of all outputs side by side, through the outputs of its own part alone.

    Attributes:
        module: the model.
    """

    def __init__(
        self,
        module: nn.Module,
        outputs_of: Callable[[nn.Module, Inputs], Any],
        minimised: LossFunction,
        gathers: Processes,
        shares: Processes = ALONE,
    ) -> None:
        """Put a loss on top of a module.

        Args:
            module: the model.
            outputs_of: calls it on the inputs of a batch.
            minimised: what is minimised.
            gathers: processes whose outputs are gathered before the loss; one alone for a loss of each part.
            shares: processes that hold shards of the module, whose gradients they have to have alike.
        """
        super().__init__()
        self.module = module
        self._outputs_of, self._minimised, self._gathers, self._shares = outputs_of, minimised, gathers, shares

    def forward(self, inputs: Inputs, targets: Targets) -> torch.Tensor:
        """Return the loss of a batch; `[]`."""
        outputs = self._outputs(inputs)
        if self._gathers.group is not None:
            examples = number_of_examples(targets)

            def whole(tensor: torch.Tensor) -> torch.Tensor:
                return gathered(tensor, self._gathers) if tensor.shape[:1] == (examples,) else tensor

            outputs, targets = map_tensors(whole, outputs), map_tensors(whole, targets)
        return self._minimised(outputs, targets)

    def _outputs(self, inputs: Inputs) -> Any:
        if self._shares.group is None:
            return self._outputs_of(self.module, inputs)
        with warnings.catch_warnings():
            # Nothing writes into them: the operators of a graph do not, and the loss writes into what stands for them.
            warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(.*\) returned a view", UserWarning)
            outputs = self._outputs_of(self.module, inputs)
        return differentiated_alike(outputs, self._shares)


def distributed(step: TrainingStep, processes: Processes) -> nn.Module:
    """Return a step whose gradients are means over the processes, or the same where there is one.

    Weights and buffers become those of the first process. What the loss of no process depends on has no gradient. The
    step of a module that is held in shards sees to all this by itself.

    Raises:
        ProcessError: another process has ended.
        GrowError: there is too little memory for the gradients that are sent.
    """
    if processes.group is None or is_sharded(step.module):
        return step
    # Nothing depends on it: DistributedDataParallel warns where it is to look for such and there is none.
    device = next((p.device for p in step.parameters()), None)
    step.register_parameter("unused", nn.Parameter(torch.zeros((), device=device)))
    with exchanging(), within_memory("share gradients out"), warnings.catch_warnings():
        # The name that takes its place is not in every torch that archir runs on.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        # Buffers are the same everywhere: statistics of batches are those of whole batches.
        return DistributedDataParallel(
            step, process_group=processes.group, broadcast_buffers=False, find_unused_parameters=True
        )


def differentiated_alike(outputs: Any, processes: Processes) -> Any:
    """Return outputs of which those have a gradient, perhaps of zeros, that the loss of any process depends on.

    Processes that hold shards exchange the gradients of a part of the module where it has any, as its outputs tell; so
    these are kept from what writes into them.
    """
    found = [t for _, t in tensors_of(outputs) if isinstance(t, torch.Tensor) and t.requires_grad]
    alike = iter(_Alike.apply(processes, *found) if found else ())  # type: ignore[no-untyped-call]
    return map_tensors(lambda t: next(alike) if t.requires_grad else t, outputs)


class _Alike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, processes: Processes, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.processes, ctx.shapes = processes, [torch.empty_like(t, device="meta") for t in tensors]
        ctx.set_materialize_grads(False)
        return tuple(t.detach() for t in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        used = [gradient is not None for gradient in gradients]
        # The loss depends on one at least.
        anywhere = ctx.processes.total(*used) if len(used) > 1 else used
        device = next(gradient.device for gradient in gradients if gradient is not None)
        return None, *(
            torch.zeros_like(like, device=device) if gradient is None and needed else gradient
            for gradient, like, needed in zip(gradients, ctx.shapes, anywhere, strict=True)
        )


def gathered(tensor: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Return the examples of all processes side by side; gradients reach those of this one alone."""
    found: torch.Tensor = _Gather.apply(tensor, processes)  # type: ignore[no-untyped-call]
    return found


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, processes: Processes) -> torch.Tensor:
        found, ctx.place = processes.gather(tensor)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0][ctx.place], None
