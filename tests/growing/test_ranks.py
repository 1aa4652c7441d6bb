"""What processes agree on, as one of them finds it: nothing is exchanged here."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import nn

from archir.errors import ProcessError
from archir.growing import parallel
from archir.growing.parallel import TrainingStep, distributed
from archir.growing.ranks import check_devices
from archir.growing.training import call, train
from archir.scoring.losses import LOSSES
from archir.scoring.processes import ALONE, exchanging
from tests.growing.process_groups import Pretended

GROUP = cast(Any, object())
GONE = "[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer"


@dataclass(frozen=True, eq=False)
class Two(Pretended):
    """The first of two processes, the second of which has given something."""

    given: Any = None

    def everyones(self, value: Any) -> list[Any]:
        return [value, self.given]


def _second(kind: str, name: str, own: str, host: str = "") -> Two:
    return Two(GROUP, count=2, given=(kind, host or socket.gethostname(), name, own))


def test_processes_compute_on_devices_of_one_kind_each_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"GPU-{device.index}"))
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    for processes, device in (
        (ALONE, gpu),
        (_second("cpu", "cpu", "cpu"), cpu),
        (_second("cuda", "cuda:1", "GPU-1"), gpu),
        (_second("cuda", "cuda:0", "GPU-1"), gpu),  # where each sees a GPU of its own alone
        (_second("cuda", "cuda:0", "GPU-0", "elsewhere"), gpu),
    ):
        check_devices(processes, device)
    with pytest.raises(
        ProcessError, match=r"2 processes have 1 devices\n.*process 0: cuda:0 of .*\n.*cuda:0"
    ) as caught:
        check_devices(_second("cuda", "cuda:0", "GPU-0"), gpu)
    assert "--device cpu" in caught.value.hint
    with pytest.raises(ProcessError, match=r"devices of different kinds\n.*process 0: cuda:0 .*\n.*process 1: cpu"):
        check_devices(_second("cpu", "cpu", "cpu"), gpu)


@pytest.mark.parametrize("error", [RuntimeError(GONE), dist.DistBackendError("NCCL error")])
def test_a_connection_that_is_lost_is_told(error: RuntimeError) -> None:
    with pytest.raises(ProcessError, match="another process of the group has ended"), exchanging():
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("no conversion"), ValueError("no group"), torch.OutOfMemoryError("out")]
)
def test_other_errors_of_an_exchange_are_passed_on(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, exchanging():
        raise error
    assert caught.value is error


class Lost(nn.Module):
    """Has lost the other process."""

    def __init__(self, *_: object, **__: object) -> None:
        raise RuntimeError(GONE)


class Losing(nn.Linear):
    """Loses the other process as it runs."""

    def forward(self, *_: object) -> torch.Tensor:
        raise RuntimeError(GONE)


def test_a_process_that_is_lost_around_the_model_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    net, batch = nn.Linear(2, 2), (torch.ones(3, 2), torch.zeros(3, dtype=torch.long))
    loss = LOSSES["cross_entropy"]
    with pytest.raises(ProcessError, match="another process of the group has ended"):
        train(net, [batch], loss, torch.optim.SGD(net.parameters(), 0.1), on_top=Losing(2, 2))
    with pytest.raises(ProcessError, match="another process of the group has ended"):
        call(Losing(2, 2), batch[0])  # a module in shards, which gathers them
    monkeypatch.setattr(parallel, "DistributedDataParallel", Lost)
    with pytest.raises(ProcessError, match="another process of the group has ended"):
        distributed(TrainingStep(net, lambda *_: None, loss, ALONE), Two(GROUP, count=2))
