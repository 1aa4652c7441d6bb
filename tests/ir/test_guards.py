"""Guards in the text form, in files, and where sizes are chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from archir.errors import ArchirError, GraphError, ParseError
from archir.ir.graph import Graph
from archir.ir.guards import choose, parse_guard
from archir.ir.inputs import symbol_sizes
from archir.ir.load import load
from archir.ir.parse import parse_graph

TEXT = """graph net(x: f32[B, 5], y: f32[2*B, 5]) where B >= 3, B % 2 == 0 {
  %0 = aten.relu(x) : f32[B, 5]
  return (%0, y)
}"""


def _graph() -> Graph:
    return parse_graph(TEXT)


def test_guards_are_printed_and_read_back(tmp_path: Path) -> None:
    graph = _graph()
    assert str(graph) == TEXT
    graph.save(tmp_path / "net.archir")
    for again in (
        load(tmp_path / "net.archir"),
        graph.to(torch.float64),
        graph.with_history("x"),
        graph.with_tensors({}),
    ):
        assert again.signature.guards == graph.signature.guards
    with graph.edit(by="none") as edit:
        pass
    assert edit.graph.signature == graph.signature


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("B", "'B' is not a guard"),
        ("B > 3 > 2", "is not a guard"),
        ("C > 3", "no input has the size C"),
        ("B**99 > 3", "is not a size"),
        ("2**B > 3", "is not a size"),
        ("3/B > 2", "divided by a size"),
        ("B < 1", "no sizes were found"),
        ("B % 2 == 0, B % 2 == 1", "no sizes were found"),
    ],
)
def test_what_no_guard_can_be_is_refused(where: str, said: str) -> None:
    with pytest.raises(ParseError, match=said.replace("*", r"\*")):
        parse_graph(TEXT.replace("B >= 3, B % 2 == 0", where))


def test_a_header_that_is_not_closed_is_refused() -> None:
    with pytest.raises(ParseError, match="never closed"):
        parse_graph("graph net(x: f32[B, 5]) where B >= 3\n  return x\n}")


def test_sizes_are_chosen_for_which_the_guards_hold() -> None:
    assert symbol_sizes(_graph(), 2) == {"B": 4}
    assert symbol_sizes(_graph(), 2, avoid=[{"B": 4}]) == {"B": 6}
    assert choose([parse_guard("B % 100003 == 0")], {"B": 2, "C": 3}) == {"B": 100003, "C": 3}
    assert choose([parse_guard("C == B + 4"), parse_guard("B > 5")], {"B": 2, "C": 3}) == {"B": 6, "C": 10}


def test_a_module_tells_all_that_is_wrong_with_its_inputs() -> None:
    module = _graph().module()
    with pytest.raises(GraphError) as caught:
        module(torch.zeros(5, 6), torch.zeros(9, 5))
    assert caught.value.where.split("\n         ") == [
        "axis 1 of x has the size 6 instead of 5",
        "axis 0 of y has the size 9 instead of 2*B, which is 10",
        "B % 2 == 0 does not hold for B = 5",
    ]
    with pytest.raises(GraphError, match=r"x is i64\[4, 5\], the graph takes f32\[B, 5\]"):
        module(torch.zeros(4, 5, dtype=torch.int64), torch.zeros(8, 5))
    module(torch.zeros(4, 5, dtype=torch.float64), torch.zeros(8, 5))


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        (" at T = 8", ""),
        ("", ""),
        (" at S = 8", "no input has the size S"),
        (" at T = 7", r"the guard T % 2 == 0 does not hold for T = 7"),
        (" at T = 0", "positive, one each"),
        (" at T = 8, T = 8", "positive, one each"),
        (" at T = x", "sizes are written T = 128"),
        (" at 3 = 3", "sizes are written T = 128"),
        (" at T", "expected '='"),
    ],
)
def test_sizes_a_graph_was_captured_for_stand_before_its_guards(sizes: str, told: str) -> None:
    text = f"graph net(x: f32[B, T]){sizes} where T % 2 == 0 {{\n  %0 = aten.relu(x) : f32[B, T]\n  return %0\n}}"
    if told:
        with pytest.raises(ArchirError, match=told):
            parse_graph(text)
        return
    graph = parse_graph(text)
    assert str(graph) == text
    assert graph.signature.sizes == ((("T", 8),) if sizes else ())
