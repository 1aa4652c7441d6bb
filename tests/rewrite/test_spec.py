"""Specifications of passes: text and back, and errors that point at the word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archir.errors import ParseError
from archir.ir.graph import Graph, Patch
from archir.ir.patch import no_patch
from archir.rewrite.passes import Pass
from archir.rewrite.spec import format_spec, format_specs, parse_spec_lines, parse_specs
from passes.catalog import PASSES, morphisms
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen


@dataclass(frozen=True)
class Every(Pass):
    """A pass with an option of every kind."""

    name: ClassVar[str] = "every"

    where: str
    count: int = 1
    scale: float = 0.5
    on: bool = False
    names: tuple[str, ...] = ()

    def patch(self, graph: Graph) -> Patch:
        """Do nothing."""
        return no_patch(graph)


REGISTRY: dict[str, type[Pass]] = {**PASSES, "every": Every}


@pytest.mark.parametrize(
    ("pass_", "text"),
    [
        (Split("w3", (5,)), "split{width=w3, units=[5]}"),
        (Prune("w1", (0, 2)), "prune{width=w1, units=[0, 2]}"),
        (Split("w3"), "split{width=w3}"),
        (Split(), "split"),
        (Widen("w0", 4), "widen{width=w0, count=4}"),
        (Every("%3.1"), "every{where=%3.1}"),
        (Every("a b", on=True, scale=1e-05), 'every{where="a b", scale=1e-05, on=true}'),
        (Every('say "no"', names=("x", "")), 'every{where="say \\"no\\"", names=[x, ""]}'),
    ],
)
def test_passes_have_a_text(pass_: Pass, text: str) -> None:
    assert format_spec(pass_) == text
    assert parse_specs(text, REGISTRY) == [pass_]


OPTIONS = st.builds(
    Every,
    where=st.text(),
    count=st.integers(),
    scale=st.floats(allow_nan=False),
    on=st.booleans(),
    names=st.lists(st.text(), max_size=3).map(tuple),
)


@given(st.lists(OPTIONS, max_size=3))
def test_any_options_come_back(passes: list[Every]) -> None:
    assert parse_specs(format_specs(passes), REGISTRY) == passes


def test_spaces_and_empty_parts_do_not_matter() -> None:
    expected = [Split("w0", (1,)), Split("w1")]
    assert parse_specs(" ;split{ width = w0 ,units=[ 1, ] }\n;; split{width=w1,} ; ", REGISTRY) == expected
    assert parse_specs("", REGISTRY) == []


def test_comments_do_not_matter() -> None:
    text = '# first\nsplit{width=w0} # split; prune\n; split{width="#w1"}#'
    assert parse_specs(text, REGISTRY) == [Split("w0"), Split("#w1")]
    assert parse_specs(" # nothing", REGISTRY) == []


def test_a_file_holds_one_or_more_a_line() -> None:
    text = "# two widths\nsplit{width=w0}; split{width=w1};\r\n\n\tsplit # every width\n"
    assert parse_spec_lines(text, REGISTRY, source="a.txt") == [Split("w0"), Split("w1"), Split()]


@pytest.mark.parametrize(
    ("line", "pointer", "why"),
    [
        ("  split{width=w0}; every  # soon", "                   ^^^^^", "every needs the option 'where'"),
        ("split{width=w0  # and on", "              ^", "it ends where ',' or '}' is expected"),
        ("split prune", "      ^^^^^", "';' is expected here"),
    ],
)
def test_errors_in_a_file_name_the_line(line: str, pointer: str, why: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_spec_lines(f"# a comment\n\n{line}\nsplit", REGISTRY, source="a.txt")
    assert str(caught.value).splitlines() == [
        "this is not a specification of passes",
        "  where: a.txt:3",
        f"         {line}",
        f"         {pointer}",
        f"  why:   {why}",
    ]


@pytest.mark.parametrize(
    ("text", "why", "pointer", "hint"),
    [
        ("spilt{width=w0}", "there is no pass 'spilt'", "^^^^^", "did you mean split or dilate?"),
        ("split; prunes", "there is no pass 'prunes'", "       ^^^^^^", "did you mean prune?"),
        ("split{wdith=w0}", "split has no option 'wdith'", "      ^^^^^", "did you mean width?"),
        ("split{width=w0, width=w1}", "width is given twice", "                ^^^^^", ""),
        ("split{width w0}", "'=' is expected here", "            ^^", ""),
        ("split{width=w0 units=[1]}", "',' is expected here", "               ^^^^^", ""),
        ("split{width=}", "a word is expected here", "            ^", ""),
        ("split{units=5}", "'[' is expected here", "            ^", ""),
        ("split{units=[one]}", "a whole number is expected here", "             ^^^", ""),
        ("widen{count=2.5}", "a whole number is expected here", "            ^^^", ""),
        ("every{where=a, on=yes}", "true or false is expected here", "                  ^^^", ""),
        ("every{where=a, scale=big}", "a number is expected here", "                     ^^^", ""),
        ('every{where="\\x"}', "a word is expected here", "            ^^^^", ""),
        ("every", "every needs the option 'where'", "^^^^^", ""),
        ("split{width=w0", "it ends where ',' or '}' is expected", "              ^", ""),
        ("split{", "it ends where a word is expected", "      ^", ""),
        ("split prune", "';' is expected here", "      ^^^^^", ""),
        ("split{width=w0} &", "this character has no meaning here", "                ^", ""),
        ('split{width="w0}', "this character has no meaning here", "            ^", ""),
    ],
)
def test_errors_point_at_the_word(text: str, why: str, pointer: str, hint: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_specs(text, REGISTRY)
    assert str(caught.value).splitlines() == [
        "this is not a specification of passes",
        f"  where: {text}",
        f"         {pointer}",
        f"  why:   {why}",
        *([f"  hint:  {hint}"] if hint else []),
    ]


def test_the_catalog_is_by_name() -> None:
    assert {name: kind.name for name, kind in PASSES.items()} == {name: name for name in PASSES}
    assert all(kind.summary for kind in PASSES.values())
    assert [type(m) for m in morphisms()] == [Split, Prune]
