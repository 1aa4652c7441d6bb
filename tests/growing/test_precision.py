"""Half precision in training: what is scaled, what is left out, and what goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from archir.errors import DivergenceError, GrowError
from archir.growing import precision
from archir.growing.batches import Batches
from archir.growing.examples import Examples
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.precision import LEAST, check_precision, make_scaler, restore_scaler, scaler_tensors
from archir.growing.trainer import Trainer
from archir.growing.training import Training, train
from archir.ir.graph import Graph
from archir.ir.precision import in_float32
from archir.scoring.losses import find_loss
from tests.growing.small_run import OPTIONS, data, grow

SGD = OptimiserOptions("sgd", rate=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)
HALF = replace(OPTIONS, precision="float16")


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))


def _points(count: int = 8, scale: float = 1.0) -> Examples:
    generator = torch.Generator().manual_seed(3)
    return Examples(torch.randn(count, 4, generator=generator), scale * torch.ones(count, 1))


def _trained(module: nn.Module, precision: str, **rest: object) -> Training:
    batches, loss = Batches(_points(), 4), find_loss("mse")
    return train(module, batches, loss, SGD.build(module), precision=precision, **rest)  # type: ignore[arg-type]


def test_outputs_are_computed_in_float16_and_gradients_are_those_of_the_loss_itself() -> None:
    found: dict[str, list[torch.Tensor]] = {}
    for kind in ("float32", "float16"):
        module, seen = _net(), list[torch.dtype]()
        module.register_forward_hook(lambda _, __, outputs, seen=seen: seen.append(outputs.dtype))
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=kind == "float16")
        done = _trained(module, kind, scaler=scaler)
        assert set(seen) == {getattr(torch, kind)} and done.steps == 2 and not done.overflowed
        assert all(p.dtype == torch.float32 for p in module.parameters())
        found[kind] = [p.detach() for p in module.parameters()]
    torch.testing.assert_close(found["float16"], found["float32"], rtol=5e-3, atol=5e-4)
    assert not all(torch.equal(a, b) for a, b in zip(*found.values(), strict=True))


def test_small_gradients_are_no_zeros() -> None:
    """A gradient of 1e-8 is zero in float16, and is not once the loss is scaled."""

    def tiny(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 1e-8 * outputs.mean()

    for scale, moves in ((65536.0, True), (1.0, False)):
        module = nn.Linear(4, 1, bias=False)
        scaler, before = torch.amp.GradScaler("cpu", init_scale=scale), module.weight.detach().clone()
        torch.manual_seed(0)
        fast = replace(SGD, rate=1e7).build(module)
        train(module, Batches(_points(), 8), find_loss("mse"), fast, minimised=tiny, precision="float16", scaler=scaler)
        assert torch.equal(module.weight, before) is not moves


def test_a_step_beyond_float16_is_left_out_and_counted() -> None:
    module, scaler = _net(), torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before, scales = [p.detach().clone() for p in module.parameters()], list[float]()

    def after(step: int, loss: float) -> None:
        scales.append(scaler.get_scale())

    done = _trained(module, "float16", scaler=scaler, on_step=after, clip=1.0)
    assert (done.steps, done.overflowed, done.examples) == (2, 2, 8) and done.loss is not None
    assert scales == [2.0**39, 2.0**38]
    torch.testing.assert_close([p.detach() for p in module.parameters()], before, rtol=0, atol=0)


def test_gradients_that_no_scale_helps_are_a_divergence() -> None:
    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            return torch.full_like(gradient, torch.inf)

    def steep(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        moved: torch.Tensor = Steep.apply(outputs)  # type: ignore[no-untyped-call]
        return moved.mean()

    module, scaler = _net(), torch.amp.GradScaler("cpu", init_scale=2.0)
    batches = [(torch.ones(2, 4), torch.ones(2, 1))] * 5
    with pytest.raises(DivergenceError) as caught:
        loss = find_loss("mse")
        train(module, batches, loss, SGD.build(module), minimised=steep, precision="float16", scaler=scaler)
    # At scales of 2 and 1 the steps are left out.
    assert caught.value.step == 2 and scaler.get_scale() < LEAST
    with pytest.raises(DivergenceError):
        train(_net(), batches, find_loss("mse"), SGD.build(module), minimised=steep, precision="bfloat16")


def test_a_loss_that_is_not_finite_is_a_divergence() -> None:
    def infinite(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.mean() * torch.inf

    with pytest.raises(DivergenceError, match="the loss is"):
        _trained(_net(), "float16", minimised=infinite)


def test_weights_in_float16_are_not_trained_with_a_scale() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1).half())
    with pytest.raises(GrowError, match=r"weights in float16 cannot be trained in float16\n.*1\.weight"):
        check_precision(module, "float16")
    check_precision(module, "bfloat16")
    check_precision(_net(), "float16")
    module[1].requires_grad_(False)
    check_precision(module, "float16")


def test_the_scale_is_in_the_checkpoint(seed_graph: Graph) -> None:
    trainer = Trainer(seed_graph, HALF)
    trainer.train(Batches(data(64, 1), 32), find_loss("cross_entropy"))
    state = trainer.state()
    assert float(state["scale/factor"]) == 65536 and int(state["scale/steps"]) == 2
    again = Trainer(trainer.graph(), HALF, {**state, "scale/factor": torch.tensor(512.0, dtype=torch.float64)})
    assert float(again.state()["scale/factor"]) == 512 and int(again.state()["scale/steps"]) == 2
    assert not any(name.startswith("scale/") for name in Trainer(seed_graph, OPTIONS).state())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: {},
        lambda state: {**state, "scale/more": torch.ones(())},
        lambda state: {**state, "scale/factor": torch.tensor(torch.inf, dtype=torch.float64)},
        lambda state: {**state, "scale/factor": torch.tensor(torch.nan, dtype=torch.float64)},
        lambda state: {**state, "scale/factor": torch.tensor(-1.0, dtype=torch.float64)},
        lambda state: {**state, "scale/factor": torch.ones(2, dtype=torch.float64)},
        lambda state: {**state, "scale/factor": torch.ones(())},
        lambda state: {**state, "scale/steps": torch.tensor(-1)},
        lambda state: {**state, "scale/steps": torch.ones(())},
    ],
)
def test_a_damaged_scale_is_refused(spoil: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    scaler = make_scaler(_net(), "float16")
    state = scaler_tensors(scaler)
    with pytest.raises(GrowError, match="the scale of the loss is"):
        restore_scaler(scaler, spoil(state))
    assert scaler_tensors(scaler) == state


def test_a_scale_where_there_should_be_none_is_refused() -> None:
    with pytest.raises(GrowError, match="the scale of the loss is"):
        restore_scaler(make_scaler(_net(), "bfloat16"), scaler_tensors(make_scaler(_net(), "float16")))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_a_run_in_half_precision_goes_on_as_if_nothing_had_happened(
    kind: str, seed_graph: Graph, tmp_path: Path
) -> None:
    options = replace(OPTIONS, steps=16, growth_steps=1, precision=kind, checkpoint_every=5, learn_steps=3)
    whole = grow(seed_graph, options=options, directory=tmp_path / "whole")

    class PowerCut(Exception):
        pass

    def cut(event: dict[str, object]) -> None:
        if event["event"] == "train" and event["step"] == 16:
            raise PowerCut

    with pytest.raises(PowerCut):
        grow(seed_graph, options=options, directory=tmp_path / "cut", on_event=cut)
    resumed = grow(seed_graph, options=options, directory=tmp_path / "cut", resume=True)
    for id_, tensor in whole.graph.tensors.items():
        assert torch.equal(tensor, resumed.graph.tensors[id_])
    assert not any("overflowed" in event for event in whole.history)


def test_the_scale_goes_on_after_growth(seed_graph: Graph) -> None:
    trainer = Trainer(seed_graph, HALF)
    trainer.train(Batches(data(64, 1), 32), find_loss("cross_entropy"))
    with seed_graph.edit(by="nothing") as edit:
        pass
    grown = trainer.become(edit.patch)
    assert grown.state()["scale/steps"] == trainer.state()["scale/steps"] == 2


def test_products_are_in_float32_within_the_block_and_as_before_after_it() -> None:
    kinds: list[Any] = [torch.backends.cuda.matmul]
    kinds += [getattr(torch.backends.cudnn, name) for name in ("conv", "rnn")]
    before = [kind.fp32_precision for kind in kinds]
    assert before[1] == "tf32", "PyTorch lets convolutions round"
    with pytest.raises(KeyError), in_float32():
        assert [kind.fp32_precision for kind in kinds] == ["ieee"] * 3
        raise KeyError
    assert [kind.fp32_precision for kind in kinds] == before
    assert torch.get_float32_matmul_precision() == "highest" and torch.backends.cudnn.allow_tf32


def test_auto_is_bfloat16_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert precision.half_type(_net(), "auto") is None
    monkeypatch.setattr(precision, "device_of", lambda module: torch.device("cuda", 0))
    assert precision.half_type(_net(), "auto") is torch.bfloat16
    assert GrowOptions().precision == "auto"
