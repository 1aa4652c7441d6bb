"""Passes of other people, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archir.growing.run import open_run
from archir.ir.load import load
from tests.cli.run import archir, refused, write_models

PLUGIN = '''"""A kind of rewrite that archir does not have."""

from dataclasses import dataclass
from typing import ClassVar

from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Site
from archir.rewrite.passes import Pass
from passes.widen import Widen


@dataclass(frozen=True)
class Grow(Widen):
    """Widen by a few units, but only wide widths."""

    name: ClassVar[str] = "grow-some"
    summary: ClassVar[str] = "append units to a wide width"

    least: int = 4

    def miss(self, widths, width):
        wide = self.least <= 6
        return super().miss(widths, width) if wide else Miss("the width is too narrow")


@dataclass(frozen=True)
class Rename(Pass):
    """Note something in the history."""

    name: ClassVar[str] = "note"

    text: str

    def patch(self, graph):
        with graph.edit(by=f"note{{text={self.text}}}") as edit:
            pass
        return edit.patch
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_models(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    assert archir("trace", "models.py:digits", "--input", "2,1,8,8", "-o", "net.archir").code == 0
    return tmp_path


def test_passes_lists_those_of_a_plugin(folder: Path) -> None:
    listed = {p["name"]: p for p in json.loads(archir("passes", "--plugin", "mine.py", "--json").out)}
    assert listed["grow-some"]["options"][-1] == {"name": "least", "type": "int", "default": 4}
    assert listed["note"]["options"] == [{"name": "text", "type": "str"}]
    assert (listed["note"]["kind"], listed["grow-some"]["kind"]) == ("pass", "morphism")
    assert "note" not in archir("passes").out
    assert "text: str\n" in archir("passes", "--plugin", "mine.py").out.replace(" ", "\n").replace(":\n", ": ")


def test_sites_gives_the_reason_where_there_is_no_candidate(folder: Path) -> None:
    plugin = ("--plugin", "mine.py")
    found = json.loads(archir("sites", "net.archir", "--pass", "grow-some", *plugin, "--json").out)
    assert [s["first"] for s in found["sites"]] == ["grow-some{width=w0}"]
    found = json.loads(archir("sites", "net.archir", "--pass", "grow-some{least=9}", *plugin, "--json").out)
    assert found == {
        "sites": [],
        "misses": [{"site": "w0", "pass": "grow-some", "reason": "the width is too narrow"}],
    }
    assert "the width is too narrow" in archir("sites", "net.archir", "--pass", "grow-some{least=9}", *plugin).out
    assert "note{text=x} is no morphism" in refused("sites", "net.archir", "--pass", "note{text=x}", *plugin)


def test_apply_knows_the_passes_of_a_plugin(folder: Path) -> None:
    specs = "grow-some{width=w0, count=2}; note{text=wide}"
    assert archir("apply", "net.archir", specs, "--plugin", "mine.py", "--check", "-o", "out.archir").code == 0
    assert load("out.archir").history[-1] == "note{text=wide}"
    assert "there is no pass 'grow-some'" in refused("apply", "net.archir", specs, "--dry-run")


def test_score_knows_the_passes_of_a_plugin(folder: Path) -> None:
    options = ("--data", "digits", "--examples", "32", "--learn-steps", "2", "--passes", "grow-some", "--json")
    found = json.loads(archir("score", "net.archir", *options, "--plugin", "mine.py").out)
    assert [s["spec"] for s in found["scores"]] == ["grow-some{width=w0}"]


CONFIG = """
output = "run"
[model]
factory = "models.py:digits"
[data]
source = "digits"
limit = 400
[budget]
parameters = 800
[training]
steps = 20
batch_size = 32
evaluate_every = 10
[growth]
growth_steps = 1
learn_steps = 2
recalibrate_batches = 1
passes = ["grow-some{count=2}"]
"""


@pytest.mark.parametrize("where", ["configuration", "command line"])
def test_grow_knows_the_passes_of_a_plugin(folder: Path, where: str) -> None:
    named = 'plugins = ["mine.py"]\n' if where == "configuration" else ""
    (folder / "run.toml").write_text(CONFIG + named)
    given = () if where == "configuration" else ("--plugin", "mine.py")
    done = archir("grow", "run.toml", "--quiet", *given)
    assert done.code == 0, done
    assert any(e["event"] in ("grown", "rejected") for e in open_run(folder / "run").history())


def test_grow_tells_what_is_wrong_with_a_plugin_and_leaves_nothing(folder: Path) -> None:
    (folder / "run.toml").write_text(CONFIG)
    assert "there is no pass 'grow-some'" in refused("grow", "run.toml", "--quiet")
    (folder / "run.toml").write_text(CONFIG + 'plugins = ["absent.py"]\n')
    assert "there is no file absent.py" in refused("grow", "run.toml", "--quiet")
    (folder / "run.toml").write_text(CONFIG + "plugins = 3\n")
    assert "growth.plugins is 3, not a list of text" in refused("grow", "run.toml", "--quiet")
    assert not (folder / "run").exists()
