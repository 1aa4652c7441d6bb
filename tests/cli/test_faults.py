"""Bad input of every kind gets one clear error of the command line, never a traceback, and takes no memory."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from archir.cli import graphs
from archir.errors import FileError, Told
from archir.growing.run import create_run
from archir.ir.graph import Graph
from frontends.pytorch import trace
from tests.cli.run import archir, refused, write_models


@pytest.fixture
def net(tmp_path: Path) -> Path:
    graph: Graph = trace(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)), (torch.zeros(2, 8),))
    graph.save(tmp_path / "net.archir")
    return tmp_path / "net.archir"


DEEP = 100_000


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"\xff\xfe", "cannot read"),
        (b"a = " + b"[" * DEEP, "nested too deep"),
        (b"seed = " + b"9" * 5000, "is not TOML"),
        (b"seed = 0x" + b"f" * 5000, "seed is a int that is too large, not"),
        (b"[optimiser]\nrate = 0x" + b"f" * 5000, "optimiser.rate is a int that is too large, not a finite number"),
        (b"[training]\nclip = -1", "clip is -1, not a finite number above 0"),
        (b"seed = -1", "seed is -1, not a whole number from 0"),
        (b"seed = 18446744073709551616", "seed is 18446744073709551616, not a whole number from 0"),
        (b'output = "a\\u0000b"', "output is 'a\\x00b', not text that says something, without the character 0"),
        (
            b"model = 3\ndata = [1]\nbudget = 1979-05-27\ntraining = 'x'",
            "budget is datetime.date(1979, 5, 27), not a table",
        ),
        (b"x" * (2**20 + 1), "is longer than 1048576 bytes"),
        (b"[" + b"k" * 9000 + b"]", "there is no kkkk"),
    ],
)
def test_configurations_that_are_none(tmp_path: Path, text: bytes, named: str) -> None:
    (tmp_path / "run.toml").write_bytes(text)
    error = refused("grow", tmp_path / "run.toml")
    assert named in error and len(error) < 3000


def test_a_folder_or_an_endless_file_is_no_configuration(tmp_path: Path) -> None:
    assert "cannot read" in refused("grow", tmp_path)
    assert "is longer than" in refused("grow", "/dev/zero")


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (("--input", "i64:1000000000000,1000"), "it would take 7.11 PiB"),
        (("--input", "1000000,1000000"), "there are"),
        (("--input", "9" * 30), "more bytes than any machine has"),
        (("--input", "9" * 5000), "this is not an input"),
        (("--input", "-1,3"), "sizes are positive"),
        (("--input", "2,8", "--arguments", "[" * DEEP), "nested too deep"),
        (("--input", "2,8", "--arguments", '{"width": ' + "9" * 5000 + "}"), "a whole number of 5000 digits"),
        (("--input", "2,8", "--arguments", '{"width": NaN}'), "NaN is no number of JSON"),
    ],
)
def test_inputs_that_cannot_be_made(tmp_path: Path, option: tuple[str, ...], named: str) -> None:
    error = refused("trace", f"{write_models(tmp_path)}:mlp", "-o", tmp_path / "net.archir", *option)
    assert named in error and len(error) < 3000
    assert not (tmp_path / "net.archir").exists()


@pytest.mark.parametrize("seed", ["-1", "9223372036854775808", "9" * 400])
def test_seeds_out_of_range(tmp_path: Path, seed: str) -> None:
    done = archir("trace", f"{write_models(tmp_path)}:mlp", "-o", tmp_path / "n", "--input", "2,8", "--seed", seed)
    assert done.code == 2 and "--seed" in done.err


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("widen{width=w0, count=1000000000000}", "cannot have so many units"),
        ("widen{width=w0, count=" + "9" * 5000 + "}", "a whole number is expected here"),
        ("widen{width=w0, count=" + "9" * 100 + "}", "more bytes than any machine has"),
        ("widen{width=w0, count=-1}", "count is -1"),
        ("prune{width=w0, units=[-1]}", "unit"),
        ("split{width=w0, units=[" + "9" * 100 + "]}", "unit"),
        ("compose{steps=[" * 3000, "nested too deep"),
        ("residual-branch{after=%0, hidden=1000000000000}", "it would take"),
        ("residual-branch{after=%0, hidden=-7}", "the features between positive"),
        ("residual-branch{after=%" + "9" * 5000 + "}", "there is no value"),
        ("x" * 100_000, "there is no pass"),
    ],
)
def test_specifications_that_cannot_be_carried_out(net: Path, spec: str, named: str) -> None:
    error = refused("apply", net, spec, "--dry-run")
    assert named in error and len(error) < 6000, error[:3000]


def test_names_of_what_cannot_be_written_are_told(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = net.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert "No space left on device" in refused("apply", net, "split{width=w0, units=[0]}", "-o", net)
    assert net.read_bytes() == before and os.listdir(tmp_path) == ["net.archir"]
    assert "cannot write" in refused("apply", net, "split{width=w0, units=[0]}", "-o", "/proc/none/net.archir")


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (MemoryError("9 bytes"), "there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "there is not enough memory"),
        (RuntimeError("CUDA error: out of memory"), "there is not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "there is not enough memory"),
        (RecursionError(), "nested too deep"),
        (PermissionError(errno.EACCES, "Permission denied", "f"), "Permission denied"),
    ],
)
def test_errors_of_the_machine_are_told(
    net: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, told: str
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(graphs, "show", fails)
    assert told in refused("show", net)


def test_a_fault_of_archir_is_not_hidden(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("mine")

    monkeypatch.setattr(graphs, "show", fails)
    with pytest.raises(RuntimeError, match="mine"):
        archir("show", net)


@pytest.mark.slow
@pytest.mark.parametrize("out", ["| true", ">&-", "> /dev/full", "| head -c 1 > /dev/null"])
def test_output_that_nobody_takes_is_no_traceback(net: Path, out: str) -> None:
    command = f'"{sys.executable}" -c "from archir.cli.main import main; main()" show "{net}" {out}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr


def test_what_a_run_directory_names_is_not_run(tmp_path: Path) -> None:
    """Reading a directory of a stranger's, or going on with it by a configuration of one's own, runs nothing of it."""
    hostile, marker = tmp_path / "hostile", tmp_path / "pwned"
    code = f"open({str(marker)!r}, 'w')\ndef make(*a): raise SystemExit(3)\n"
    text = "loss = 'evil.py:make'\n[model]\nfactory = 'evil.py:make'\n[data]\nsource = 'evil.py:make'\n"
    run = create_run(hostile, text + "[growth]\nplugins = ['evil.py']\npasses = ['evil']\n")
    for name in ("evil.py", "torch.py", "models.py", "conftest.py", "sitecustomize.py", "numpy.py", "archir.py"):
        (hostile / name).write_text(code)
    run.append("started", parameters=1, flops=1, budget={"parameters": 3}, steps=1)
    assert archir("report", hostile).code == 0
    write_models(tmp_path)
    (tmp_path / "run.toml").write_text(
        '[model]\nfactory = "models.py:digits"\n[data]\nsource = "digits"\n[budget]\nparameters = 700\n'
    )
    error = refused("grow", tmp_path / "run.toml", "--out", hostile, "--resume", "--quiet")
    assert "started with another configuration" in error and "budget.parameters was not given, is 700" in error
    assert "there is a run in" in refused("demo", "--out", hostile, "--quiet")
    assert not marker.exists()


EVENT = '"event": "started", "time": 1.0'


@pytest.mark.parametrize(
    "lines",
    [
        [f'{{{EVENT}, "parameters": "many", "flops": 1, "budget": {{}}, "steps": 1}}'],
        [f'{{{EVENT}, "parameters": 1, "flops": 1, "budget": [], "steps": 1}}'],
        [f'{{{EVENT}, "parameters": 1, "flops": [], "budget": {{"parameters": "x"}}, "steps": null}}'],
        [f'{{{EVENT}, "parameters": 1, "flops": 1, "budget": {{}}, "prices": 3, "steps": 1}}'],
        [
            f'{{{EVENT}, "parameters": 1, "flops": 1, "budget": {{}}, "steps": 1}}',
            '{"event": "evaluated", "time": 1, "step": [1], "phase": {}, "loss": 1, "accuracy": null, "parameters": 1}',
        ],
        [
            f'{{{EVENT}, "parameters": 1, "flops": 1, "budget": {{}}, "steps": 1}}',
            '{"event": "grown", "time": 1, "growth": 1, "step": 1, "parameters": 1, "flops": 1, "specs": 3}',
        ],
        [
            f'{{{EVENT}, "parameters": 1, "flops": 1, "budget": {{}}, "steps": 1}}',
            '{"event": "tested", "time": 1, "name": 1, "parameters": 1, "flops": 1, "loss": "x", "accuracy": []}',
        ],
        [f"{{{EVENT}}}", '{"event": "resumed", "time": 1, "step": "x", "growth": null}'],
    ],
)
def test_histories_of_other_types_are_told(tmp_path: Path, lines: list[str]) -> None:
    run = create_run(tmp_path / "run", "")
    (run.path / "history.jsonl").write_text("\n".join(lines) + "\n")
    for options in ((), ("--json",), ("--markdown",), ("--plot", tmp_path / "plot.png")):
        assert "this is not the history of a run" in refused("report", run.path, *options)


def test_an_error_that_another_process_tells_of_is_not_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*given: object, **options: object) -> None:
        raise FileError("the run is in use") from (Told("by the first") if told else None)

    monkeypatch.setattr("archir.cli.growing.grow", failing)
    for told in (True, False):
        done = archir("grow", "run.toml")
        assert done.code == 1 and done.err == ("" if told else "error: the run is in use\n")
