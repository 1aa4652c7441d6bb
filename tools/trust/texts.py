"""Texts of graphs with tokens, lines and notes replaced, and calls put in that should never run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from archir.ir.parse import parse_graph
from archir.ir.text import print_graph
from tools.trust import seeds
from tools.trust.attack import Attack, Files, Wrong
from tools.trust.calls import CALLS
from tools.trust.hostile import CONSTANTS, NAMES, NOTES, SIZES, operator_names
from tools.trust.mutate import mutate_text
from tools.trust.payloads import around, known_texts, quoted
from tools.trust.sound import examine

_TYPES = (
    "f32",
    "f64",
    "i64",
    "bool",
    "int",
    "float",
    "bits8",
    "qint32",
    "storage",
    "int(B)",
    "float(9**9)",
    "f32[B, 4]",
)
_QUOTED = tuple(map(quoted, NAMES))
_WORDS = (
    operator_names(),
    CONSTANTS,
    CONSTANTS,
    SIZES,
    (*_QUOTED, *(f"@{q}" for q in _QUOTED)),
    tuple(f"  {note}" for note in NOTES),
    (*_TYPES, "param", "buffer", "constant", "frozen", "transient", "call (x)", "return", "=", "{", "}", "\n", "%0 = "),
)


def mutated(dice: random.Random) -> str:
    """Return the text of a graph that an adversary has changed."""
    if dice.random() < 0.25:
        return with_calls(dice, dice.choice(CALLS))
    return mutate_text(dice, dice.choice(seeds.texts()), _WORDS)


def with_calls(dice: random.Random, calls: str) -> str:
    """Return the text of a graph around some calls."""
    inputs = dice.choice(("x: f32[B, 4]", "x: f32[B, 4]", "x: i64[B, 4]", "x: f32[2, 4]", "x: f32[]", "x: int(B)"))
    last = calls.rpartition("\n")[2].split()[0]
    return around(calls, inputs=inputs, result=dice.choice((last, "x", f"({last}.0, x)", f'{{"y": {last}}}')))


def known() -> Sequence[Files]:
    """Return all that is known, and sound texts."""
    return [*(_file(text) | {"sound": b""} for text in seeds.texts()), *map(_file, known_texts())]


def _file(text: str) -> dict[str, bytes]:
    return {"net.txt": text.encode("utf-8", "surrogatepass")}


def make(dice: random.Random) -> Files:
    """Return a text in a file."""
    return _file(mutated(dice))


def use(folder: Path) -> None:
    """Read the text, and do with the graph what users do."""
    text = (folder / "net.txt").read_bytes().decode("utf-8", "surrogatepass")
    graph = parse_graph(text)
    if (folder / "sound").exists() and text not in (print_graph(graph, locations=told) for told in (False, True)):
        raise Wrong("a sound text is read as something else")
    examine(graph)


TEXTS = Attack("text", make, use, known, reads=True)


def make_call(dice: random.Random) -> Files:
    """Return the text of a graph with one call of anything that has a name."""
    op = dice.choice(operator_names())
    call = f"%0 = {op}({', '.join(_arguments(dice, op))}){dice.choice(_RESULTS)}"
    return _file(with_calls(dice, call))


_RESULTS = ("", "", " : f32[B, 4]", " : int", " : ()", " : f32[4], f32[4]", " : float", " : bool")
_TYPED = {
    "Tensor": ("x",),
    "int": ("0", "1", "2", "-1", "1099511627776", "9223372036854775807", "3"),
    "SymInt": ("0", "1", "2", "-1", "1099511627776", "4"),
    "float": ("0.5", "1.0", "nan", "1e308", "0"),
    "bool": ("True", "False"),
    "str": ('"victim"', '"mean"', '""', '"sum"', '"none"'),
    "Device": ("cpu", "cuda", "meta"),
    "ScalarType": ("f32", "i64", "f64"),
    "number": ("1", "2.0", "-1", "1e308", "True"),
}


def _arguments(dice: random.Random, op: str) -> list[str]:
    """Return arguments that fit the schema of an operator more often than not."""
    space, _, rest = op.partition(".")
    name, _, overload = rest.partition(".")
    found = getattr(getattr(getattr(torch.ops, space, None), name, None), overload or "default", None)
    if not isinstance(found, torch._ops.OpOverload):
        return [
            dice.choice(dice.choice((CONSTANTS, ("x", "x", "2", "[x, x]", '"victim"'))))
            for _ in range(dice.randrange(4))
        ]
    given: list[str] = []
    for argument in found._schema.arguments:
        if argument.has_default_value() and dice.random() < 0.7:
            continue
        kind = str(argument.type)
        words = next((w for part, w in _TYPED.items() if part in kind), ("None", "x", "1"))
        word = dice.choice(words) if dice.random() < 0.9 else dice.choice(CONSTANTS)
        word = f"[{', '.join([word] * dice.choice((1, 2, 2, 3)))}]" if "List" in kind else word
        given.append(f"{argument.name}={word}")
    return given


CALLED = Attack("operator", make_call, use, reads=True)
