"""The rules of the house, read off the source: imports run one way, files are short, docstrings are there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

import archir

ROOT = Path(__file__).parent.parent
FILES = sorted(p for part in ("archir", "passes", "frontends") for p in ROOT.joinpath(part).rglob("*.py"))
LONGEST = 400

ALLOWED: dict[str, set[str]] = {
    "archir.errors": set(),
    "archir.ir": {"archir.errors"},
    "archir.axes": {"archir.errors", "archir.ir"},
    "archir.memory": {"archir.errors", "archir.ir"},
    "archir.cost": {"archir.errors", "archir.ir", "archir.memory"},
    "archir.comparison": {"archir.errors", "archir.ir", "archir.axes", "archir.cost"},
    "archir.rewrite": {"archir.errors", "archir.ir", "archir.axes", "archir.cost"},
    "archir.scoring": {"archir.errors", "archir.ir", "archir.axes", "archir.cost", "archir.rewrite"},
    "archir.testing": {"archir.errors", "archir.ir", "archir.axes", "archir.cost", "archir.rewrite", "archir.scoring"},
    "archir.growing": {"archir.errors", "archir.ir", "archir.axes", "archir.cost", "archir.rewrite", "archir.scoring"},
    "archir.emit": {"archir.errors", "archir.ir", "archir.axes", "archir.cost"},
    "passes": {"archir.errors", "archir.ir", "archir.axes", "archir.cost", "archir.rewrite"},
    "frontends": {"archir.errors", "archir.ir"},
}
"""What each part may import besides itself."""

KNOW_ALL = {
    "archir",
    "archir.__main__",
    "archir.api",
    "archir.captured",
    "archir.cli",
    "archir.integrations",
    "archir.kinds",
    "archir.plugins",
    "archir.steps",
}
"""The public face, the command line and other training loops, the passes they know, and what users give for models."""


def _name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(file): file for file in FILES}


def _part(module: str) -> str:
    """Return the part of the house a module is in: `archir.ir` for `archir.ir.graph`, `passes` for `passes.split`."""
    names = module.split(".")
    return ".".join(names[:2]) if names[0] == "archir" else names[0]


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _imports(tree: ast.AST) -> Iterator[str]:
    """Yield the modules of the house that are imported when the program runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                found = [m for m in (f"{node.module}.{alias.name}", node.module) if m in MODULES]
                yield from found[:1]
        elif _is_type_checking(node):
            assert isinstance(node, ast.If)
            yield from (m for part in node.orelse for m in _imports(part))
        else:
            yield from _imports(node)


IMPORTS = {name: sorted(set(_imports(ast.parse(file.read_text())))) for name, file in MODULES.items()}


def test_every_part_is_in_the_plan() -> None:
    assert {_part(m) for m in MODULES} <= set(ALLOWED) | KNOW_ALL


@pytest.mark.parametrize("module", sorted(m for m in MODULES if _part(m) not in KNOW_ALL))
def test_imports_run_one_way(module: str) -> None:
    part = _part(module)
    wrong = [m for m in IMPORTS[module] if _part(m) not in ALLOWED[part] | {part}]
    assert not wrong, f"{module} may not import {', '.join(wrong)}"


def test_no_module_is_named_as_a_public_function() -> None:
    assert [name for name in archir.__all__ if f"archir.{name}" in MODULES] == []


def test_no_imports_go_in_a_circle() -> None:
    graph = nx.DiGraph([(module, other) for module, others in IMPORTS.items() for other in others])
    assert list(nx.simple_cycles(graph)) == []


@pytest.mark.parametrize("module", sorted(m for m in MODULES if _part(m) not in KNOW_ALL))
def test_types_are_imported_as_anything_else_is(module: str) -> None:
    """So that no circle hides behind what is looked at by checkers of types alone."""
    assert not any(map(_is_type_checking, ast.walk(ast.parse(MODULES[module].read_text()))))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_files_are_short(module: str) -> None:
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= LONGEST, f"{lines} lines: split it by noun"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_everything_public_has_a_docstring(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    assert ast.get_docstring(tree), "the module"
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    bodies = [tree.body, *(c.body for c in tree.body if isinstance(c, ast.ClassDef) and not c.name.startswith("_"))]
    public = [n for body in bodies for n in body if isinstance(n, kinds) and not n.name.startswith("_")]
    assert [n.name for n in public if not ast.get_docstring(n)] == []


@pytest.mark.parametrize("module", sorted(m for m in MODULES if MODULES[m].name == "__init__.py" and m != "archir"))
def test_packages_hold_only_a_docstring(module: str) -> None:
    body = ast.parse(MODULES[module].read_text()).body
    assert len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)


def test_test_folders_are_not_packages() -> None:
    assert list(ROOT.joinpath("tests").rglob("__init__.py")) == [], "tests/passes would shadow passes"


def test_every_package_is_installed() -> None:
    listed = ROOT.joinpath("pyproject.toml").read_text()
    packages = sorted(m for m in MODULES if MODULES[m].name == "__init__.py")
    assert [m for m in packages if f'"{m}"' not in listed] == []


MAKERS = ("archir.ir.files", "archir.emit.files", "archir.growing.run", "archir.growing.lock")
"""Modules that open, make and rename files by themselves; all others have these do it."""


@pytest.mark.parametrize("module", sorted(set(MODULES) - set(MAKERS)))
def test_files_are_made_in_one_place(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"os.replace", "os.rename", "os.open", "os.getpid", "open", "tempfile.mktemp"}


def test_models_have_a_home_of_their_own() -> None:
    """Tools use no more of the tests than their models, and no test takes anything from another."""
    found = {
        (file.relative_to(ROOT).parts[0], node.module)
        for part in ("tests", "tools")
        for file in ROOT.joinpath(part).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tests.")
    }
    assert {part for part, _ in found} == {"tests", "tools"}
    assert [module for _, module in found if module.rpartition(".")[2].startswith("test_")] == []
    assert [module for part, module in found if part == "tools" and not module.startswith("tests.models.")] == []
