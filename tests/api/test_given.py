"""What users give for a model and for kinds of rewrite: modules where graphs are read, and names in lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import archir
from archir.errors import CaptureError, GrowError, ParseError, PassError, ScoreError
from passes.prune import Prune
from passes.split import Split


class Net(nn.Module):
    """A model whose arguments have names, one by keyword alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.outer(self.inner(x).tanh() * scale)
        return found


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3


def test_modules_are_taken_with_what_they_are_called_with() -> None:
    model = net()
    graph = archir.trace(model, (X,))
    for example in (X, (X,)):
        assert [(w.name, w.size) for w in archir.widths(model, example)] == [("w0", 6)]
    specs = [c.spec for c in archir.candidates(graph)]
    assert [c.spec for c in archir.candidates(model, example=X)] == specs and specs
    split = archir.apply(model, "split{width=w0, units=[1]}", example=X)
    assert str(split) == str(archir.apply(graph, "split{width=w0, units=[1]}"))
    torch.testing.assert_close(split.module()(X), model(X))
    scores, known = (archir.score(one, [(X, Y)], steps=2) for one in (model, graph))
    assert [(s.spec, s.predicted) for s in scores] == [(s.spec, s.predicted) for s in known]
    one, other = (archir.prune_with_compensation(g, [(X, Y)], "prune{width=w0, units=[1]}") for g in (model, graph))
    assert all(torch.equal(one.tensor(name), other.tensor(name)) for name in ("0.weight", "2.weight"))


def test_modules_are_captured_on_the_first_batch_whoever_gives_it() -> None:
    scale = torch.full((8, 1), 2.0)
    for batch in (({"x": X, "scale": scale}, Y), {"x": X, "scale": scale, "labels": Y}):
        scores = archir.score(Net(), (b for b in [batch, batch]), steps=1)
        assert {s.spec.partition("{")[0] for s in scores} == {"split", "prune"}
    named = archir.widths(Net(), {"x": X, "scale": scale})
    assert [w.size for w in named] == [6]


def test_modules_without_examples_are_to_be_traced_first() -> None:
    for action in (archir.widths, archir.candidates, lambda m: archir.apply(m, "simplify")):
        with pytest.raises(CaptureError, match=r"Sequential is a module.*\n  hint:  trace it first"):
            action(net())
    with pytest.raises(CaptureError, match=r"an nn\.Module or a graph, not a str"):
        archir.widths("net")  # type: ignore[arg-type]
    with pytest.raises(ScoreError, match="no batches"):
        archir.score(net(), [])


def test_wrapped_modules_are_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(GrowError, match=r"wrapped in DataParallel\n  hint:  give model.module"):
        archir.score(nn.DataParallel(net()), [(X, Y)])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(GrowError, match=r"wrapped in DistributedDataParallel\n  hint:  give model.module"):
            archir.propose(nn.parallel.DistributedDataParallel(net()), [(X, Y)], budget=90)
    finally:
        dist.destroy_process_group()
    with pytest.raises(GrowError, match=r"wrapped in OptimizedModule\n  hint:  give model._orig_mod"):
        archir.widths(torch.compile(net(), backend="eager"), X)  # type: ignore[arg-type]


@pytest.mark.parametrize("kinds", [["split"], ["split", Prune()], [Split(), "prune; merge"], "split; prune", Split()])
def test_kinds_are_texts_or_objects_or_lists_of_both(kinds: Any) -> None:
    listed = kinds if isinstance(kinds, list) else [kinds]
    wanted = [n for k in listed for n in (k.split("; ") if isinstance(k, str) else [k.name])]
    assert [m.name for m in archir.morphisms(kinds)] == wanted
    graph = archir.trace(net(), (X,))
    assert {s.spec.partition("{")[0] for s in archir.score(graph, [(X, Y)], morphisms=kinds, steps=1)} == set(wanted)


def test_passes_are_applied_from_lists_of_texts_and_objects() -> None:
    graph = archir.trace(net(), (X,))
    found = archir.apply(graph, ["split{width=w0, units=[1]}; widen{width=w0, count=2}", Prune("w0", (0,))])
    assert [w.size for w in archir.widths(found)] == [8]


def test_what_names_no_kind_is_refused() -> None:
    with pytest.raises(ParseError, match=r"no pass 'splot'\n  hint:  did you mean split"):
        archir.morphisms(["splot"])
    with pytest.raises(PassError, match="a int is no pass"):
        archir.morphisms([3])  # type: ignore[list-item]
    with pytest.raises(PassError, match=r"Split is a class of passes, not a pass\n  hint:  write Split"):
        archir.morphisms([Split])  # type: ignore[list-item]
    with pytest.raises(PassError, match="simplify is no morphism"):
        archir.morphisms(["split", "simplify"])
    with pytest.raises(PassError, match="no kind of rewrite"):
        archir.morphisms([])
    with pytest.raises(PassError, match="removes no units"):
        archir.prune_with_compensation(net(), [(X, Y)], [Split("w0", (0,))])  # type: ignore[list-item]
