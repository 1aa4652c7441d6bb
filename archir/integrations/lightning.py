"""Growth within Lightning: a callback that grows a module between two steps, and modules that have grown, loaded."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from archir.errors import FileError, GrowError
from archir.growing.stages import Stage, bring_to, from_data, to_data
from archir.integrations.growth_steps import GrowthCallback, anew, told
from archir.integrations.missing import not_installed
from archir.scoring.batches import AnyBatch

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import SingleDeviceStrategy
except ImportError as error:
    raise not_installed(__name__, "lightning", error) from error

_KEY = "archir.GrowCallback"
"""How the keys of this callback begin among the states of callbacks in a checkpoint."""


class GrowCallback(GrowthCallback, Callback):
    """Grows a `LightningModule`, or a part of it, while it is trained.

    After the steps that are asked for `archir.propose` decides on a growth step for the weights as they are, and what
    it decides on is put into the module in place: it stays an object of its class. So only widths may change.
    Optimisers, all of them, go on with all they have gathered, and with them their schedulers and a `GradScaler`; so do
    moving averages that other callbacks hold (`WeightAveraging`, `StochasticWeightAveraging`).

    By default θ is learned on the training batches, and candidates are scored and checked on those of the first
    validation loader, or on others of training if there is none. Batches are pairs of inputs and targets or mappings,
    as `archir.propose` takes them, after the hooks of the module that transfer them; loaders are gone through in an
    order of their own (`archir.integrations.growth_steps.anew`), so that training sees the batches it would have seen.

    What was done is logged as `growth/parameters`, `growth/expected` and `growth/realised`, and kept in `stages`.
    Checkpoints hold the sizes of all stages: where one is loaded by the trainer, to resume, to validate or to test, the
    module is first brought to the sizes it had then, whether it is as it was made or has grown further. Those that hold
    weights alone (`save_weights_only`) tell no sizes: they are for a module that has grown as far, or further.

    Training takes one device in one process: others are refused.
    """

    stages: tuple[Stage, ...] = ()
    """What the module was like as it was made, and after each growth step; empty if there was none."""

    _seen: int | None = None
    _grows: LightningModule | None = None

    @property
    def state_key(self) -> str:
        """What its state is called in checkpoints; callbacks that grow several parts have several."""
        return f"{_KEY}{{module={self._steps.module}}}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse several devices, and see to it that the module has its sizes before a checkpoint is loaded.

        Raises:
            GrowError: the trainer uses several devices, or shares out the module.
        """
        alone = trainer.world_size == 1 and isinstance(trainer.strategy, SingleDeviceStrategy)
        if stage == "fit" and not alone:
            raise GrowError(
                "growth within Lightning takes one device in one process",
                why=f"the trainer has {trainer.world_size} and the strategy {type(trainer.strategy).__name__}",
                hint='give Trainer(devices=1, strategy="auto"), or take archir.propose in a loop of your own',
            )
        if self._grows is not pl_module:
            self._grows, self.stages, self._seen = pl_module, (), None
        loading = vars(pl_module).get("on_load_checkpoint")
        if not isinstance(loading, _Loading):
            loading = _Loading(pl_module)
            pl_module.on_load_checkpoint = loading
        loading.first[self.state_key] = lambda checkpoint: self._bring(trainer, pl_module, checkpoint)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the hook of the module as it was."""
        loading = vars(pl_module).get("on_load_checkpoint")
        if isinstance(loading, _Loading):
            loading.first.pop(self.state_key, None)
            if not loading.first:
                loading.take_out()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where training begins.

        Raises:
            GrowError: the module has no such part as is to grow.
        """
        self._steps.part_of(pl_module)
        self._seen = trainer.global_step if self._seen is None else min(self._seen, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a growth step where one is due.

        Raises:
            ArchirError: it cannot be taken; the module is as it was.
        """
        last, now = self._seen or 0, trainer.global_step
        self._seen = now
        if not self._steps.times.due(last, now):
            return
        train, held_out = trainer.train_dataloader, _first(trainer.val_dataloaders)

        def batches(loader: Any) -> Callable[[int], Iterable[AnyBatch]]:
            return lambda seed: _sent(trainer, anew(_alone(loader), seed))

        plan, self.stages = self._steps.take(
            pl_module,
            now,
            self.stages,
            batches=batches(train if held_out is None else held_out),
            learn=None if held_out is None else batches(train),
            optimizers=trainer.optimizers,
            averages=_averages(trainer, pl_module),
        )
        pl_module.log_dict({f"growth/{name}": value for name, value in told(plan).items()})

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"stages": to_data(self.stages), "seen": self._seen or 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            GrowError: it holds something else.
        """
        seen = state_dict.get("seen")
        if type(seen) is not int:
            raise GrowError("the checkpoint does not tell of growth", why=f"the last step it has seen is {seen!r:.40}")
        self.stages, self._seen = from_data(state_dict.get("stages")), seen

    def _bring(self, trainer: Trainer, module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Bring a module and its averages to what they were when a checkpoint was written."""
        state = (checkpoint.get("callbacks") or {}).get(self.state_key)
        stages = from_data(_stages(state)) if state is not None else ()
        made = self.stages[:1]
        if not stages:  # it was written before the first growth step, or holds weights alone
            fitting = [i for i, stage in enumerate(self.stages) if stage.fits(checkpoint["state_dict"])]
            stages = self.stages[: fitting[-1] + 1] if fitting else ()
        if stages:
            wanted = stages[-1].over(made[0]) if made else stages[-1]
            for one in (module, *_averages(trainer, module)):
                bring_to(one, wanted)
        self.stages = stages


class _Loading:
    """The hook of a module that is called before a checkpoint is loaded, with what is done first."""

    def __init__(self, module: LightningModule) -> None:
        self.module = module
        self.plain = module.on_load_checkpoint
        self.own = vars(module).get("on_load_checkpoint")
        self.first: dict[str, Callable[[dict[str, Any]], None]] = {}

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        for do in self.first.values():
            do(checkpoint)
        self.plain(checkpoint)

    def __deepcopy__(self, memo: Any) -> _Loading:
        return self  # a copy of the module is loaded into by nobody

    def take_out(self) -> None:
        """Leave the module as it was."""
        if self.own is None:
            del self.module.on_load_checkpoint
        else:
            self.module.on_load_checkpoint = self.own


def load_grown(module: LightningModule, path: str | PathLike[str]) -> LightningModule:
    """Load the weights of a checkpoint into a module that is as it was made, brought to the sizes it had grown to.

    It is what `LightningModule.load_from_checkpoint` cannot do, for the class does not know of these sizes.

    Args:
        module: a module made as the one that has grown, or one that has grown from it.
        path: of the checkpoint.

    Returns:
        The module.

    Raises:
        FileError: it cannot be read; what it holds beside tensors, numbers, texts and the like is not.
        GrowError: it tells of no growth, or the module was made differently; the module is as it was then.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileError("the checkpoint cannot be read", where=str(path), why=why) from error
    states = checkpoint.get("callbacks") if isinstance(checkpoint, Mapping) else None
    found = [from_data(_stages(state)) for key, state in (states or {}).items() if str(key).startswith(_KEY)]
    tensors = checkpoint.get("state_dict") if found else None
    if not isinstance(tensors, Mapping):
        raise GrowError("the checkpoint tells of no growth", where=str(path), hint="load it as any other")
    own = module.state_dict()
    if wrong := sorted(own.keys() ^ tensors.keys()):
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise GrowError(
            "the module is not made as the one that has grown",
            where=str(path),
            why=f"one of them has no {', '.join(wrong[:5])}{more}",
            hint="make it with the same code and options",
        )
    for stages in found:
        if stages:
            bring_to(module, stages[-1])
    module.load_state_dict(tensors)
    return module


def _stages(state: object) -> object:
    return state.get("stages") if isinstance(state, Mapping) else None


def _first(loaders: Any) -> Any:
    """Return the first of some loaders; None if there is none."""
    if isinstance(loaders, list | tuple):
        return loaders[0] if loaders else None
    return loaders


def _alone(loader: Any) -> Any:
    """Return a loader, which has to be one.

    Raises:
        GrowError: it is several, whose batches come together.
    """
    if isinstance(loader, Mapping | list | tuple):
        raise GrowError(
            f"the trainer has {len(loader)} loaders, whose batches come together",
            hint="give the callback batches of its own, as batches=",
        )
    return loader


def _sent(trainer: Trainer, batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        yield trainer.strategy.batch_to_device(batch)


def _averages(trainer: Trainer, module: LightningModule) -> list[nn.Module]:
    """Return the modules like a module that callbacks hold, with averages of its weights."""
    found: dict[int, nn.Module] = {}
    for callback in trainer.callbacks:
        for value in vars(callback).values():
            inner = value.module if isinstance(value, AveragedModel) else value
            if type(inner) is type(module) and inner is not module:
                found[id(inner)] = inner
    return list(found.values())
