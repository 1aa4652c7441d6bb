"""The closed vocabulary of emitted source: whatever else stands in a draft keeps it from being written or run.

Names and strings of a program come from files of strangers. They are quoted where they become source; that none of
them became code all the same is checked here, on the syntax tree. What may stand there follows from the graph (its
operators, paths and texts) and from lists that are written down; nothing follows from the draft. A node of the tree
that is not listed is an error.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator

import torch

from archir.emit.allowed_names import OWN_TEXTS
from archir.emit.arguments import operator_path
from archir.emit.places import Places
from archir.emit.reader import Known, Reader
from archir.emit.syntax_forms import is_text
from archir.errors import EmitError
from archir.ir import ops
from archir.ir.arithmetic import ARITHMETIC
from archir.ir.graph import Graph
from archir.ir.node import texts


class Vocabulary:
    """What the source of one program may say."""

    def __init__(self, graph: Graph) -> None:
        """Collect the operators of a graph, and the paths and texts in it.

        Args:
            graph: the program.
        """
        self._known = Known(
            ops=frozenset(operator_path(n.op) for n in graph.calls if n.op not in ARITHMETIC),
            places=Places(graph),
            tensors=frozenset(graph.by_name),
            texts=OWN_TEXTS | frozenset(_texts(graph)),
        )

    def expression(self, text: str, names: Collection[str]) -> ast.Expression:
        """Return the syntax tree of an expression in given variables.

        Raises:
            EmitError: it says something else.
            SyntaxError: it is not an expression.
        """
        tree = ast.parse(text, mode="eval")
        reader = Reader(self._known, frozenset(), names)
        reader.read(tree.body)
        reader.finish()
        return tree

    def program(self, text: str) -> None:
        """Check the source of a program.

        Raises:
            EmitError: it says something else, or is no Python; all violations at once.
        """
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError) as error:
            raise EmitError("the source would not be Python", why=str(error)) from error
        reader = Reader(self._known, frozenset(c.name for c in tree.body if isinstance(c, ast.ClassDef)), ())
        for at, node in enumerate(tree.body):
            if at or not is_text(node):
                reader.top(node)
        reader.finish()


def _texts(graph: Graph) -> Iterator[str]:
    """Yield the texts that may stand in the source of a graph: constants, defaults, keys of arguments and results."""

    def inside(value: object) -> Iterator[str]:
        if isinstance(value, tuple):
            for part in value:
                yield from inside(part)
        elif isinstance(value, str | torch.device):
            yield str(value)

    for node in graph.nodes:
        yield from inside(tuple(node.arguments.values()))
    for node in graph.calls:
        yield from inside(tuple(ops.schema(node.op).defaults.values()))  # written where a later argument is given
    for leaf in (graph.signature.args, graph.signature.kwargs, graph.signature.result):
        yield from texts(leaf)
