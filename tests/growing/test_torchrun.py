"""`torchrun -m archir grow`: a process that is killed stops all, and the run goes on with any number, or in shards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from archir.cli.console import RunProgress
from archir.cli.growing import seed_and_data, start
from archir.growing.config import read_config
from archir.growing.run import open_run
from archir.ir.load import load

pytestmark = pytest.mark.slow

OWN = '''
import os
import signal
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F


def model():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()


def examples():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(150, 6, generator=generator)
    return inputs, inputs[:, :3].argmax(1)


def loss(outputs, targets):
    """Kills the second process once there is a checkpoint, if it is asked for."""
    if os.environ.get("RANK") == "1" and "DIES" in os.environ and Path(os.environ["DIES"]).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return F.cross_entropy(outputs, targets, reduction="none")
'''

CONFIG = """
output = "run"
loss = "own.py:loss"
[model]
factory = "own.py:model"
[data]
source = "own.py:examples"
validation = 0.3
[budget]
parameters = 120
[optimiser]
rate = 0.05
[training]
steps = 24
batch_size = 25
evaluate_every = 8
checkpoint_every = 8
[growth]
expansion = 1.0
growth_steps = 1
first_growth = 0.5
last_growth = 0.5
learn_steps = 6
recalibrate_batches = 2
"""


def test_a_killed_run_goes_on_with_any_number_of_processes_or_in_shards(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "run.toml").write_text(CONFIG)
    wanted = _in_this_process(tmp_path, tmp_path / "wanted", resume=False)

    checkpoint = tmp_path / "run" / "step-0012.json"
    killed = _torchrun(tmp_path, tmp_path / "run", DIES=str(checkpoint))
    assert killed.returncode != 0 and not killed.stdout
    assert open_run(tmp_path / "run").steps() == [8, 12]
    assert not (tmp_path / "run" / "net.py").exists()

    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    _in_this_process(tmp_path, tmp_path / "alone", resume=True)
    done = _torchrun(tmp_path, tmp_path / "run", "--resume", "--sharded")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written into") == 1 and done.stdout.count("test data") == 1
    for folder in ("alone", "run"):
        found = load(tmp_path / folder / "step-0024.archir")
        assert str(found) == wanted
        whole = load(tmp_path / "wanted" / "step-0024.archir")
        for node, tensor in whole.tensors.items():
            torch.testing.assert_close(found.tensors[node], tensor, rtol=1e-9, atol=1e-9)
    emitted = load_file(tmp_path / "run" / "net.safetensors")
    assert {n: t.shape for n, t in emitted.items()} == {n.names[0]: whole.tensors[n.id].shape for n in whole.parameters}
    history = open_run(tmp_path / "run").history()
    assert sum(e["event"] == "resumed" for e in history) == 1
    assert sum(e["event"] == "finished" for e in history) == 1


def _in_this_process(folder: Path, directory: Path, *, resume: bool) -> str:
    """Carry out the run, and return the text of the network it ends with."""
    config = read_config(folder / "run.toml")
    graph, dataset = seed_and_data(config)
    quiet = RunProgress(quiet=True)
    run = start(config, graph, dataset, config.find_loss(), directory, quiet, resume=resume)
    assert any(event["event"] == "grown" for event in run.history)
    return str(run.graph)


def _torchrun(folder: Path, directory: Path, *given: str, **environment: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "archir", "grow", str(folder / "run.toml"), "--out", str(directory), *given]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
