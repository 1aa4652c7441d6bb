"""Growth within the `Trainer` of transformers: a callback that grows a model between two steps, and models loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn, optim

from archir.errors import FileError, GrowError
from archir.growing.stages import Stage, bring_to, from_data, to_data
from archir.growing.write_back import stored_tensors
from archir.integrations.growth_steps import GrowthCallback, anew, told
from archir.integrations.missing import not_installed
from archir.integrations.model_losses import loss_of_model
from archir.scoring.losses import Loss

try:
    from accelerate.optimizer import AcceleratedOptimizer
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import PreTrainedModel, TrainerCallback
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as error:
    raise not_installed(__name__, "trainer", error) from error

RECORD = "archir_growth"
"""What the sizes a model has grown to are called in its configuration."""

_WEIGHTS, _CONFIG = "model*.safetensors", "config.json"
"""Where a model is saved: the files of its weights, one or several, and its configuration."""

M = TypeVar("M", bound="PreTrainedModel")


class GrowCallback(GrowthCallback, TrainerCallback):
    """Grows a `PreTrainedModel`, or a part of it, while a `Trainer` trains it.

    After the steps that are asked for `archir.propose` decides on a growth step for the weights as they are, and what
    it decides on is put into the model in place: it stays an object of its class, with its methods. So only widths may
    change. The optimiser goes on with all it has gathered, and with it the scheduler and a `GradScaler`.

    By default θ is learned, and candidates are scored and checked, on batches of the training data, which are gone
    through in an order of their own (`archir.integrations.growth_steps.anew`), so that training sees the batches it
    would have seen; give held-out ones as `batches`, mappings with an entry
    `labels`, where there are some. The loss is that of the model
    (`archir.integrations.model_losses.loss_of_model`).

    What was done is put into `state.log_history`, as `growth_parameters`, `growth_expected` and `growth_realised`. The
    configuration of the model keeps the sizes of all stages, as `archir_growth`, so that they are wherever the model is
    saved. Weights that are loaded into the model, to resume or because they were the best, may be of any stage: it is
    brought to the sizes it had then. For a model as it was made these are looked for in `args.resume_from_checkpoint`
    and in the checkpoints in `args.output_dir`; one that is resumed from elsewhere, or made by `model_init`, is to be
    loaded by `load_grown` first.

    One process and one device: others are refused.
    """

    _seen = 0

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See to it that the model has its sizes before weights are loaded into it.

        Raises:
            GrowError: it is no `PreTrainedModel`.
        """
        model: Any = kwargs.get("model")
        is_known = isinstance(model, PreTrainedModel)
        if not is_known:
            raise GrowError(
                f"a {type(model).__name__} is no PreTrainedModel, whose configuration would keep the sizes it grows to",
                hint="give it a configuration, or take archir.propose in a loop of your own",
            )
        model.register_load_state_dict_pre_hook(_Bring(args.output_dir, args.resume_from_checkpoint))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note where training begins.

        Raises:
            GrowError: the trainer uses several devices, the optimiser is not that of the model, the model has no such
                part as is to grow, or no loss is given and that of the model is not known.
        """
        self._loss(kwargs["model"])
        shared = [name for name in ("fsdp", "deepspeed") if getattr(args, name, None)]
        if args.world_size > 1 or args.n_gpu > 1 or shared:
            how = " and ".join(shared) or f"{max(args.world_size, args.n_gpu)} devices"
            raise GrowError(
                "growth within a Trainer takes one device in one process",
                why=f"it uses {how}",
                hint="make one device visible, or take archir.propose in a loop of your own",
            )
        own = set(kwargs["model"].parameters())
        if any(p not in own for group in kwargs["optimizer"].param_groups for p in group["params"]):
            raise GrowError(
                "the optimiser holds parameters that are not the model's",
                why="it was made before the model was brought to the sizes of the checkpoint",
                hint="make it of the model that load_grown returns, or let the Trainer make it",
            )
        self._seen = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take a growth step where one is due.

        Raises:
            ArchirError: it cannot be taken; the model is as it was.
        """
        last, self._seen = self._seen, state.global_step
        if not self._steps.times.due(last, state.global_step):
            return
        model, loader = kwargs["model"], kwargs["train_dataloader"]
        loss = self._loss(model)
        with _plainly_called(model):
            plan, stages = self._steps.take(
                model,
                state.global_step,
                recorded(model.config),
                batches=lambda seed: anew(loader, seed),
                learn=None,
                optimizers=[_unwrapped(kwargs["optimizer"])],
                loss=loss,
            )
        if stages:
            setattr(model.config, RECORD, to_data(stages))
        state.log_history.append(
            {f"growth_{name}": value for name, value in told(plan).items()}
            | {"growth_specs": "; ".join(plan.specs) or plan.why, "epoch": state.epoch, "step": state.global_step}
        )

    def _loss(self, model: nn.Module) -> Loss | None:
        """Return the loss of the part that grows; None if one was given."""
        part = self._steps.part_of(model)
        causal = type(part).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        return loss_of_model(part, causal=causal) if self._steps.loss is None else None


def load_grown(model: M, folder: str | PathLike[str]) -> M:
    """Load the weights that were saved of a model into one as it is made, brought to the sizes it had grown to.

    It is what `from_pretrained` cannot do, for classes do not know of these sizes.

    Args:
        model: a model made as the one that has grown, such as `Kind(Kind.config_class.from_pretrained(folder))`.
        folder: a checkpoint of the trainer, or where the model was saved.

    Returns:
        The model, whose configuration tells of its growth.

    Raises:
        FileError: the folder holds no configuration or no weights, or they cannot be read.
        GrowError: it tells of no growth, or the model was made differently; the model is as it was then.
    """
    stages = _recorded_in(Path(folder))
    if not stages:
        raise GrowError("the configuration tells of no growth", where=str(folder), hint="load it by from_pretrained")
    tensors = _weights_in(Path(folder))
    made = recorded(model.config)[:1]
    wanted = stages[-1].over(made[0]) if made else stages[-1]
    own = model.state_dict(keep_vars=True)
    there = {id(own[name]) for name in tensors if name in own}  # what is tied is saved once
    wrong = [f"{name} is not in it" for name in tensors if name not in own]
    wrong += [f"{name} is not in the file" for name, tensor in own.items() if id(tensor) not in there]
    wrong += [] if wanted.fits(tensors) else ["the shapes are not those of the record"]
    if wrong:
        raise GrowError(
            "the weights are not those of the model",
            where=str(folder),
            why="; ".join(wrong[:5]) + (f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""),
            hint="make it with the same code and options",
        )
    bring_to(model, wanted)
    setattr(model.config, RECORD, to_data(stages))
    model.load_state_dict(tensors, strict=False)
    return model


def _weights_in(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors in the files of weights of a folder.

    Raises:
        FileError: there are none, or one cannot be read.
    """
    files = sorted(folder.glob(_WEIGHTS))
    if not files:
        raise FileError("there are no weights", where=str(folder / _WEIGHTS))
    found: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            found |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise FileError("the weights cannot be read", where=str(file), why=str(error)) from error
    return found


def recorded(config: Any) -> tuple[Stage, ...]:
    """Return the stages that a configuration tells of; none if the model has not grown.

    Raises:
        GrowError: what it tells is no record of growth steps.
    """
    found = getattr(config, RECORD, None)
    return () if found is None else from_data(found)


def _recorded_in(folder: Path) -> tuple[Stage, ...]:
    """Return the stages that the configuration in a folder tells of.

    Raises:
        FileError: there is none, or it cannot be read.
        GrowError: what it tells is no record of growth steps.
    """
    file = folder / _CONFIG
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise FileError("there is no configuration to be read", where=str(file), why=str(error)) from error
    found = config.get(RECORD) if isinstance(config, Mapping) else None
    return () if found is None else from_data(found)


class _Bring:
    """Brings a model to the sizes of weights that are loaded into it."""

    def __init__(self, output: str | None, resumed: object) -> None:
        self.output = output
        self.resumed = resumed

    def __call__(self, model: Any, state_dict: Mapping[str, torch.Tensor], prefix: str, *others: Any) -> None:
        if prefix or _fits(model, state_dict):
            return
        made = recorded(model.config)[:1]
        for stages in self._known(model):
            for number, stage in reversed(list(enumerate(stages))):
                if stage.fits(state_dict):
                    bring_to(model, stage.over(made[0]) if made else stage)
                    setattr(model.config, RECORD, to_data(stages[: number + 1]))
                    return

    def _known(self, model: Any) -> Iterator[tuple[Stage, ...]]:
        """Yield the stages of the model, and those of checkpoints, the last first."""
        yield recorded(model.config)
        folders = [Path(self.resumed)] if isinstance(self.resumed, str) else []
        if self.output is not None:
            numbered = Path(self.output).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
            folders += sorted(numbered, key=lambda folder: (len(folder.name), folder.name), reverse=True)
        for folder in folders:
            if (folder / _CONFIG).is_file():
                yield _recorded_in(folder)


def _fits(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> bool:
    own = stored_tensors(model)
    return all(own[name].shape == tensor.shape for name, tensor in tensors.items() if name in own)


def _unwrapped(optimizer: Any) -> optim.Optimizer:
    """Return the optimiser that takes the steps."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    found: optim.Optimizer = optimizer
    return found


@contextmanager
def _plainly_called(model: Any) -> Iterator[None]:
    """Have a model called without the precision that accelerate wraps it in, and without a cache, within the block."""
    wrapped = vars(model).pop("forward", None) if "_original_forward" in vars(model) else None
    cached = getattr(model.config, "use_cache", None)
    if cached:
        model.config.use_cache = False
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
        if cached:
            model.config.use_cache = cached
