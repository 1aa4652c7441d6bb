"""Which tests are nearest to what changed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import networkx as nx
import pytest

from tools import changed_tests
from tools.changed_tests import changed_files, every_module, import_graph, main, nearest_tests, pytest_runtest_setup

HERE = "tests.tools.test_changed_tests"
MODULES = every_module()


@pytest.fixture(scope="module")
def graph() -> nx.DiGraph:
    return import_graph(MODULES)


def nearest(file: str, graph: nx.DiGraph) -> list[str]:
    return [path.relative_to(changed_tests.ROOT).as_posix() for path in nearest_tests([file], MODULES, graph)]


def test_a_test_is_nearest_to_itself(graph: nx.DiGraph) -> None:
    assert nearest("tests/tools/test_changed_tests.py", graph) == ["tests/tools/test_changed_tests.py"]


def test_those_that_import_a_module_are_nearest_to_it(graph: nx.DiGraph) -> None:
    assert nearest("tools/changed_tests.py", graph) == ["tests/tools/test_changed_tests.py"]
    assert graph.has_edge("tools.changed_tests", HERE)


def test_what_tests_share_is_passed_through_for_nothing(graph: nx.DiGraph) -> None:
    """`tests.cli.run` imports the command line for all of its tests."""
    assert graph["archir.cli.main"]["tests.cli.run"]["weight"] == 1
    assert graph["tests.cli.run"]["tests.cli.test_links"]["weight"] == 0
    assert "tests/cli/test_links.py" in nearest("archir/cli/main.py", graph)
    assert "tests/cli/test_links.py" in nearest("tests/cli/run.py", graph)


def test_a_module_that_no_test_imports_has_those_of_its_importers(graph: nx.DiGraph) -> None:
    files = {"archir/a.py": "archir.a", "archir/b.py": "archir.b", "tests/test_a.py": "tests.test_a"}
    modules = {name: changed_tests.ROOT / file for file, name in files.items()}
    chain = nx.DiGraph([("archir.a", "archir.b"), ("archir.b", "tests.test_a")])
    nx.set_edge_attributes(chain, 1, "weight")
    assert nearest_tests(["archir/a.py"], modules, chain) == [changed_tests.ROOT / "tests" / "test_a.py"]


def test_the_nearest_come_first(graph: nx.DiGraph) -> None:
    found = nearest_tests(["frontends/agreement.py", "tests/axes/test_terms.py"], MODULES, graph)
    assert next(path.name for path in found) == "test_terms.py"
    assert "test_agreement.py" in [path.name for path in found]


def test_data_has_the_tests_of_its_folder_and_documents_those_that_name_them(graph: nx.DiGraph) -> None:
    assert nearest("tests/zoo/expected/language_albert.txt", graph) == ["tests/zoo/test_zoo.py"]
    assert nearest("README.md", graph) == ["tests/test_readme.py", "tests/tools/test_changed_tests.py"]
    assert nearest("nothing/names.this", graph) == ["tests/tools/test_changed_tests.py"]


def test_what_differs_from_the_main_branch_and_what_is_new_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        named = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *named, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(changed_tests, "ROOT", tmp_path)
    git("init", "--initial-branch", "main")
    for name in ("kept", "committed", "edited"):
        tmp_path.joinpath(name).touch()
    git("add", ".")
    git("commit", "--message", "one")
    assert changed_files() == []
    git("checkout", "-b", "other")
    tmp_path.joinpath("committed").write_text("2")
    git("commit", "--all", "--message", "two")
    tmp_path.joinpath("edited").write_text("3")
    tmp_path.joinpath("new").touch()
    assert changed_files() == ["committed", "edited", "new"]
    assert changed_files("absent") == ["edited", "new"]


def test_no_test_begins_after_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(changed_tests.UNTIL, "inf")
    pytest_runtest_setup()
    monkeypatch.setenv(changed_tests.UNTIL, "0")
    with pytest.raises(pytest.skip.Exception, match="the time was up"):
        pytest_runtest_setup()


def test_pytest_is_run_on_them_and_its_status_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[list[str]] = []

    def status(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        run.append(command)
        return subprocess.CompletedProcess(command, 5)

    monkeypatch.setattr(changed_tests, "changed_files", lambda: ["frontends/agreement.py"])
    monkeypatch.setattr(subprocess, "run", status)
    monkeypatch.setenv(changed_tests.UNTIL, "")
    assert main(["-x"]) == 5
    ((*_, house, test),) = run
    assert [Path(house).name, Path(test).name] == ["test_house.py", "test_agreement.py"]
    assert "not slow" in run[0] and "-x" in run[0]
