"""Growth within Lightning: real runs that grow, go on, and are resumed from checkpoints before and after."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, TensorDataset

import archir
from archir.errors import FileError, GrowError

pytest.importorskip("lightning")

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from archir.integrations.lightning import GrowCallback, load_grown

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed.*"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
]

OPTIONS = archir.GrowOptions(learn_steps=8, score_examples=200, batch_size=100, refine=12)
BATCHES = 5
"""Batches of an epoch; checkpoints are written at its end, for Lightning begins it anew otherwise."""


class Body(nn.Module):
    """A network whose code tells of its width by an attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.inner, self.norm, self.outer = nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.outer(self.norm(self.inner(x)).view(-1, self.width).tanh())
        return found


class Net(LightningModule):
    """A network with a part that grows and one beside it, a method, and two groups of parameters."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Body(width)
        self.scale = nn.Parameter(torch.ones(3))
        self.rates = list[float]()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x) * self.scale
        return found

    def predicted(self, x: Tensor) -> Tensor:
        found: Tensor = self(x).argmax(1)
        return found

    def training_step(self, batch: Sequence[Tensor], index: int) -> Tensor:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        loss: Tensor = F.cross_entropy(self(batch[0]), batch[1])
        return loss

    def validation_step(self, batch: Sequence[Tensor], index: int) -> None:
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        groups: list[dict[str, Any]] = [
            {"params": [self.scale], "weight_decay": 0.0},
            {"params": list(self.net.parameters())},
        ]
        optimizer = optim.AdamW(groups, 0.03)
        scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Watch(Callback):
    """Notes the loss on the validation examples and the number of parameters after steps, checks the optimiser."""

    def __init__(self) -> None:
        self.losses = dict[int, tuple[float, int]]()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        (optimizer,) = trainer.optimizers
        own = set(pl_module.parameters())
        for group in optimizer.param_groups:
            assert all(p in own for p in group["params"])
        assert optimizer.state.keys() == own
        assert all(state["exp_avg"].shape == p.shape for p, state in optimizer.state.items())
        assert {int(state["step"]) for state in optimizer.state.values()} == {trainer.global_step}
        self.losses[trainer.global_step] = (loss_of(pl_module), sum(p.numel() for p in own))


def data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1).long()


def loss_of(module: nn.Module) -> float:
    module, (x, y) = copy.deepcopy(module).eval(), data(500, 3)
    with torch.no_grad():
        return float(F.cross_entropy(module(x), y))


def loader(count: int, seed: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data(count, seed)), count // BATCHES)


def fit(
    folder: Path,
    *callbacks: Callback,
    module: Net | None = None,
    resume: str | None = None,
    **settings: Any,
) -> tuple[Net, Any]:
    """Train a module for 30 steps, with a checkpoint at the end of every epoch of five."""
    module = module or Net()
    checkpoints = ModelCheckpoint(folder, "{step}", every_n_train_steps=BATCHES, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=30,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, checkpoints],
        **settings,
    )
    torch.manual_seed(1 if resume is None else 2)
    trainer.fit(module, loader(1000, 0), loader(500, 3), ckpt_path=resume)
    return module, trainer


def grower(**changes: Any) -> GrowCallback:
    return GrowCallback(**{"budget": lambda step: 60 + 3 * step, "at": [10, 20], "options": OPTIONS, **changes})


@pytest.mark.parametrize("module", ["", "net"])
def test_a_module_grows_and_is_resumed_from_before_and_after(tmp_path: Path, module: str) -> None:
    first = grower(module=module)
    before, watch = Watch(), Watch()
    net, trainer = fit(tmp_path, before, first, watch, EMAWeightAveraging(decay=0.9))
    assert [stage.step for stage in first.stages] == [0, 10, 20]
    for step, (loss, size) in before.losses.items():
        if step in (10, 20):
            assert watch.losses[step][0] < loss < watch.losses[step][0] + 0.3 and watch.losses[step][1] > size
        else:
            assert watch.losses[step] == (loss, size)
    sizes = [size for _, size in watch.losses.values()]
    assert sizes[0] < sizes[-1] and net.net.width == net.net.inner.out_features > 4
    assert net.eval().predicted(data(4, 5)[0]).shape == (4,)
    assert trainer.logged_metrics["growth/parameters"] == sizes[-1] - (3 if module else 0)
    for name in ("expected", "realised"):
        assert trainer.logged_metrics[f"growth/{name}"] == pytest.approx(getattr(first.stages[-1], name), rel=1e-6)
    plain = optim.lr_scheduler.CosineAnnealingLR(optim.SGD([nn.Parameter(torch.zeros(1))], 0.03), 30)
    for rate in net.rates:
        assert rate == pytest.approx(plain.get_last_lr()[0], rel=1e-12)
        plain.optimizer.step()
        plain.step()
    for step in (5, 15, 25):
        again = grower(module=module)
        resumed, _ = fit(
            tmp_path / f"{step}", again, EMAWeightAveraging(decay=0.9), resume=str(tmp_path / f"step={step}.ckpt")
        )
        assert again.stages == first.stages
        assert len(resumed.rates) == 30 - step
        for name, tensor in net.state_dict().items():
            torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)


def test_checkpoints_of_any_stage_are_loaded_by_the_trainer_and_without_it(tmp_path: Path) -> None:
    first = grower(module="net", at=[10])
    net, trainer = fit(tmp_path, first)
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    kept = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    trainer.validate(net, loader(120, 3), ckpt_path=str(tmp_path / "weights.ckpt"), verbose=False)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in net.state_dict().items())
    wanted = {step: torch.load(tmp_path / f"step={step}.ckpt")["state_dict"] for step in (5, 15)}
    for step, weights in [*wanted.items(), *reversed(wanted.items())]:
        trainer.validate(net, loader(120, 3), ckpt_path=str(tmp_path / f"step={step}.ckpt"), verbose=False)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())
        assert "on_load_checkpoint" not in vars(net)
        alone = Net()
        assert load_grown(alone, tmp_path / f"step={step}.ckpt") is alone
        assert all(torch.equal(tensor, weights[name]) for name, tensor in alone.state_dict().items())
        assert alone.net.width == len(weights["net.inner.bias"])
    with pytest.raises(
        GrowError, match=r"not made as the one that has grown\n  where: .*\n  why:   one of them has no net.norm.weight"
    ):
        other = Net()
        other.net = Body(4)
        del other.net.norm.weight
        load_grown(other, tmp_path / "step=15.ckpt")
    fit(tmp_path / "plain")
    (tmp_path / "broken.ckpt").write_bytes((tmp_path / "step=15.ckpt").read_bytes()[:900])
    for name in ("broken.ckpt", "gone.ckpt"):
        with pytest.raises(FileError, match="the checkpoint cannot be read"):
            load_grown(Net(), tmp_path / name)
    with pytest.raises(GrowError, match="tells of no growth"):
        load_grown(Net(), tmp_path / "plain" / "step=30.ckpt")


def test_several_devices_and_growth_that_is_never_due_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GrowError, match="one device in one process"):
        grower().setup(Trainer(accelerator="cpu", strategy="ddp", devices=2, logger=False), Net(), "fit")
    with pytest.raises(GrowError, match=r"never due\n  hint:  give at="):
        GrowCallback(budget=100)
    with pytest.raises(GrowError, match="no steps to grow at"):
        GrowCallback(budget=100, at=[0])
    with pytest.raises(GrowError, match="a str is no budget"):
        GrowCallback(budget="100", at=[5])  # type: ignore[arg-type]
    with pytest.raises(GrowError, match="batches can be gone through only once"):
        GrowCallback(budget=100, at=[5], batches=iter([data(5, 0)]))
    with pytest.raises(GrowError, match="no module 'body'"):
        fit(tmp_path, grower(module="body"))
    several = {"one": loader(100, 0), "other": loader(100, 0)}
    trainer = SimpleNamespace(
        global_step=10, train_dataloader=several, val_dataloaders=None, optimizers=[], callbacks=[]
    )
    with pytest.raises(GrowError, match="the trainer has 2 loaders, whose batches come together"):
        grower().on_train_batch_end(trainer, Net(), None, None, 0)


def test_what_changes_more_than_widths_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GrowError, match=r"only widths can change in place\n  why:   deepen changes more"):
        grower(morphisms=["split", "deepen"])


class Written(Body):
    """A network whose width is written into its code."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.outer(self.norm(self.inner(x)).view(-1, 4).tanh())
        return found


def test_a_width_that_is_written_into_the_code_is_refused_and_nothing_has_changed(tmp_path: Path) -> None:
    net = Net()
    net.net = Written(4)
    with pytest.raises(GrowError, match=r"where: .*test_lightning\.py:\d+: .*view\(-1, 4\)"):
        fit(tmp_path, grower(), module=net)
    assert net.net.inner.weight.shape == (4, 6) and net.net.inner.out_features == 4
