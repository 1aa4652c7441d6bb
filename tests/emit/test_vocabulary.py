"""What is written and run is in a closed vocabulary, whatever the writer does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from archir.emit import layouts
from archir.emit.layouts import draft
from archir.emit.python import to_python
from archir.emit.vocabulary import Vocabulary
from archir.errors import EmitError
from archir.ir.graph import Graph
from frontends.pytorch import trace


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.parts = nn.ModuleDict({"a b": nn.Linear(3, 3)})
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.drop(self.parts["a b"](x))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(Small().eval(), torch.randn(4, 3))


STATEMENTS = [
    "exec('bad')",
    "import os",
    "from os import system",
    "x = eval('1')",
    "x = open('victim')",
    "x = __import__('os')",
    "x = getattr(x, 'a')",
    "x = torch.load('victim')",
    "x = torch.save(x, 'victim')",
    "x = torch.ops.aten.from_file('victim')",
    "x = torch.ops.load_library('victim')",
    "x = torch.hub.load('a', 'b')",
    "x = torch._import_dotted_name('os.system')",
    "x = nn.modules.sys.modules",
    "x = F.torch.save(x, 'victim')",
    "x = math.__loader__",
    "x = operator.methodcaller('a')",
    "x = operator.call(x)",
    "x = x.__class__",
    "x = x.numpy().tofile('victim')",
    "x = x.tofile('victim')",
    "x = self.forward.__globals__",
    "x = self.__class__",
    "x = self.apply(x)",
    "x = self.layers[0].share_memory()",
    "x = [y for y in x]",
    "x = {y for y in x}",
    "x = lambda: x",
    "x = f'{x}'",
    "x = (y := x)",
    "x += 1",
    "x: int = 1",
    "del x",
    "global x",
    "torch = x",
    "self = x",
    "Small = x",
    "x.a = 1",
    "torch.a = 1",
    "x[0] = 1",
    "with x: pass",
    "while x: pass",
    "for y in x: pass\n        else: pass",
    "for y, z in x: pass",
    "try: pass\n        finally: pass",
    "raise x",
    "def f(): pass",
    "class C: pass",
    "yield x",
    "await x",
    "x = b'bytes'",
    "x = torch",
    "x = unknown",
    "x = range",
    "x = self.layers[0](*x)",
    "x = self.layers[0](**x)",
    "x = x(x)",
    "x = (x + x)(x)",
    "x = Path('victim')",
    "x = load_file('victim')",
    "x = __file__",
    "x = super().forward(x)",
    "x = self.get_submodule('layers').__dict__",
]
TOPLEVEL = [
    "import os",
    "import torch as nn",
    "from torch import *",
    "x = 1",
    "print(1)",
    "def other() -> None: pass",
    "@torch\nclass A(nn.Module): pass",
    "class A(nn.Module, metaclass=type): pass",
    "class A(object): pass",
    "class A(nn.Module):\n    x = 1",
    "class A(nn.Module):\n    def __reduce__(self): pass",
    "class A(nn.Module):\n    def __init__(self, x=exec('bad')): pass",
    "class A(nn.Module):\n    def __init__(self, x: exec('bad')): pass",
    "class A(nn.Module):\n    def forward(self, *x): pass",
    "class A(nn.Module):\n    @torch.save\n    def forward(self): pass",
    "class torch(nn.Module): pass",
    "class Tensor(nn.Module): pass",
    "if 1: pass",
]


def test_what_is_written_is_in_it(graph: Graph) -> None:
    for layout in layouts.LAYOUTS:
        Vocabulary(graph).program(draft(graph, layout).text)


@pytest.mark.parametrize("line", STATEMENTS)
def test_statements_that_are_not_in_it(graph: Graph, line: str) -> None:
    text = draft(graph, "flat").text
    head = "    def forward(self, x: Tensor) -> Tensor:\n"
    assert head in text
    with pytest.raises(EmitError, match=r"no network needs|not be Python"):
        Vocabulary(graph).program(text.replace(head, f"{head}        {line}\n"))


@pytest.mark.parametrize("lines", TOPLEVEL)
def test_statements_of_the_file_that_are_not_in_it(graph: Graph, lines: str) -> None:
    text = draft(graph, "flat").text
    with pytest.raises(EmitError, match=r"no network needs|not be Python"):
        Vocabulary(graph).program(text.replace("\n\nclass", f"\n\n{lines}\n\n\nclass", 1))


def test_the_function_that_loads_has_its_own(graph: Graph) -> None:
    text = draft(graph, "flat").text
    for line in ("state.clear()", "state = Path('victim').read_text()", "exec(state)", "net.apply(state)"):
        with pytest.raises(EmitError):
            Vocabulary(graph).program(text.replace("    net.load_state_dict", f"    {line}\n    net.load_state_dict"))


def test_all_violations_are_told_at_once(graph: Graph) -> None:
    text = draft(graph, "flat").text + "\nexec('one')\nexec('two')\n"
    with pytest.raises(EmitError, match=r"(?s)one.*two"):
        Vocabulary(graph).program(text)


def test_a_violation_is_never_written_or_run(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "_load_function", lambda graph, root: f"open({str(tmp_path / 'victim')!r}, 'w')")
    with pytest.raises(EmitError, match="no network needs"):
        to_python(graph, tmp_path)
    assert list(tmp_path.iterdir()) == []
