"""Passes of other people: found, and refused where they could not be used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest

import archir
from archir.errors import FileError, PassError
from archir.ir.builder import GraphBuilder as Builder
from archir.ir.graph import Graph, Patch
from archir.ir.patch import no_patch
from archir.plugins import find_passes, installed
from archir.rewrite.passes import Pass
from archir.rewrite.spec import format_specs, parse_specs
from passes.catalog import PASSES

HEAD = """
from dataclasses import dataclass
from typing import ClassVar
from archir.rewrite.morphism import Morphism
from archir.rewrite.passes import Pass
from passes.split import Split
"""

GOOD = f"""{HEAD}
class Base(Pass):
    pass

@dataclass(frozen=True)
class Same(Base):
    name: ClassVar[str] = "same"
    def patch(self, graph):
        with graph.edit(by="same") as edit:
            pass
        return edit.patch
"""


@dataclass(frozen=True)
class Same(Pass):
    name: ClassVar[str] = "same"

    def patch(self, graph: Graph) -> Patch:
        return no_patch(graph)


def write(folder: Path, text: str, name: str = "plugin") -> str:
    (folder / f"{name}.py").write_text(text)
    return f"{name}.py"


def test_passes_of_a_file_are_added(tmp_path: Path) -> None:
    found = archir.passes([write(tmp_path, GOOD)], base=tmp_path)
    assert set(found) == {*PASSES, "same"}
    b = Builder()
    graph = b.graph(b.call("aten.relu.default", b.input("x", "f32[B, 8]")))
    assert archir.apply(graph, "same; same", registry=found).history == ("same", "same")
    with pytest.raises(archir.ParseError, match="there is no pass 'same'"):
        archir.apply(graph, "same")


def test_one_pass_of_a_file_may_be_named(tmp_path: Path) -> None:
    second = GOOD.removeprefix(HEAD).replace("Same", "Second").replace('"same"', '"second"')
    plugin = write(tmp_path, GOOD + second)
    assert set(find_passes([plugin], base=tmp_path)) == {*PASSES, "same", "second"}
    assert set(find_passes([f"{plugin}:Second"], base=tmp_path)) == {*PASSES, "second"}


def test_modules_and_passes_are_taken_as_they_are() -> None:
    made = ModuleType(__name__)
    vars(made).update(Same=Same, Split=PASSES["split"])
    assert find_passes([made]) == {**PASSES, "same": Same}
    assert find_passes([Same, made, Same])["same"] is Same


def test_passes_may_be_named_that_are_known_already() -> None:
    assert find_passes(["passes.split", "passes.split:Split"]) == PASSES


def test_a_package_has_the_passes_of_its_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "archir_plugin_package").mkdir()
    write(tmp_path / "archir_plugin_package", GOOD, "same")
    write(tmp_path / "archir_plugin_package", "from archir_plugin_package.same import Same", "__init__")
    for name in ("archir_plugin_package", "archir_plugin_package.same"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.delitem(sys.modules, name)
    assert set(find_passes(["archir_plugin_package"], base=tmp_path)) == {*PASSES, "same"}


ANEW = GOOD.replace('"same"', '"split"')
NAMELESS = GOOD.replace('name: ClassVar[str] = "same"', "")
NO_WORD = GOOD.replace('"same"', '"two words"')
THAWED = GOOD.replace("@dataclass(frozen=True)", "@dataclass")
PLAIN = GOOD.replace("@dataclass(frozen=True)\n", "")
UNWRITTEN = GOOD.replace("    def patch", "    sizes: dict = None\n    def patch")
LACKING = GOOD.replace("(Base)", "(Morphism)")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import no_such_module_of_archir", "No module named 'no_such_module_of_archir'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def broken(", "SyntaxError"),
        ("", "plugin.py defines no pass"),
        (HEAD, "plugin.py defines no pass"),
        (ANEW, "plugin.py defines the pass 'split' anew"),
        (NAMELESS, "it has no name"),
        (NO_WORD, "its name is 'two words', which is no word"),
        (THAWED, "it is no frozen dataclass"),
        (PLAIN, "it is no frozen dataclass"),
        (UNWRITTEN, "option sizes is of type dict, not a word, number, truth value, pass or tuple"),
        (LACKING, "it lacks candidates, match, rewrite"),
    ],
)
def test_errors_tell_what_is_wrong_with_a_plugin(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(PassError) as caught:
        find_passes([write(tmp_path, text)], base=tmp_path)
    assert expected in str(caught.value)
    assert "plugin" in str(caught.value)


def test_errors_tell_what_cannot_be_found(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no file"):
        find_passes(["absent.py"], base=tmp_path)
    with pytest.raises(PassError, match="there is no module 'absent_module_of_archir'"):
        find_passes(["absent_module_of_archir"])
    with pytest.raises(PassError, match="did you mean Same"):
        find_passes([f"{write(tmp_path, GOOD)}:Sam"], base=tmp_path)
    with pytest.raises(PassError, match="is no module and no pass"):
        find_passes(["archir.plugins:GROUP"])


def test_two_plugins_may_not_use_one_name(tmp_path: Path) -> None:
    with pytest.raises(PassError, match=r"defines the pass 'same' anew\n.*\n.*it is the name of .*Same"):
        find_passes([Same, write(tmp_path, GOOD)], base=tmp_path)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder in which packages can be installed."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("archir_offered",):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.delitem(sys.modules, name)
    installed.cache_clear()
    yield tmp_path
    installed.cache_clear()


def offer(folder: Path, entry: str) -> None:
    information = folder / "archir_offered-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: archir-offered\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[archir.passes]\n{entry}\n")


@pytest.mark.parametrize("entry", ["all = archir_offered", "one = archir_offered:Same"])
def test_installed_packages_offer_passes(site: Path, entry: str) -> None:
    write(site, GOOD, "archir_offered")
    offer(site, entry)
    assert set(archir.passes()) == {*PASSES, "same"}
    b = Builder()
    graph = b.graph(b.call("aten.relu.default", b.input("x", "f32[B, 8]")))
    assert archir.apply(graph, "same").history == ("same",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("", "defines no pass"),
        (ANEW, "defines the pass 'split' anew"),
    ],
)
def test_errors_name_the_package_that_offers(site: Path, text: str, expected: str) -> None:
    write(site, text, "archir_offered")
    offer(site, "all = archir_offered")
    with pytest.raises(PassError) as caught:
        find_passes()
    assert expected in str(caught.value)
    assert "the entry point all = archir_offered of archir-offered" in str(caught.value)


def test_a_pass_may_have_passes_as_options(tmp_path: Path) -> None:
    file = tmp_path / "plugin.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "import archir\n"
        "@dataclass(frozen=True)\n"
        "class Twice(archir.Pass):\n"
        "    name: ClassVar[str] = 'twice'\n"
        "    step: archir.Pass\n"
        "    others: tuple[archir.Pass, ...] = ()\n"
        "    def patch(self, graph: archir.Graph) -> archir.Patch:\n"
        "        once = self.step.patch(graph)\n"
        "        return once.then(self.step.patch(once.after))\n"
    )
    registry = find_passes([str(file)])
    text = "twice{step=split{width=w0, units=[1]}, others=[simplify]}"
    assert format_specs(parse_specs(text, registry)) == text
