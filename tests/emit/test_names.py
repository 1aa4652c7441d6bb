"""Names of a program stay names: they are quoted where they become source, and none becomes code."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from archir.emit.check import tensors_in
from archir.emit.code import class_identifier, identifier, is_name, is_number, quoted, split_commas, wrap
from archir.emit.layouts import LAYOUTS, draft
from archir.emit.python import to_python
from archir.ir.graph import Graph
from archir.ir.node import Constant, Node, Tree
from frontends.pytorch import trace
from tests.emit.loading import load_draft

ODD = (
    *('quo"te', "it's", "both'\"", "new\nline", "back\\slash", "tr\\", "a b", "a-b", "class", "None", "²", "٣", "ﬁ"),
    *(
        "é",
        "\ue000x=1\ue001",
        "{0}",
        "a`b",
        'a") and exec(1) or ("',
        "#",
        "\t",
        "__x",
        "self",
        "torch",
        "F",
        "012",
        "x=1",
    ),
)
"""Texts that are made identifiers or strings."""

KEYS = tuple(text for text in ODD if text.isprintable() and not set(text) & set("\"'`\\.") and text != "ﬁ")
"""Those a module or a tensor may be called."""

HOSTILE = (
    'a") and exec("bad") or ("',
    "'''",
    '"""\nimport os\n"""',
    "\\",
    "`x=exec('bad')`",
    "\ue000x=1\ue001",
    "lambda",
)


class Parts(nn.Module):
    """A dictionary of modules under odd keys, some of them never called."""

    def __init__(self) -> None:
        super().__init__()
        keys = KEYS
        self.parts = nn.ModuleDict({key: nn.Linear(3, 3) for key in keys})
        self.keys = keys[::2]
        for key in ("buf fer", "new+buffer"):
            self.register_buffer(key, torch.randn(3))
        self.register_parameter("par am", nn.Parameter(torch.randn(3)))
        inner = nn.Module()
        inner.add_module("deep er", nn.Sequential(nn.Linear(3, 3), nn.Tanh()))
        self.add_module("in ner", inner)
        self.parts[keys[0]].weight = self.parts[keys[1]].weight

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for key in self.keys:
            x = self.parts[key](x).tanh()
        x = self.get_submodule("in ner").get_submodule("deep er")(x) + self.get_buffer("buf fer")
        return {key: x * self.get_parameter("par am") for key in ('quo"te', "{0}", "new\nline")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_odd_names_are_kept(layout: str, tmp_path: Path) -> None:
    model = Parts().eval()
    x = torch.randn(4, 3)
    made = draft(trace(model, x), layout)
    net = load_draft(made, tmp_path)
    assert set(net.state_dict()) == set(model.state_dict())
    net.load_state_dict(model.state_dict())
    found, wanted = net(x), model(x)
    assert list(found) == list(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert "exec" not in {n.id for n in ast.walk(ast.parse(made.text)) if isinstance(n, ast.Name)}


def hostile(name: str) -> Graph:
    """Return a graph in which everything that may be called so is; arguments and modules have names of their own."""
    graph = trace(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 3)), torch.randn(4, 3))

    def renamed(node: Node) -> Node:
        place = node.location and replace(node.location, kind=f"{name}.{name}", file=name)
        return replace(node, location=place, born=name)

    signature = replace(graph.signature, result=Tree("dict", (0, Constant(name)), (name, "constant")))
    return Graph("net", [renamed(node) for node in graph.nodes], graph.tensors, signature, (name, f"{name} {name}"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_do_not_become_code(name: str, layout: str, tmp_path: Path) -> None:
    graph = hostile(name)
    made = draft(graph, layout)
    tree = ast.parse(made.text)
    assert not {"exec", "os", "bad"} & {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    net = load_draft(made, tmp_path)
    x = torch.randn(4, 3)
    weights = [graph.tensors[n.id] for n in graph.parameters]
    found = net(x)
    torch.testing.assert_close(found.pop(name), (x @ weights[0].T + weights[1]) @ weights[2].T + weights[3])
    assert found == {"constant": name}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_constant_argument_is_asserted(layout: str, tmp_path: Path) -> None:
    graph = trace(nn.Linear(3, 2), torch.randn(4, 3))
    signature = replace(graph.signature, kwargs=Tree("dict", (Constant("x=exec(1)"),), ("kind",)))
    net = load_draft(draft(Graph("net", graph.nodes, graph.tensors, signature), layout), tmp_path)
    assert net(torch.randn(4, 3), kind="x=exec(1)").shape == (4, 2)
    with pytest.raises(AssertionError):
        net(torch.randn(4, 3), kind="another")


@pytest.mark.parametrize("name", ["load", "torch", "nn", "F", "self", "math", "Tensor", "Path", "super", "range", "x"])
def test_inputs_named_as_what_the_source_uses(name: str, tmp_path: Path) -> None:
    graph = trace(nn.Linear(3, 2), torch.randn(4, 3))
    nodes = [replace(n, name=name) if n.op == "input" else n for n in graph.nodes]
    signature = graph.signature
    for by_keyword in (False, True) if name != "self" else (False,):
        if by_keyword:
            signature = replace(signature, args=Tree("tuple"), kwargs=Tree("dict", (0,), (name,)))
        for layout in LAYOUTS:
            net = load_draft(draft(Graph(name, nodes, graph.tensors, signature), layout), tmp_path)
            x = torch.randn(4, 3)
            wanted = x @ graph.tensor("weight").T + graph.tensor("bias")
            torch.testing.assert_close(net(**{name: x}) if by_keyword else net(x), wanted)


def test_an_input_named_load_is_written_and_checked(tmp_path: Path) -> None:
    class Loads(nn.Module):
        def forward(self, load: Tensor, X: Tensor, Tensor: Tensor) -> list[Tensor]:
            return [load + 2.0 * X, Tensor]

    x = torch.randn(4, 3)
    text = to_python(trace(Loads(), x, {"X": x, "Tensor": x}), tmp_path).path.read_text()
    assert "def forward(self, load: Tensor, X: Tensor, Tensor: Tensor) -> list[Tensor]:" in text


def test_identifiers_are_ascii() -> None:
    for text in (*ODD, *HOSTILE, "", "1", "x²", "été"):
        for made in (identifier(text), class_identifier(text)):
            assert is_name(made), (text, made)
        assert not is_number(text) or text in ("0", "1")
        assert ast.literal_eval(quoted(text)) == text
    assert [t for t in ODD if is_name(t)] == ["self", "torch", "F"]
    assert class_identifier("f") == "ModuleF" and class_identifier("none") == "ModuleNone"


def test_strings_are_not_taken_apart() -> None:
    parts = [quoted(text) for text in ("a, b", 'a", b', "a\\", "(", "a -> b", " for _ in range(2", "\\'")]
    assert split_commas(", ".join(parts)) == parts
    line = f"x = self.{'y' * 60}({', '.join(parts)}, {quoted('z' * 40)})"
    assert len(wrap(line, 8)) > 1
    assert ast.dump(ast.parse("\n".join(wrap(line)))) == ast.dump(ast.parse(line))


def test_loops_have_names_of_their_own(tmp_path: Path) -> None:
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("selfs", "nns", "ins", "torchs", "ranges", "xs"):
                self.add_module(name, nn.ModuleList(nn.Linear(3, 3) for _ in range(3)))

        def forward(self, x: Tensor) -> Tensor:
            for part in self.children():
                for layer in cast(nn.ModuleList, part):
                    x = layer(x).tanh()
            return x

    x = torch.randn(4, 3)
    graph = trace(Lists(), x)
    emitted = to_python(graph, tmp_path)
    assert emitted.path.read_text() == draft(graph, "modules").text
    assert emitted.path.read_text().count("        for ") == 5  # the last ends in the `return`
    assert len(tensors_in(graph.module()(x))) == 1
