"""`--device` and `--sharded`: they stand above the file; what is not there is told of before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from archir.cli.console import RunProgress
from archir.growing.config import read_config
from tests.cli.run import CONFIG, refused, write_models


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration that asks for a GPU on a machine without one."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    write_models(tmp_path)
    file = tmp_path / "run.toml"
    file.write_text(CONFIG.replace("[training]", '[training]\ndevice = "cuda:3"'))
    assert read_config(file).options.device == "cuda:3"
    return file


@pytest.mark.parametrize("command", ["grow", "compress"])
def test_a_device_that_is_not_there_is_refused(command: str, elsewhere: Path) -> None:
    before = sorted(elsewhere.parent.iterdir())
    assert "there is no device cuda:3 here" in refused(command, elsewhere)
    assert "there is no device xpu here" in refused(command, elsewhere, "--device", "xpu")
    assert "there is no device 'gpu'" in refused(command, elsewhere, "--device", "gpu")
    assert sorted(elsewhere.parent.iterdir()) == before


def test_the_device_of_the_command_stands_above_that_of_the_file(elsewhere: Path) -> None:
    config = read_config(elsewhere)
    assert [config.on(name).options.device for name in ("cpu", None)] == ["cpu", "cuda:3"]
    assert config.on("cpu").text == config.text, "where a run is computed is no part of what it is"
    assert "nowhere" in refused("grow", elsewhere, "--device", "cpu", "--data", "nowhere.npz")


@pytest.mark.parametrize("command", ["grow", "compress"])
def test_shards_stand_above_the_file(command: str, elsewhere: Path) -> None:
    elsewhere.write_text(elsewhere.read_text().replace("[training]", "[training]\nchannels_last = true"))
    assert "leave out one of sharded and channels_last" in refused(command, elsewhere, "--sharded")
    assert "there is no device cuda:3 here" in refused(command, elsewhere, "--whole")


def test_steps_that_were_left_out_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress() as progress:
        progress({"event": "train", "time": 0, "step": 20, "loss": 1.0, "rate": 0.1, "examples": 9, "overflowed": 3})
    assert "3 steps before step 20 were left out: beyond float16" in capsys.readouterr().err
