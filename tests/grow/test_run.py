"""Run directories: events that survive a crash, checkpoints that are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from archir.errors import FileError, GrowError
from archir.grow.run import Checkpoint, RunDirectory, create_run, open_run
from archir.ir.graph import Graph
from frontends.pytorch import trace


def _graph(seed: int = 0) -> Graph:
    torch.manual_seed(seed)
    return trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3))


def _checkpoint(step: int, seed: int = 0) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    buffer = torch.randn(3, 4, generator=generator).T
    tensors = {"optimiser/momentum_buffer/0.weight": buffer, "row": buffer[0], "random": generator.get_state()}
    return Checkpoint(step, _graph(seed), tensors, {"steps": 10 * step, "rate": 0.1, "names": ["a", "b"]})


def _assert_same(found: Checkpoint | None, expected: Checkpoint) -> None:
    assert found is not None and (found.step, found.state) == (expected.step, expected.state)
    assert str(found.graph) == str(expected.graph)
    for name in expected.graph.by_name:
        assert torch.equal(found.graph.tensor(name), expected.graph.tensor(name))
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(t, expected.tensors[n]) for n, t in found.tensors.items())


def test_events_are_kept_in_order(tmp_path: Path) -> None:
    run = create_run(tmp_path / "a" / "b", "seed = 1\n")
    run.append("start", parameters=10)
    run.append("grow", predicted=-0.5, specs=["split{w1}"])
    again = open_run(run.path)
    assert again.config == "seed = 1\n"
    assert [(e["event"], e.get("parameters"), e.get("specs")) for e in again.history()] == [
        ("start", 10, None),
        ("grow", None, ["split{w1}"]),
    ]
    assert all(isinstance(e["time"], float) for e in again.history())


@pytest.mark.parametrize("torn", [b'{"event":"gro', b'{"event":"grow","time":1.0}', b"\x00\x00"])
def test_an_event_cut_off_by_a_crash_is_dropped(tmp_path: Path, torn: bytes) -> None:
    run = create_run(tmp_path / "run", "")
    run.append("start")
    with (run.path / "history.jsonl").open("ab") as file:
        file.write(torn)
    assert [e["event"] for e in run.history()] == ["start"]
    resumed = open_run(run.path)
    resumed.append("resumed")
    assert [e["event"] for e in open_run(run.path).history()] == ["start", "resumed"]


@pytest.mark.parametrize("line", [b"not json\n", b"[1]\n", b"{}\n"])
def test_a_damaged_line_before_the_end_is_an_error(tmp_path: Path, line: bytes) -> None:
    run = create_run(tmp_path / "run", "")
    with (run.path / "history.jsonl").open("ab") as file:
        file.write(line)
    run.append("start")
    with pytest.raises(FileError, match="line 1"):
        open_run(run.path)


def test_what_is_not_json_is_not_recorded(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", "")
    with pytest.raises(GrowError, match="finite"):
        run.append("train", loss=float("nan"))
    with pytest.raises(GrowError, match="JSON"):
        run.append("train", loss=torch.zeros(2))
    with pytest.raises(GrowError, match="JSON"):
        run.save(Checkpoint(1, _graph(), {}, {"loss": torch.zeros(2)}))
    assert sorted(p.name for p in run.path.iterdir()) == ["config.toml", "history.jsonl"]
    assert run.history() == []


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", "a = 1\n")
    run.append("start")
    with pytest.raises(FileError, match=r"there is a run in .* already"):
        create_run(run.path, "a = 2\n")
    assert run.config == "a = 1\n" and len(run.history()) == 1


def test_a_run_is_replaced_on_request_and_other_files_stay(tmp_path: Path) -> None:
    run = create_run(tmp_path, "a = 1\n")
    run.save(_checkpoint(1))
    (tmp_path / "notes.txt").write_text("mine")
    again = create_run(tmp_path, "a = 2\n", replace=True)
    assert again.config == "a = 2\n" and again.history() == [] and again.steps() == []
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_is_no_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no run in"):
        open_run(tmp_path)


def test_a_run_needs_a_folder_it_can_make(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write into"):
        create_run(tmp_path / "file" / "run", "")


def test_checkpoints_come_back_as_they_were(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", "")
    assert run.latest() is None
    for step in (1, 2, 10):
        assert run.save(_checkpoint(step, seed=step)).name == f"step-{step:04d}.archir"
    assert open_run(run.path).steps() == [1, 2, 10]
    _assert_same(run.latest(), _checkpoint(10, seed=10))
    _assert_same(run.load(2), _checkpoint(2, seed=2))
    assert not list(run.path.glob(".*"))


def test_a_checkpoint_is_replaced_whole(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", "")
    run.save(_checkpoint(1, seed=1))
    run.save(_checkpoint(1, seed=2))
    _assert_same(run.latest(), _checkpoint(1, seed=2))


@pytest.mark.parametrize("part", ["archir", "safetensors", "json"])
def test_a_checkpoint_without_its_last_part_does_not_count(tmp_path: Path, part: str) -> None:
    run = create_run(tmp_path / "run", "")
    run.save(_checkpoint(1))
    run.save(_checkpoint(2))
    (run.path / f"step-0002.{part}").unlink()
    if part == "json":
        _assert_same(run.latest(), _checkpoint(1))
    else:
        with pytest.raises(FileError, match=r"step-0002\.archir|checkpoint 2"):
            run.latest()


@pytest.mark.parametrize("part", ["archir", "safetensors", "json"])
def test_a_damaged_checkpoint_is_an_error(tmp_path: Path, part: str) -> None:
    run = create_run(tmp_path / "run", "")
    run.save(_checkpoint(1))
    file = run.path / f"step-0001.{part}"
    content = bytearray(file.read_bytes())
    content[-3] ^= 0xFF
    file.write_bytes(bytes(content))
    with pytest.raises(FileError, match="damaged"):
        RunDirectory(run.path).latest()


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", "")
    (run.path / "step-0001.safetensors").mkdir()
    with pytest.raises(FileError, match="cannot write checkpoint 1"):
        run.save(_checkpoint(1))
    assert run.steps() == [] and not list(run.path.glob(".*"))
