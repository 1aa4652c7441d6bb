"""Specifications of passes with names, options and numbers changed, applied to a sound network."""

from __future__ import annotations

import random
from pathlib import Path

from archir.api import apply
from archir.axes.infer import infer_widths
from archir.errors import PassError
from archir.ir.load import load
from archir.ir.verify import verify
from archir.rewrite.spec import format_specs, options_of, parse_specs
from passes.catalog import PASSES
from tools.trust import seeds
from tools.trust.attack import Attack, Files, Wrong
from tools.trust.hostile import CODE, NAMES
from tools.trust.mutate import mutate_text
from tools.trust.sound import examine

_NUMBERS = (
    "0",
    "1",
    "-1",
    "2",
    "3",
    "4",
    "5",
    "7",
    "100000",
    "1099511627776",
    "9" * 40,
    "9" * 5000,
    "0.5",
    "1e308",
    "1e400",
    "nan",
    "inf",
    "-inf",
)
_LISTS = (
    "[]",
    "[0]",
    "[0, 0]",
    "[0, 1]",
    "[-1]",
    "[99]",
    "[[0]]",
    "[0, 1, 2, 3, 4, 5]",
    "[" * 3000,
    "[0" + ", 0" * 5000 + "]",
)
_WORDS = (
    "true",
    "false",
    "relu",
    "gelu",
    "tanh",
    "w0",
    "w1",
    "f0",
    "w99",
    "%0",
    "%1",
    "%3",
    "%99999999999",
    "%",
    "@x",
    '"two words"',
    '"\\ud800"',
    '""',
)
_NESTED = (
    "compose{passes=[split{width=w0}, prune{width=w0, units=[0]}]}",
    "compose{passes=[" * 1500,
    "{}",
    "}",
    "{",
    ";",
    "# x",
    "=",
)


def make(dice: random.Random) -> Files:
    """Return a network and specifications."""
    number = dice.randrange(4)
    names = [*(f"w{i}" for i in range(4)), *(f"%{i}" for i in range(9))]
    text = "; ".join(_spec(dice, names) for _ in range(dice.choice((1, 1, 2, 3))))
    if dice.random() < 0.6:
        kinds = (_NUMBERS, _LISTS, _WORDS, _NESTED, names, sorted(PASSES), (CODE, *NAMES))
        text = mutate_text(dice, text, kinds, most=2)
    return {"net.archir": seeds.archives()[number], "passes.txt": text.encode("utf-8", "surrogatepass")}


def _spec(dice: random.Random, names: list[str]) -> str:
    name = dice.choice(sorted(PASSES))
    options = [f"{f.name}={_value(dice, str(f.type), names)}" for f in options_of(PASSES[name]) if dice.random() < 0.7]
    return f"{name}{{{', '.join(options)}}}"


def _value(dice: random.Random, kind: str, names: list[str]) -> str:
    if dice.random() < 0.1:
        return dice.choice(dice.choice((_NUMBERS, _LISTS, _WORDS)))
    if kind.startswith("tuple[int"):
        return f"[{', '.join(str(dice.randrange(6)) for _ in range(dice.randint(1, 3)))}]"
    if kind == "int":
        return dice.choice(_NUMBERS[:8])
    if kind == "float":
        return dice.choice(("0.5", "0.1", "1", "0"))
    return dice.choice(("true", "false")) if kind == "bool" else dice.choice(names)


def use(folder: Path) -> None:
    """Apply the passes; what comes of it is sound, and its history does the same again."""
    graph = load(folder / "net.archir")
    text = (folder / "passes.txt").read_bytes().decode("utf-8", "surrogatepass")
    passes = parse_specs(text, PASSES)
    if parse_specs(format_specs(passes), PASSES) != passes and "nan" not in text:
        raise Wrong(f"a specification is not read as it is printed: {format_specs(passes)}")
    done = apply(graph, passes)
    examine(done)
    verify(done)
    infer_widths(done)
    try:
        replayed = apply(graph, "; ".join(done.history))
    except PassError as error:
        raise Wrong(f"the history cannot be applied: {error}") from error
    if str(replayed) != str(done):
        raise Wrong(f"the history does something else: {done.history}")


SPECS = Attack("spec", make, use, memory=3 * 2**30)
