"""Any graph survives its text form and its file."""

from __future__ import annotations

import tempfile
from keyword import iskeyword
from pathlib import Path
from unicodedata import normalize

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from archir.ir.builder import GraphBuilder as Builder
from archir.ir.graph import Graph
from archir.ir.load import load
from archir.ir.node import Constant, Leaf, Location, Signature, Tree, Value
from archir.ir.parse import parse_graph
from archir.ir.text import print_graph
from archir.ir.types import TensorType
from tests.models.captured import graph_of
from tests.models.equality import same
from tests.models.zoo import ZOO

WORDS = st.one_of(st.text(max_size=6), st.sampled_from(["f32", "x", "a.b", "B", "w0", "`", "\\", '"', "#:", "é"]))
PLAIN = WORDS.map(lambda word: "".join(c for c in normalize("NFKC", word) if c.isprintable() and c not in "\"'`\\"))
NAMES = st.from_regex(r"[a-z_]\w{0,4}", fullmatch=True) | st.sampled_from(["f32", "inf", "B", "w0", "é", "graph"])
ARGUMENTS = NAMES.filter(lambda name: name.isidentifier() and not iskeyword(name) and normalize("NFKC", name) == name)
PARTS = PLAIN.map(lambda word: word.replace(".", "")).filter(lambda part: part and not hasattr(nn.Module(), part))
PATHS = st.lists(PARTS, min_size=1, max_size=3).map(".".join)
CONSTANTS = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False))
PLACES = st.builds(Location, st.just("") | PATHS, WORDS, WORDS, st.integers(0, 999)) | st.none()
KINDS = st.sampled_from(["parameter", "buffer", "constant"])


def _tree(draw: st.DrawFn, leaves: list[int], texts: st.SearchStrategy[str], depth: int = 2) -> Leaf:
    """Draw a nesting whose leaves are these numbers, in order, and constants."""
    kind = draw(st.sampled_from(["tuple", "list", "dict"]))
    children: list[Leaf] = []
    while leaves:
        count = draw(st.integers(1, 2)) if depth else 1
        part, leaves = leaves[:count], leaves[count:]
        children.append(part[0] if count == 1 else _tree(draw, part, texts, depth - 1))
        children += [Constant(draw(CONSTANTS | texts))] if draw(st.booleans()) else []
    keys = draw(st.lists(texts, min_size=len(children), max_size=len(children), unique=True)) if kind == "dict" else ()
    return Tree(kind, tuple(children), tuple(keys))


def _wrapped(kind: str, leaves: Leaf) -> Tree:
    children = leaves.children if isinstance(leaves, Tree) else (leaves,)
    return Tree(kind, children, tuple(f"k{i}" for i in range(len(children))) if kind == "dict" else ())


def _is_free(path: str, taken: list[str]) -> bool:
    """Say whether a tensor can be called that beside others: it is neither one of them nor a module of one."""
    return not any(f"{other}.".startswith(f"{path}.") or path.startswith(f"{other}.") for other in taken)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Draw a graph over values of the type f32[B, 4]."""
    b = Builder(draw(PLAIN), step=draw(st.integers(1, 3)))
    names = draw(st.lists(ARGUMENTS, min_size=1, max_size=3, unique=True))
    values = [b.input(name, "f32[B, 4]") for name in names]
    paths: list[str] = []

    def parameter(type_: str) -> Value:
        tied = [draw(PATHS.filter(lambda path: _is_free(path, paths)))]
        if draw(st.booleans()):
            tied.append(draw(PATHS.filter(lambda path: _is_free(path, [*paths, *tied]))))
        paths.extend(tied)
        flags = {"trainable": draw(st.booleans()), "persistent": draw(st.booleans())}
        return b.parameter(tuple(tied), type_, draw(KINDS), **flags)

    weights, scales = [parameter("f32[4, 4]") for _ in range(2)], [parameter("f32[4]")]
    parameter(draw(st.sampled_from(["i64[]", "bool[2, 0]", "bf16[3]", "c64[1]"])))
    for _ in range(draw(st.integers(0, 6))):
        x, y = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        b.location, b.born = draw(PLACES), draw(WORDS)
        match draw(st.sampled_from(["relu", "add", "linear", "norm", "split", "view"])):
            case "relu":
                values.append(b.call("aten.relu.default", x))
            case "add":
                values.append(b.call("aten.add.Tensor", x, y, alpha=draw(st.sampled_from([1, 2, 0.5, -1e-9]))))
            case "linear":
                values.append(b.call("aten.linear.default", x, draw(st.sampled_from(weights)), scales[0]))
            case "norm":
                scale = draw(st.sampled_from([None, *scales]))
                values.append(b.call("aten.layer_norm.default", x, (4,), None, scale))
            case "split":
                parts = b.call("aten.split.Tensor", x, 2, 1)
                values.append(b.call("aten.cat.default", (Value(parts.node, 1), parts), -1))
            case "view":
                batch = b.call("aten.sym_size.int", y, 0)
                values.append(b.call("aten.view.default", x, (batch, draw(st.sampled_from([4, -1])))))
    outputs = draw(st.lists(st.sampled_from([*values, *weights]), max_size=3))
    cut = draw(st.integers(0, len(names)))
    order = list(draw(st.permutations(range(len(names)))))
    args, kwargs = _wrapped("tuple", _tree(draw, order[:cut], PLAIN)), _wrapped("dict", _tree(draw, order[cut:], PLAIN))
    result = _tree(draw, list(range(len(outputs))), WORDS)
    history = tuple(draw(st.lists(st.text(max_size=8), max_size=2)))
    modes = draw(st.frozensets(st.one_of(st.just(""), PATHS), max_size=3))
    return b.graph(*outputs, signature=Signature(args, kwargs, result, mode_changes=modes), history=history)


@given(graphs())
def test_a_graph_survives_its_text(graph: Graph) -> None:
    text = str(graph)
    found = parse_graph(text)
    assert str(found) == text
    assert str(graph) == text
    assert found.signature == graph.signature
    assert [(n.op, n.results) for n in found.calls] == [(n.op, n.results) for n in graph.calls]
    assert {(n.parameter, n.results) for n in found.parameters} == {(n.parameter, n.results) for n in graph.parameters}


@given(graphs())
def test_a_graph_survives_its_file(graph: Graph) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.archir")
        graph.save(path)
        assert same(load(path), graph)


@given(graphs(), st.data())
def test_names_of_axes_change_nothing_that_is_read(graph: Graph, data: st.DataObject) -> None:
    labels = st.sampled_from(["", "w0", "w1", "2*w0", "w0+w1"])
    names = {
        n.id: tuple(tuple(data.draw(labels) for _ in t.shape) if isinstance(t, TensorType) else () for t in n.results)
        for n in graph.nodes
    }
    assert str(parse_graph(print_graph(graph, names=names))) == str(graph)


@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")
@pytest.mark.parametrize("name", ZOO)
def test_every_model_survives_text_and_file(name: str, tmp_path: Path) -> None:
    example = ZOO[name]
    graph = graph_of(name)
    text = str(graph)
    assert str(parse_graph(text)) == text
    assert str(parse_graph(print_graph(graph, locations=True))) == text
    graph.save(tmp_path / "net.archir")
    found = load(tmp_path / "net.archir")
    assert same(found, graph)
    inputs, kwargs = example.inputs(), example.kwargs()
    with torch.no_grad():
        got, want = (g.module().eval()(*inputs, **kwargs) for g in (found, graph))
    assert _leaves(got) == _leaves(want)


def _leaves(tree: object) -> list[object]:
    """Return what is in a nesting, tensors as their bytes."""
    if isinstance(tree, torch.Tensor):
        return [tree.numpy().tobytes()]
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    return [leaf for value in tree for leaf in _leaves(value)] if isinstance(tree, list | tuple) else [tree]
