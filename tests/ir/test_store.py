"""The .archir file: everything comes back, nothing is half-written, damage is found."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from archir.errors import FileError
from archir.ir.builder import GraphBuilder as Builder
from archir.ir.graph import Graph
from archir.ir.load import load
from archir.ir.node import Node
from archir.ir.store import checksum, save
from tests.models.equality import bits_equal, same
from tests.models.texts import GRAPHS, conv_bn, tied


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    graph = GRAPHS[name]()
    graph.save(tmp_path / "net.archir")
    assert same(load(tmp_path / "net.archir"), graph)
    assert os.listdir(tmp_path) == ["net.archir"]


def test_an_edited_graph_comes_back_with_its_history(tmp_path: Path) -> None:
    graph = conv_bn()
    with graph.edit(by="deepen{at=1}") as e:
        relu = graph.output.arguments["0"]
        e.update(graph.output.id, arguments={"0": e.call("aten.mul.Tensor", relu, e.add_parameter("g", torch.ones(8)))})
    save(e.graph, str(tmp_path / "net.archir"))
    found = load(str(tmp_path / "net.archir"))
    assert same(found, e.graph)
    assert found.history == ("deepen{at=1}",)
    assert found.nodes[-2].born == "deepen{at=1}"


def _with(*tensors: torch.Tensor) -> Graph:
    b = Builder()
    for i, tensor in enumerate(tensors):
        b.parameter(f"t.{i}", tensor, "buffer")
    return b.graph(b.call("aten.relu.default", b.input("x", "f32[B]")))


def test_tensors_of_every_kind_come_back_bit_by_bit(tmp_path: Path) -> None:
    base = torch.randn(6, 4)
    special = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    tensors = [
        base.T,
        base[1],
        base[:, 1:3],
        base.view(-1)[::5],
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(1).expand(3, 2),
        special,
        torch.tensor(3.5),
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.randn(3).to(torch.bfloat16),
        torch.randn(3).to(torch.float16),
        torch.randn(3, dtype=torch.float64),
        torch.randn(3).to(torch.float8_e4m3fn),
        torch.tensor([2**63 - 1, -(2**63)]),
        torch.tensor([-128, 127], dtype=torch.int8),
        torch.tensor([-1], dtype=torch.int16),
        torch.tensor([-1], dtype=torch.int32),
        torch.tensor([255], dtype=torch.uint8),
        torch.tensor([65535], dtype=torch.uint16),
        torch.randn(3, dtype=torch.complex64),
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.randn(3, requires_grad=True),
        special,
        base,
    ]
    graph = _with(*tensors)
    graph.save(tmp_path / "net.archir")
    found = load(tmp_path / "net.archir")
    for i, tensor in enumerate(tensors):
        assert bits_equal(found.tensor(f"t.{i}"), tensor.detach().resolve_conj()), i
        assert not found.tensor(f"t.{i}").requires_grad


def test_tied_tensors_are_stored_once_and_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    tied().save(tmp_path / "net.archir")
    with safe_open(tmp_path / "net.archir", framework="pt") as file:
        assert sorted(file.keys()) == ["mask", "old", "proj.weight", "table", "te.weight"]
        assert file.metadata()["graph"].startswith("graph net(\n  ids: i64[B, 7],  #: id=0")
    found = load(tmp_path / "net.archir")
    assert found.by_name["te.weight"] is found.by_name["hd.weight"]


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (torch.randn(2, dtype=torch.complex128), "safetensors does not hold c128"),
        (torch.empty(2, device="meta"), "safetensors does not hold meta"),
        (torch.eye(2).to_sparse(), "safetensors does not hold f32 sparse_coo"),
    ],
)
def test_tensors_that_cannot_be_stored_leave_no_file(tensor: torch.Tensor, why: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=why):
        _with(tensor).save(tmp_path / "net.archir")
    assert os.listdir(tmp_path) == []


def test_a_name_safetensors_keeps_for_itself(tmp_path: Path) -> None:
    b = Builder()
    graph = b.graph(b.parameter("__metadata__", "f32[1]"))
    with pytest.raises(FileError, match="keeps the name __metadata__"):
        graph.save(tmp_path / "net.archir")


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="write into a folder that exists"):
        conv_bn().save(tmp_path / "no" / "net.archir")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "net.archir"
    conv_bn().save(path)
    before = path.read_bytes()
    with pytest.raises(FileError):
        _with(torch.randn(2, dtype=torch.complex128)).save(path)
    os.mkdir(tmp_path / "folder")
    for folder in (tmp_path / "folder", ""):
        with pytest.raises(FileError, match="it is a folder"):
            conv_bn().save(folder)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["folder", "net.archir"]


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "net.archir"
    conv_bn().save(path)
    loaded = load(path)
    tied().save(path)
    assert same(load(path), tied())
    assert same(loaded, conv_bn())


def test_files_that_are_no_archir_files(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no file"):
        load(tmp_path / "none.archir")
    with pytest.raises(FileError, match="there is no file"):
        load(tmp_path)
    for name, content in {"empty": b"", "text": str(conv_bn()).encode(), "pickle": pickle.dumps({"a": 1})}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError, match="is damaged or no archir file"):
            load(tmp_path / name)
    for metadata in (None, {"format": "pt"}):
        save_file({"w": torch.ones(2)}, tmp_path / "plain", metadata)
        with pytest.raises(FileError, match="is no archir file"):
            load(tmp_path / "plain")


def test_damage_anywhere_in_a_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "net.archir"
    conv_bn().save(path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in [*range(0, header, 37), *range(header, len(whole), 29)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(FileError):
            load(path)
    for length in (4, header - 1, header, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError):
            load(path)


def _rewrite(path: Path, **changes: str) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | changes
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata | {"checksum": checksum(metadata["graph"], tensors)})


def test_another_version_is_refused(tmp_path: Path) -> None:
    conv_bn().save(tmp_path / "net.archir")
    _rewrite(tmp_path / "net.archir", version="2")
    with pytest.raises(FileError, match="it is of version 2, this archir reads version 1"):
        load(tmp_path / "net.archir")


def test_a_graph_that_cannot_be_read_says_where(tmp_path: Path) -> None:
    path = tmp_path / "net.archir"
    conv_bn().save(path)
    with safe_open(path, framework="pt") as file:
        text = file.metadata()["graph"]
    _rewrite(path, graph=text.replace("aten.relu", "mine.relu"))
    with pytest.raises(FileError, match=r"there is no operator 'mine\.relu'") as caught:
        load(path)
    assert "^^^^^^^^^" in str(caught.value)
    assert "import the package that defines it" in str(caught.value)


def test_a_tensor_the_graph_does_not_name_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "net.archir"
    graph = conv_bn()
    graph.save(path)
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {"more": torch.ones(1)}
        tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata | {"checksum": checksum(metadata["graph"], tensors)})
    with pytest.raises(FileError, match="tensors the graph does not name: more"):
        load(path)


def test_a_graph_with_a_broken_node_is_not_written_as_something_else(tmp_path: Path) -> None:
    graph = conv_bn()
    nodes = [Node(n.id, n.op, n.arguments, n.results, n.name, None) if n.id == 1 else n for n in graph.nodes]
    with pytest.raises(FileError, match="parameter node 1 does not say what it is"):
        Graph("net", nodes, graph.tensors, graph.signature).save(tmp_path / "net.archir")
    assert os.listdir(tmp_path) == []


PLAIN = {"format": "archir", "version": "1"}


def _file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with any header, which may lie about its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _of(dtype: str, shape: list[int], size: int) -> dict[str, object]:
    return {"__metadata__": PLAIN, "a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (_file(b"{}", length=2**62), "header too large"),
        (_file(b"{}", length=99_000_000), "damaged"),
        (_file({}), "no archir file"),
        (_file({"__metadata__": [1]}), "damaged"),
        (_file({"__metadata__": {"format": 1}}), "damaged"),
        (_file({"__metadata__": {"format": "archir"}}), "it is of version None"),
        (_file({"__metadata__": PLAIN}), "its metadata lack graph and checksum"),
        (_file({"__metadata__": {**PLAIN, "graph": "graph net() {}"}}), "its metadata lack checksum"),
        (_file({"__metadata__": {**PLAIN, "graph": "", "checksum": "00000000"}}), "cannot read the graph"),
        (_file(b'{"__metadata__":' + b"[" * 100_000), "damaged"),
        (_file(b'{"__metadata__":{"format":"\xff"}}'), "damaged"),
        (_file(b'{"__metadata__":{"format":"archir","version":"1","graph":"\\ud800"}}'), "damaged"),
        (_file(_of("F32", [2**40], 2**42)), "damaged"),
        (_file(_of("F32", [2**63, 2**63, 0], 0)), "damaged"),
        (_file(_of("Q9", [1], 4), b"0000"), "damaged"),
        (_file(_of("F32", [-1], 4), b"0000"), "damaged"),
        (_file(_of("F8_E8M0", [2], 2), b"00"), "its metadata lack"),
    ],
)
def test_headers_that_lie_are_told_and_take_no_memory(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "net.archir").write_bytes(content)
    with pytest.raises(FileError, match=named):
        load(tmp_path / "net.archir")


@pytest.mark.parametrize("text", ["", "\0", "(" * 100_000, "graph net(" + "[" * 100_000, "x" * 1_000_000])
def test_texts_that_are_no_graph_are_told(tmp_path: Path, text: str) -> None:
    conv_bn().save(tmp_path / "net.archir")
    _rewrite(tmp_path / "net.archir", graph=text)
    with pytest.raises(FileError, match="cannot read the graph"):
        load(tmp_path / "net.archir")


def test_types_larger_than_the_stored_tensors_are_refused(tmp_path: Path) -> None:
    tied().save(tmp_path / "net.archir")
    with safe_open(tmp_path / "net.archir", framework="pt") as file:
        text = file.metadata()["graph"]
    line = next(row for row in text.splitlines() if "@table" in row and "[" in row)
    larger = line.replace("[", "[1000000000000, ", 1)
    assert line != larger
    _rewrite(tmp_path / "net.archir", graph=text.replace(line, larger))
    with pytest.raises(FileError, match="cannot read the graph"):
        load(tmp_path / "net.archir")


def test_a_file_is_on_disk_before_it_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is synced, renamed, and then the folder is synced; under no name that a link could wait at."""
    done: list[tuple[str, str]] = []
    sync, rename = os.fsync, os.replace

    def noted_sync(descriptor: int) -> None:
        done.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def noted_rename(old: Path, new: Path) -> None:
        done.append(("rename", str(old)))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_rename)
    for _ in range(2):
        conv_bn().save(tmp_path / "net.archir")
    temporary = [name for kind, name in done if kind == "rename"]
    assert done == [step for name in temporary for step in (("sync", name), ("rename", name), ("sync", str(tmp_path)))]
    assert len(set(temporary)) == 2


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "net.archir").symlink_to(victim)
    conv_bn().save(tmp_path / "net.archir")
    assert victim.read_text() == "mine" and not (tmp_path / "net.archir").is_symlink()
