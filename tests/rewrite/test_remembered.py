"""What is remembered about a graph goes when the graph goes, and is found out once while it is there."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch

from archir.axes import infer
from archir.axes.infer import infer_widths
from archir.axes.widths import Analysis
from archir.ir.graph import Graph
from archir.rewrite.morphism import Morphism
from archir.rewrite.multiplicity import solve_exponents
from archir.rewrite.subgraph import subgraph_of
from passes.merge import Merge
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.models.captured import graph_of

NAMES = ("resnet", "shufflenet", "swin", "gpt", "grouped_query_attention", "lstm")
"""Models that between them have calls of most families whose arguments follow from sizes."""


@pytest.fixture(scope="module")
def no_collector() -> Iterator[None]:
    """What is freed is freed by the last reference to it."""
    for name in NAMES:
        graph_of(name)  # capturing leaves frames in circles, and these the graphs of whoever asked for it
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def copy_of(name: str) -> Graph:
    """Return the graph of a model of the zoo with nodes, structure and tensors of its own."""
    graph = graph_of(name).to(torch.float64)
    return graph.with_tensors({n: graph.tensors[node.id] for n, node in graph.by_name.items()})


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("name", NAMES)
def test_what_is_known_of_a_graph_goes_with_the_last_reference_to_it(name: str) -> None:
    """Nothing waits for the garbage collector: the tensors of a large network would fill the memory till then."""
    graph = copy_of(name)
    count = len(infer_widths(graph))
    for i in range(count):
        solve_exponents(infer_widths(graph), infer_widths(graph).free[i])
        subgraph_of(infer_widths(graph), infer_widths(graph).free[i])
    things = (graph, graph.structure, infer_widths(graph).analysis, *graph.tensors.values())
    gone: list[weakref.ref[object]] = list(map(weakref.ref, things))
    del graph, things
    assert [known() for known in gone if known() is not None] == []


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("morphism", [Split(), Prune(), Widen(), Merge()], ids=lambda m: m.name)
def test_a_rewritten_graph_does_not_hold_the_one_it_came_from(morphism: Morphism) -> None:
    graph = copy_of("resnet")
    site = next(iter(morphism.sites(graph)))
    grown = site.members[0].apply(graph)
    assert len(infer_widths(grown)) == len(infer_widths(graph))
    gone = weakref.ref(graph)
    del graph, site
    assert gone() is None


def test_a_graph_is_analysed_once_however_many_are_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    analysed: list[str] = []

    def count(graph: Graph) -> Analysis:
        analysed.append(graph.name)
        return analyse(graph)

    analyse = infer.analyse
    monkeypatch.setattr(infer, "analyse", count)
    graphs = [copy_of("mlp") for _ in range(6)]
    found = [infer_widths(g) for g in (*graphs, *graphs)]
    assert len(analysed) == 6
    assert all(found[i].analysis is found[i + 6].analysis and found[i].graph is graphs[i] for i in range(6))
    assert len({id(widths.analysis) for widths in found}) == 6


def test_graphs_that_differ_in_their_numbers_alone_share_an_analysis() -> None:
    graph = copy_of("mlp")
    name = next(iter(graph.by_name))
    other = graph.with_tensors({name: graph.tensor(name) + 1})
    one, two = infer_widths(graph), infer_widths(other)
    assert one.analysis is two.analysis and two.graph is other
    (width, *_) = one
    assert solve_exponents(one, width) is solve_exponents(two, width)
    assert subgraph_of(one, width) is subgraph_of(two, width)
