"""A function that is being written as a syntax tree: its statements, its names, and what its global names stand for."""

from __future__ import annotations

import ast
import keyword
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch


def place(tree: ast.AST, line: int) -> None:
    """Let every part of a syntax tree stand on one line."""
    waiting = [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, ast.stmt | ast.expr | ast.arg | ast.keyword):
            part.lineno = part.end_lineno = line
            part.col_offset = part.end_col_offset = 0
        for field in part._fields:
            inner = getattr(part, field)
            if isinstance(inner, list):
                waiting += [p for p in inner if isinstance(p, ast.AST)]
            elif isinstance(inner, ast.AST) and not isinstance(inner, ast.expr_context):
                waiting.append(inner)


class Function:
    """What has been written so far of a method.

    Attributes:
        scope: what its global names stand for.
        statements: its statements.
        taken: the names that have been used.
        own: what it calls the object it is a method of.
    """

    def __init__(self, taken: set[str]) -> None:
        """Begin a method.

        Args:
            taken: names that arguments have.
        """
        self.scope: dict[str, object] = {}
        self.statements: list[ast.stmt] = []
        self.taken = taken
        self._numbers: Counter[str] = Counter()
        self.own = self.fresh("self")

    def tree(self, name: str, arguments: ast.arguments) -> ast.Module:
        """Return a module of the syntax tree with this function alone, each statement on a line of its own."""
        function = ast.FunctionDef(name, arguments, self.statements, decorator_list=[], lineno=1, col_offset=0)
        place(arguments, 1)
        for line, statement in enumerate(self.statements, start=2):
            # So it stands when the tree is shown as text, to which tracebacks refer.
            place(statement, line)
        return ast.Module([function], type_ignores=[])

    def attribute(self, path: str) -> ast.expr:
        """Read a tensor or a flag of a submodule; a part that is no Python name is looked up by its text."""
        found: ast.expr = ast.Name(self.own, ast.Load())
        for part in path.split("."):
            if part.isidentifier() and not keyword.iskeyword(part):
                found = ast.Attribute(found, part, ast.Load())
            else:
                found = self.call_global(getattr, found, ast.Constant(part))
        return found

    def constant(self, value: object) -> ast.expr:
        """Return the source of a constant; one that has no literal is a global name."""
        if value is None or isinstance(value, bool | int | str | complex):
            return ast.Constant(value)
        if isinstance(value, float):
            return (
                ast.Constant(value)
                if math.isfinite(value)
                else self.global_name(str(value).replace("-", "minus_"), value)
            )
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            return ast.Attribute(self.global_name("torch", torch), str(value).removeprefix("torch."), ast.Load())
        return self.global_name(re.sub(r"\W", "_", str(value)), value)

    def call_global(self, function: Callable[..., Any], *arguments: ast.expr) -> ast.expr:
        """Return the call of a function by a global name."""
        return ast.Call(self.global_name(function.__name__, function), list(arguments), [])

    def global_name(self, hint: str, value: object) -> ast.expr:
        """Return a global name that stands for an object and is no name of an argument or variable."""
        name = next((n for n, found in self.scope.items() if found is value), None)
        if name is None:
            name = self.fresh(hint)
            self.scope[name] = value
        return ast.Name(name, ast.Load())

    def assign(self, hint: str, source: ast.expr) -> str:
        """Let a variable of a new name hold something; return the name."""
        name = self.fresh(hint)
        self.statements.append(ast.Assign([ast.Name(name, ast.Store())], source))
        return name

    def fresh(self, hint: str) -> str:
        """Return a name that was never used: one name is either a variable or global in the whole of a function."""
        name = hint
        while name in self.taken or keyword.iskeyword(name):
            self._numbers[hint] += 1
            name = f"{hint}_{self._numbers[hint]}"
        self.taken.add(name)
        return name
