from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from archir.ir.load import load
from tests.cli.run import archir, refused, write_models


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return write_models(tmp_path)


@pytest.fixture
def net(models: Path) -> Path:
    file = models.parent / "net.archir"
    assert archir("trace", f"{models}:mlp", "--input", "2,8", "-o", file).code == 0
    return file


def test_help_lists_every_command() -> None:
    text = archir("--help").out
    for name in [
        "trace",
        "show",
        "widths",
        "passes",
        "apply",
        "sites",
        "diff",
        "score",
        "grow",
        "compress",
        "export",
        "verify",
        "report",
        "demo",
    ]:
        assert f"  {name} " in text


def test_trace_writes_a_graph_and_says_what_it_is(models: Path, tmp_path: Path) -> None:
    done = archir(
        "trace", f"{models}:mlp", "--input", "2,8", "--arguments", '{"width": 5}', "-o", tmp_path / "a.archir"
    )
    assert done.code == 0
    assert "69 parameters" in done.out and "1 free widths" in done.out
    assert load(tmp_path / "a.archir").parameter_count == 8 * 5 + 5 + 5 * 4 + 4


def test_trace_takes_inputs_from_a_function(models: Path, tmp_path: Path) -> None:
    done = archir("trace", f"{models}:mlp", "--inputs", f"{models}:arguments", "-o", tmp_path / "a.archir")
    assert done.code == 0
    assert load(tmp_path / "a.archir").parameter_count == 82


def test_trace_needs_inputs_once(models: Path, tmp_path: Path) -> None:
    assert archir("trace", f"{models}:mlp", "-o", tmp_path / "a.archir").code == 2
    both = ("--input", "2,8", "--inputs", f"{models}:arguments")
    assert archir("trace", f"{models}:mlp", *both, "-o", tmp_path / "a.archir").code == 2


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        ("models.py:Branch", "2,8", "models.py:21: if x.sum() > 0:"),
        ("models.py:mlp", "2,9", "mat1 and mat2 shapes cannot be multiplied"),
        ("models.py:mlpp", "2,8", "did you mean mlp?"),
        ("models.py:number", "2,8", "makes a int, not an nn.Module"),
        ("models.py:broken", "2,8", "ValueError: no luck"),
        ("absent.py:mlp", "2,8", "there is no file"),
        ("absent_module:mlp", "2,8", "there is no module 'absent_module'"),
        ("models", "2,8", "names no object"),
        ("models.py:mlp", "2,eight", "this is not an input"),
        ("models.py:mlp", "0,8", "sizes are positive"),
        ("models.py:mlp", "f99:2,8", "'f99' is not an element type"),
    ],
)
def test_trace_tells_what_is_wrong(
    models: Path, monkeypatch: pytest.MonkeyPatch, model: str, shape: str, expected: str
) -> None:
    monkeypatch.chdir(models.parent)
    assert expected in refused("trace", model, "--input", shape, "-o", "out.archir")
    assert sorted(p.name for p in models.parent.iterdir() if p.name != "__pycache__") == ["models.py"]


def test_trace_rejects_arguments_that_are_not_json(models: Path, tmp_path: Path) -> None:
    for text in ("{", "[1]"):
        assert "JSON" in refused(
            "trace", f"{models}:mlp", "--input", "2,8", "--arguments", text, "-o", tmp_path / "a.archir"
        )


def test_show_prints_the_text_form(net: Path) -> None:
    plain, named, placed = (archir("show", net, *more).out for more in ((), ("--widths",), ("--locations",)))
    assert "aten.linear" in plain and "w0" not in plain
    assert "w0=6" in named
    assert "#: id=" in placed


def test_widths_lists_free_and_frozen_ones(net: Path) -> None:
    table = archir("widths", net).out
    assert "1 free widths" in table and "why it may not change" in table
    listed = json.loads(archir("widths", net, "--json").out)
    (free,) = listed["free"]
    assert (free["name"], free["size"]) == ("w0", 6)
    assert {"parameter": "0.weight", "axis": 0} in free["places"]
    assert all(w["reason"] for w in listed["frozen"])


def test_passes_lists_options() -> None:
    text = archir("passes").out
    assert "split" in text and "units: tuple[int, ...]" in text


def test_sites_lists_candidates(net: Path) -> None:
    assert "6 candidates" in archir("sites", net).out
    (site,) = json.loads(archir("sites", net, "--pass", "prune", "--json").out)["sites"]
    assert (site["site"], site["candidates"], site["parameters"]) == ("w0", 6, -13)


def test_sites_suggests_passes(net: Path) -> None:
    assert "did you mean split" in refused("sites", net, "--pass", "splitt")
    assert "no kind of rewrite" in refused("sites", net, "--pass", "")


def test_apply_writes_the_result_and_checks_it(net: Path, tmp_path: Path) -> None:
    done = archir("apply", net, "split{width=w0, units=[1, 2]}", "-o", tmp_path / "wide.archir", "--check")
    assert done.code == 0 and "+26" in done.out
    worst = float(done.out.split("in float64: ")[1].split()[0])
    assert worst < 1e-12
    assert load(tmp_path / "wide.archir").parameter_count == 82 + 26


def test_apply_can_write_nothing(net: Path) -> None:
    before = sorted(net.parent.iterdir())
    assert archir("apply", net, "prune{width=w0, units=[0]}", "--dry-run").code == 0
    assert archir("apply", net, "prune{width=w0, units=[0]}").code == 2
    assert sorted(net.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ("slpit{width=w0}", "did you mean split"),
        ("split{width=w9}", "there is no width 'w9'"),
        ("split{widht=w0}", "did you mean width?"),
        ("prune{width=w0, units=[6]}", "6"),
        ("prune{width=w0, units=[0]", "it ends where"),
    ],
)
def test_apply_tells_what_is_wrong(net: Path, tmp_path: Path, specs: str, expected: str) -> None:
    assert expected in refused("apply", net, specs, "-o", tmp_path / "out.archir")
    assert not (tmp_path / "out.archir").exists()


def test_verify_runs_the_graph(net: Path) -> None:
    assert "is sound" in archir("verify", net).out


@pytest.mark.parametrize("command", ["show", "widths", "sites", "verify"])
def test_missing_and_damaged_files_are_told(net: Path, command: str) -> None:
    assert "there is no file" in refused(command, net.with_name("absent.archir"))
    content = net.read_bytes()
    net.write_bytes(content[:-8] + bytes(8))
    assert "damaged" in refused(command, net)
    net.write_bytes(content[:100])
    assert "damaged" in refused(command, net)


def test_traceback_is_shown_when_asked_for(net: Path) -> None:
    with pytest.raises(Exception, match="there is no file"):
        archir("--traceback", "verify", net.with_name("absent.archir"))


def test_export_writes_python_and_onnx(net: Path, tmp_path: Path) -> None:
    done = archir("export", net, "--python", tmp_path / "out", "--onnx", tmp_path / "net.onnx", "--name", "small")
    assert done.code == 0 and done.out.count("largest difference") == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["small.py", "small.safetensors"]
    assert (tmp_path / "net.onnx").stat().st_size > 0
    assert archir("export", net).code == 2


def test_export_takes_the_options_of_onnx_files(tmp_path: Path, models: Path) -> None:
    net, file = tmp_path / "normed.archir", tmp_path / "net.onnx"
    assert archir("trace", f"{models}:normed", "--input", "2,1,8,8", "-o", net).code == 0

    def kinds(*options: str) -> set[str]:
        assert archir("export", net, "--onnx", file, *options).code == 0
        return {node.op_type for node in onnx.load(file).graph.node}

    assert "BatchNormalization" not in kinds()
    assert "BatchNormalization" in kinds("--batch-norm", "keep", "--opset", "17", "--external-data")
    assert [o.version for o in onnx.load(file).opset_import] == [17] and (tmp_path / "net.onnx.data").is_file()
    assert "Shape" in kinds("--no-optimize")
    done = archir("export", net, "--onnx", file, "--int8", "--int8-tolerance", "0.2")
    assert (
        "int8: 1 Conv, 1 MatMul; off by at most 0.0" in done.out
        and "the largest elements at the same place" in done.out
    )
    before = file.read_bytes()
    assert "0.0001 is allowed" in refused("export", net, "--onnx", file, "--int8", "--int8-tolerance", "0.0001")
    for options, why in (
        (("--opset", "99"), "operator set 99 cannot be written"),
        (("--batch-norm", "fuse"), "no batch_norm 'fuse'"),
        (("--batch-norm", "fold", "--no-optimize"), "not optimised"),
    ):
        assert why in refused("export", net, "--onnx", file, "--python", tmp_path / "out", *options)
    for more in (("--name", "not a name"), ("--name", "class")):
        fresh = tmp_path / "fresh.onnx"
        refused("export", net, "--onnx", fresh, "--python", tmp_path / "out", *more)
        assert not fresh.exists()
    assert file.read_bytes() == before and not (tmp_path / "out").exists()
    assert "leave optimize on" in archir("export", net, "--onnx", file, "--int8", "--no-optimize").err
    done = archir("export", net, "--python", tmp_path / "out", "--int8", "--opset", "17")
    assert done.code == 2 and "--opset, --int8" in done.err
    assert archir("export", net, "--onnx", file, "--int8-tolerance", "0.2").code == 2
