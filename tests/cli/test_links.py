"""A run directory of a stranger's that is full of links: a run that goes on there changes no file elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.run import archir, refused, write_models

CONFIG = """
output = "run"
[model]
factory = "models.py:digits"
[data]
source = "digits"
limit = 100
[budget]
parameters = 700
[training]
steps = 4
batch_size = 32
checkpoint_every = 2
[growth]
growth_steps = 0
"""

READ = ("config.toml", "fingerprint.json", "history.jsonl", "lock")
"""What has to be a file of the run's own for it to go on, beside one checkpoint."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_models(tmp_path)
    (tmp_path / "run.toml").write_text(CONFIG)
    assert archir("grow", tmp_path / "run.toml", "--quiet").code == 0
    (tmp_path / "victims").mkdir()
    return tmp_path


def _link(folder: Path, name: str, number: int) -> Path:
    """Put a link under a name into the run directory, to a file elsewhere or, every other time, to none yet."""
    victim, link = folder / "victims" / f"{number}", folder / "run" / name
    if number % 2:
        victim.write_bytes(link.read_bytes() if link.is_file() else b"mine")
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    return victim


def _victims(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "victims").iterdir()}


def test_no_name_that_a_run_writes_is_followed(folder: Path) -> None:
    run = folder / "run"
    names = sorted(p.name for p in run.iterdir() if p.is_file())
    assert {"growth.png", "net.py", "net.onnx", "net.safetensors", "step-0004.json"} <= set(names)
    planted = [n for name in names for n in (f".{name}.{os.getpid()}.tmp", f".{name}.tmp", f"{name}.tmp")]
    planted += [name for name in names if name not in READ and not name.startswith("step-0002")]
    for parity in (0, 1):
        for number, name in enumerate(planted):
            _link(folder, name, number + parity)
        before = _victims(folder)
        assert archir("grow", folder / "run.toml", "--resume", "--quiet").code == 0
        assert archir("report", run, "--plot", run / "growth.png").code == 0
        assert _victims(folder) == before
        assert not [name for name in names if (run / name).is_symlink()]
        for path in folder.joinpath("victims").iterdir():
            path.unlink()


def test_a_run_whose_record_is_a_link_does_not_go_on(folder: Path) -> None:
    for name in READ:
        path = folder / "run" / name
        content = path.read_bytes()
        for number in (0, 1):
            _link(folder, name, number)
            before = _victims(folder)
            refused("grow", folder / "run.toml", "--resume", "--quiet")
            assert _victims(folder) == before, name
        path.unlink()
        if name in ("history.jsonl", "lock"):
            # These are written in place, so that they may not be one file under two names either.
            (folder / "victims" / "1").write_bytes(content)
            os.link(folder / "victims" / "1", path)
            refused("grow", folder / "run.toml", "--resume", "--quiet")
            assert (folder / "victims" / "1").read_bytes() == content, name
            path.unlink()
        path.write_bytes(content)
        for victim in (folder / "victims").iterdir():
            victim.unlink()
    assert archir("grow", folder / "run.toml", "--resume", "--quiet").code == 0
