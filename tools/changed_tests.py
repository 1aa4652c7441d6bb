"""Runs the tests nearest to what changed since the main branch: `python -m tools.changed_tests [options of pytest]`.

A file has changed if it differs from what the main branch was when this one left it, or is not in git yet. The tests
nearest to a module are those that import it by the fewest steps, where passing through what tests share counts for
none; nearest to the data of tests are those of its folder, and to any other file those that name it. They run in order
of distance, without slow ones, after the rules of the house, until the time is up; what did not run is told.
`make test` runs them all.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "tests" / "test_house.py"
SECONDS = 40
"""For how long after the start tests are begun."""

MOST = 20
"""The most files of tests that are run: to read more of them takes too long."""

UNTIL = "ARCHIR_TESTS_UNTIL"
"""The environment variable in which the processes that run tests find when to stop."""


def changed_files(main: str = "main") -> list[str]:
    """Return the paths of the files that differ from the main branch, or from the last commit where there is none."""
    base = _git("merge-base", "HEAD", main) or ["HEAD"]
    return sorted({*_git("diff", "--name-only", base[0]), *_git("ls-files", "--others", "--exclude-standard")})


def _git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


def import_graph(modules: Mapping[str, Path]) -> nx.DiGraph:
    """Return which modules name which: an edge leads from a module to those that import it or name it in a string.

    Its weight is 1, or 0 where the module that is imported is one that tests share.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(modules)
    for name, path in modules.items():
        for found in set(_named(ast.parse(path.read_text()))) & modules.keys() - {name}:
            graph.add_edge(found, name, weight=int(not found.startswith("tests.")))
    return graph


def _named(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def nearest_tests(changed: Iterable[str], modules: Mapping[str, Path], graph: nx.DiGraph) -> list[Path]:
    """Return the files of tests nearest to each of some changed files, those at the smallest distance first."""
    names = {path.relative_to(ROOT).as_posix(): name for name, path in modules.items()}
    tests = {name: path for name, path in modules.items() if path.name.startswith("test_")}
    found: dict[Path, float] = {}
    for file in changed:
        if file in names:
            lengths = nx.single_source_dijkstra_path_length(graph, names[file])
            distances = {tests[name]: lengths[name] for name in tests.keys() & lengths.keys()}
        else:
            place = Path(file)
            beside = ROOT.joinpath(*place.parts[:2]) if place.parts[0] == "tests" and len(place.parts) > 2 else None
            near = (p for p in tests.values() if (beside in p.parents if beside else place.name in p.read_text()))
            distances = dict.fromkeys(near, 1)
        nearest = min(distances.values(), default=0)
        for path, distance in distances.items():
            if distance == nearest:
                found[path] = min(distance, found.get(path, distance))
    return sorted(found, key=lambda path: (found[path], path))


def every_module() -> dict[str, Path]:
    """Return the file of each module of the program, its tools and its tests, by name."""
    parts = ("archir", "passes", "frontends", "tools", "tests")
    files = (path for part in parts for path in ROOT.joinpath(part).rglob("*.py"))
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


def pytest_runtest_setup() -> None:
    """Skip what would begin after the time is up."""
    if time.time() > float(os.environ.get(UNTIL, "inf")):
        pytest.skip("the time was up")


def main(options: list[str]) -> int:
    """Run the tests nearest to what changed, and return the exit status of pytest."""
    modules = every_module()
    tests = nearest_tests(changed_files(), modules, import_graph(modules))
    left = f"; {len(tests) - MOST} of them are left to `make test`" if len(tests) > MOST else ""
    print(f"{len(tests)} files of tests are nearest to what changed{left}", flush=True)
    os.environ[UNTIL] = str(time.time() + SECONDS)
    command = ["-p", "tools.changed_tests", "-m", "not slow", "-rs", *options, str(HOUSE), *map(str, tests[:MOST])]
    return subprocess.run([sys.executable, "-m", "pytest", *command], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
