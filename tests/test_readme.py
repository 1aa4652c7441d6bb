"""README and docs do what they say: their Python and their commands are run, and their links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from archir.cli.main import app
from archir.rewrite.morphism import Morphism
from frontends.onnx.operators.table import OPERATORS
from frontends.onnx.read import OPSETS
from passes.catalog import PASSES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_a_morphism_of_ones_own_grows_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page on passes shows a morphism in under 25 lines of its own, and grows a model with it."""
    monkeypatch.chdir(tmp_path)
    example, growth = blocks("python", (ROOT / "docs" / "passes.md").read_text())
    assert example == (ROOT / "examples" / "global_context.py").read_text()
    code = [line for line in example.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len([line for line in code if '"""' not in line]) < 25
    module = ModuleType("global_context")
    monkeypatch.setitem(sys.modules, "global_context", module)
    exec(compile(example, "global_context.py", "exec", dont_inherit=True), vars(module))
    exec(compile(growth, "passes.md", "exec", dont_inherit=True), vars(module))
    assert "global-context" in capsys.readouterr().out
    assert "GlobalContext" in (tmp_path / "out" / "net.py").read_text()


def test_the_page_on_passes_names_them_all() -> None:
    page = (ROOT / "docs" / "passes.md").read_text()
    morphisms = [name for name, kind in PASSES.items() if issubclass(kind, Morphism)]
    assert not [name for name in morphisms if f"`{name}`" not in page and name != "compose"]


def test_the_loop_of_the_page_on_loops_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    loop, *_ = blocks("python", (ROOT / "docs" / "loop.md").read_text())
    exec(compile(loop, "loop.md", "exec", dont_inherit=True), {"__name__": "loop"})
    assert "predicted" in capsys.readouterr().out


def test_the_page_on_inputs_of_any_size_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "dynamic.md").read_text()
    (code,), (printed, _) = blocks("python", page), blocks("text", page)
    module = ModuleType("dynamic")
    monkeypatch.setitem(sys.modules, "dynamic", module)
    exec(compile(code, "dynamic.md", "exec", dont_inherit=True), vars(module))
    out = capsys.readouterr().out
    assert out.startswith(printed)
    assert out.splitlines()[-1] == "i64[B, T]"
    assert (tmp_path / "out" / "net.py").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_the_trainers_of_the_page_on_loops_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning")
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    _, _, *trainers = blocks("python", (ROOT / "docs" / "loop.md").read_text())
    assert len(trainers) == 2
    module = ModuleType("loop")
    monkeypatch.setitem(sys.modules, "loop", module)
    exec(compile(_setting(), "loop.md", "exec", dont_inherit=True), vars(module))
    for trainer in trainers:
        exec(compile(trainer, "loop.md", "exec", dont_inherit=True), vars(module))
    told = capsys.readouterr().out
    assert "(10, (" in told and "'growth_parameters'" in told
    assert vars(module)["again"].config.archir_growth[-1]["step"] == 4


def _setting() -> str:
    """Return what the first block of the page on loops sets up, without its loop."""
    loop, *_ = blocks("python", (ROOT / "docs" / "loop.md").read_text())
    return loop.partition("model = Net()")[0]


def test_a_growth_step_takes_six_lines_of_a_plain_loop_at_most() -> None:
    (loop,) = [block for block in blocks("python") if "archir.propose" in block]
    _, _, growth = loop.partition("ema.update_parameters(model)\n")
    assert 0 < len(growth.splitlines()) <= 6 and "plan.apply(" in growth


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "out" / "net.py").is_file()
    assert (tmp_path / "out" / "net.onnx").is_file()
    assert (tmp_path / "grown.archir").is_file()


def test_the_python_of_the_page_on_growing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python", (ROOT / "docs" / "growth.md").read_text())
    exec(compile(example, "growth.md", "exec", dont_inherit=True), {"__name__": "growth"})
    assert float(capsys.readouterr().out) > 0.6, "it has learned something"


def test_the_python_of_the_page_on_onnx_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in blocks("python", (ROOT / "docs" / "onnx.md").read_text()):
        exec(compile(example, "onnx.md", "exec", dont_inherit=True), names)
    read, quantised, told = capsys.readouterr().out.strip().splitlines()
    assert read == "[('0.weight',), ('0.bias',), ('3.weight',), ('3.bias',)]"
    assert quantised == "{'Conv': 1, 'MatMul': 1} True"
    assert told == "['split{width=w0, units=[1]}'] 1860"
    assert (tmp_path / "wider" / "net.py").is_file() and (tmp_path / "wider.onnx").is_file()


def test_the_page_on_onnx_tells_how_many_operators_are_read() -> None:
    text = (ROOT / "docs" / "onnx.md").read_text()
    assert f"| {len(OPERATORS)}, and `If` and `Loop` |" in text
    assert f"Operator sets {OPSETS.start} to {OPSETS.stop - 1} of `ai.onnx` are read" in text


def test_the_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    commands = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    assert len(commands) >= 7
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "archir"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{command}\n{result.output}"
        assert result.output


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/cifar10.md",
        "docs/compression.md",
        "docs/growth.md",
        "docs/loop.md",
        "docs/onnx.md",
        "docs/passes.md",
        "docs/scoring.md",
    ],
)
def test_links_lead_somewhere(page: str) -> None:
    file = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
        assert (file.parent / target).exists(), target
