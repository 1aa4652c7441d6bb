"""What is written and run is in a closed vocabulary, whatever the writer does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
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
    # frames, and what leads to them
    "x = (x for _ in range(1)).gi_frame.f_builtins['exec']('bad')",
    "x = (x for _ in range(1))",
    "x = [(x for _ in range(1))]",
    "x = nn.ModuleList(nn.Identity() for _ in range(1)).gi_frame",
    "x = nn.ModuleList(nn.Identity() for x in range(1))",
    "x = nn.ModuleList(nn.Identity() for _ in x)",
    "x = nn.ModuleList(nn.Identity() for _ in range(1) if x)",
    "x = max(x for _ in range(1))",
    "x = self.gi_frame.f_builtins['exec']('bad')",
    "x = self.gi_frame",
    "x = x.gi_frame",
    "x = x.cr_frame",
    "x = x.f_builtins",
    "x = x.f_globals['exec']",
    "x = x.ag_frame",
    "x = x.tb_frame",
    "x = x.func_globals",
    "x = x.co_consts",
    # attributes a draft gives itself
    "self.tofile = x",
    "self.layers.tofile = x",
    "self.size = x + 1",
    "self.layers = x",
    "self.size.tofile = x",
    # calls of what is not a part of the network
    "x = x['exec']('bad')",
    "x = x[0](x)",
    "x = self.layers[0].weight(x)",
    "x = self.layers[0].weight[0](x)",
    "x = self(x)",
    "x = self.other(x)",
    "x = self.layers.other(x)",
    "x = self.get_submodule('other')(x)",
    "x = self.get_submodule(x)(x)",
    "x = self.get_submodule('layers').get_submodule('forward')",
    "x = self.get_parameter('other')",
    "x = self.get_parameter('layers')",
    "x = self.get_buffer('layers.0.other')",
    "x = self.parts['other'](x)",
    "x = self.parts['a b'].forward(x)",
    "self.add_module('other', nn.Module())",
    "self.register_buffer('other', x)",
    "super().__init__()",
    # what a tensor or a module does beyond computing
    "x = self.layers[0].weight.tofile('victim')",
    "x = self.layers[0].weight.data",
    "x = self.layers[0].weight.numpy()",
    "x = self.layers[0].weight.register_hook(x)",
    "x = self.layers.requires_grad_(False)",
    "x = self.layers.abs()",
    "x = self.layers[0]._load_from_state_dict(x)",
    "x = x.storage()",
    "x = x.map_(x, x)",
    "x = x.apply_(x)",
    # texts where no text is expected, and texts of others
    "x = 'exec'",
    "x = x + 'exec'",
    "x = 'a b'.split('b')",
    "x = x.to('cpu')",
    "x = x.type_as('cpu')",
    "x = x['other']",
    "x = F.interpolate(x, size='cpu')",
    "x = F.interpolate(x, mode='other')",
    "x = F.relu(x, 'cpu')",
    "x = torch.einsum('other', x)",
    "x = torch.zeros('cpu')",
    "x = torch.ops.aten.linear.default(x, 'cpu')",
    "x = self.layers[0]('cpu')",
    "x = self.layers['exec'](x)",
    "x = complex('1')",
    "x = float('1')",
    "x = ['cpu']",
    "x = {'cpu': x}",
    "return 'other'",
    "assert x == 'other'",
    # words of libraries that are not called
    "x = torch.full",
    "x = nn.Linear",
    "x = F.relu",
    "x = operator.add",
    "x = torch.ops.aten.linear.default",
    "x = torch.ops.aten.linear",
    "x = torch.ops.aten.exp.default(x)",
    "x = math.sqrt",
    "x = Small(x, **x)",
    "x = nn.ModuleDict(x)",
    "x = nn.ModuleDict({'other': nn.Identity()})",
    "x = nn.ModuleDict({x: nn.Identity()})",
    "x = nn.ModuleDict({**x})",
    "x = {**x}",
    "x = len",
    "len = x; x = len(x)",
    "for y in self: pass",
    "for y in self.parts: x = y(x)",
    "for y in x: x = y(x)",
    "for y in self.layers: x = y.gi_frame",
    "for y in self.layers: x = y.weight.tofile(x)",
    "for x in self.layers: x = x(x)",
    "for __y in self.layers: pass",
    "__x = x",
    "x = __x",
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
    "class exec(nn.Module):\n    def forward(self, x=exec('bad')): pass",
    "class print(nn.Module): pass",
    "class self(nn.Module): pass",
    "class A(nn.Module):\n    def forward(self, x=A()): pass",
    "class A(nn.Module):\n    def forward(self, x='other'): pass",
    "class A(nn.Module):\n    def forward(self, x: 'exec(1)'): pass",
    "class A(nn.Module):\n    def forward(self, *, x=1): pass",
    "class A(nn.Module):\n    def forward(self, __x): pass",
    "class A(nn.Module):\n    def forward(this): pass",
    "class A(nn.Module):\n    async def forward(self): pass",
    "class A(nn.Module):\n    'text'",
    "class A(nn.ModuleList): pass",
    "def load() -> None: exec('bad')",
    "def load() -> exec('bad'): pass",
    "def load(x=exec('bad')): pass",
    "@exec\ndef load(): pass",
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
    for line in (
        *("state.clear()", "state = Path('victim').read_text()", "exec(state)", "net.apply(state)"),
        *("state = load_file('victim')", "state = load_file(Path('victim'))", "net = exec()", "net.eval()"),
        *("state['other'] = state['layers.0.weight']", "state['layers.0.weight'] = state['other']"),
        "for name in ['other']: net.get_buffer(name).copy_(state.pop(name))",
        "for name in ['layers.0.weight']: net.get_buffer(name).copy_(exec(name))",
        *("state = load_file(Path(__file__).with_suffix('.pkl'))", "load = net", "return net", "__file__ = 'victim'"),
    ):
        with pytest.raises(EmitError):
            Vocabulary(graph).program(text.replace("    net.load_state_dict", f"    {line}\n    net.load_state_dict"))


class Nested(nn.Module):
    """Parts and a tensor called as what Python and torch have, where no module has it."""

    def __init__(self) -> None:
        super().__init__()
        self.gi_frame = nn.ModuleDict({"f_builtins": nn.ModuleDict({"exec": nn.Linear(3, 3)})})
        self.tofile = nn.Parameter(torch.randn(3))
        self.f_back = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.f_back(self.gi_frame["f_builtins"]["exec"](x)) + self.tofile  # type: ignore[index]
        return y  # type: ignore[no-any-return]


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_names_of_a_program_stand_where_it_has_them_only(layout: str) -> None:
    graph = trace(Nested().eval(), torch.randn(4, 3))
    text = draft(graph, layout).text
    assert "gi_frame" in text and "tofile" in text
    head = next(line for line in text.splitlines() if "def forward(self, x" in line)
    for line in (
        *("x = x.gi_frame", "x = x.tofile", "x = x.f_back", "x = self.tofile.tofile", "x = self.tofile(x)"),
        *("x = self.f_back.weight.gi_frame", "x = self.f_back.tofile(x)", "x = self.gi_frame.f_back(x)"),
        *("x = (x for _ in range(1)).gi_frame.f_builtins['exec'](x)", "x = x.gi_frame.f_builtins['exec'](x)"),
        *("x = self.tofile.gi_frame.f_builtins['exec'](x)", "x = [].gi_frame", "x = torch.gi_frame"),
        *("self.gi_frame = (x for _ in range(1))", "self.gi_frame = x"),
    ):
        with pytest.raises(EmitError, match="no network needs"):
            Vocabulary(graph).program(text.replace(head, f"{head}\n        {line}", 1))


def test_all_violations_are_told_at_once(graph: Graph) -> None:
    text = draft(graph, "flat").text + "\nexec('one')\nexec('two')\n"
    with pytest.raises(EmitError, match=r"(?s)one.*two"):
        Vocabulary(graph).program(text)


def test_a_violation_is_never_written_or_run(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "_load_function", lambda graph, root: f"open({str(tmp_path / 'victim')!r}, 'w')")
    with pytest.raises(EmitError, match="no network needs"):
        to_python(graph, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_default_that_stands_before_what_is_given_may_be_said() -> None:
    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.pad(x, (1, 1), "constant", 2.0)

    known = Vocabulary(trace(Padded(), torch.randn(4, 3)))
    known.expression("torch.ops.aten.pad.default(x, [1, 1], 'constant', 2.0)", {"x"})
    with pytest.raises(EmitError, match="what no network needs"):
        known.expression("torch.ops.aten.pad.default(x, [1, 1], 'reflect', 2.0)", {"x"})
