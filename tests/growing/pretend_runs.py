"""Runs that are carried out on the CPU and on a pretend accelerator, in a process of its own; see the test of it.

What each did is printed, a line of JSON each.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import archir
from archir.growing.batches import Augmentation
from archir.growing.compress import compress_graph
from archir.growing.controls import train_controls
from archir.growing.data import Dataset
from archir.growing.device import moved
from archir.growing.examples import Examples
from archir.growing.grow import Run, grow_graph
from archir.growing.latency import measure_latency
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.ir.graph import Graph
from archir.rewrite.morphism import Morphism
from archir.rewrite.pipeline import rewrite_together
from archir.scoring.batches import bind_batches
from archir.scoring.budget import Budget
from archir.scoring.chunks import singly
from archir.scoring.families import find_families
from archir.scoring.learn import learn
from archir.scoring.losses import find_loss
from archir.scoring.objective import make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.refine import refine
from archir.scoring.screen import screen
from frontends.pytorch import trace
from passes.catalog import PASSES
from tests.growing import pretend_accelerator
from tests.growing.small_run import OPTIONS, Seed, data, grow
from tests.models.captured import graph_of
from tests.models.zoo import ZOO

SHORT = replace(
    OPTIONS,
    steps=8,
    growth_steps=1,
    learn_steps=3,
    refine=6,
    recalibrate_batches=2,
    evaluate_every=5,
    checkpoint_every=3,
)
SGD = OptimiserOptions("sgd", rate=0.05)
RANDOM = replace(OPTIONS, rule="random")
"""Options of a growth step that chooses what keeps the function, and not by numbers that rounding could tip."""


class Attending(nn.Module):
    """Tokens, places made anew at every call, attention and normalised layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.layer(self.tokens((tokens + places) % 11))
        logits: torch.Tensor = self.head(hidden.mean(1))
        return logits


def seed(width: int = 3) -> Graph:
    torch.manual_seed(0)
    return trace(Seed(width), (torch.randn(4, 1, 6, 6),))


def tokens(count: int, start: int) -> Examples:
    found = torch.randint(0, 11, (count, 5), generator=torch.Generator().manual_seed(start))
    return Examples(found, found[:, 0] % 3)


def attending(options: GrowOptions) -> Run:
    torch.manual_seed(0)
    graph = trace(Attending(), (torch.zeros(4, 5, dtype=torch.int64),))
    kinds = archir.morphisms("split; prune; residual-branch{hidden=2}")
    splits = {"train": tokens(100, 1), "validation": tokens(60, 2)}
    return grow_graph(graph, **splits, budget=Budget(parameters=900), morphisms=kinds, options=options)  # type: ignore[arg-type]


def scaled(options: GrowOptions) -> Run:
    """Grow with a scaled loss on the accelerator, where nothing is rounded: a power of two changes nothing."""
    precision = "float16" if options.device == "auto" else "float32"
    return grow(seed(), 400, replace(options, precision=precision, channels_last=True))


def compressed(options: GrowOptions) -> Run:
    budget, graph = Budget(flops=0.5), seed(8)
    splits = {"train": data(100, 1), "validation": data(60, 2)}
    kinds = archir.morphisms("prune; merge")
    return compress_graph(graph, **splits, budget=budget, morphisms=kinds, options=options)  # type: ignore[arg-type]


def ruled(rule: str) -> Callable[[GrowOptions], Run]:
    return lambda options: grow(seed(), 400, replace(options, rule=rule))


RUNS: Mapping[str, Callable[[GrowOptions], Run]] = {
    "one by one": lambda options: grow(seed(), 400, replace(options, ema=0.2)),
    "in grades": lambda options: grow(seed(), 2000, replace(options, refine=3, growth_steps=2)),
    "expanded": lambda options: grow(
        seed(),
        900,
        replace(
            options,
            expansion=2.0,
            optimiser=OptimiserOptions(rate=0.01),
            augmentation=Augmentation(True, 1, 2, 0.3),
            label_smoothing=0.1,
        ),
    ),
    "retrained": lambda options: grow(
        seed(), 900, replace(options, expansion=2.0, birth="split", retrain=True, counterfactual=True)
    ),
    "statistics of the batch": lambda options: grow(seed(), 400, replace(options, batch_statistics=True)),
    "float16": scaled,
    "attention": attending,
    "compressed": compressed,
    **{rule: ruled(rule) for rule in ("gradmax", "sampled", "splitting-index")},
}


def difference(one: Graph, other: Graph) -> float:
    """Return the largest difference of the stored tensors of two networks of one architecture."""
    assert str(one) == str(other)
    return max(float((t - other.tensors[i]).abs().max()) for i, t in one.tensors.items())


def both(run: Callable[[GrowOptions], Run]) -> dict[str, object]:
    """Return what a run does on the accelerator, which `auto` finds, and how far the same on the CPU is from it."""
    before = pretend_accelerator.count()
    there = run(replace(SHORT, device="auto"))
    operators = pretend_accelerator.count() - before
    here = run(replace(SHORT, device="cpu"))
    assert pretend_accelerator.count() == before + operators
    used = [e["event"] for e in there.history if e["event"] in ("grown", "retrained", "counterfactual")]
    apart, device = difference(there.graph, here.graph), str(there.graph.device)
    return {"difference": apart, "device": device, "events": used, "operators": operators}


def resumed() -> dict[str, object]:
    """Interrupt a run on the accelerator after its first checkpoint, and let it go on on the CPU, controls included."""

    class PowerCut(Exception):
        pass

    def cut(event: Mapping[str, object]) -> None:
        if event["event"] == "grown":
            raise PowerCut

    with tempfile.TemporaryDirectory() as folder:
        directory, options = Path(folder) / "run", replace(SHORT, first_growth=0.5)
        with suppress(PowerCut):
            grow(seed(), 400, replace(options, device="pretend:0"), directory=directory, on_event=cut)
        kept = sorted(path.name for path in directory.glob("step-*.archir"))
        run = grow(seed(), 400, replace(options, device="cpu"), directory=directory, resume=True)
        plain = grow(seed(), 400, replace(options, device="cpu"))
        dataset = Dataset("made", data(100, 1), data(60, 2), (), lambda: data(10, 3))
        controls = [
            train_controls(
                seed(),
                Budget(parameters=400),
                1,
                dataset,
                find_loss("cross_entropy"),
                replace(options, device=device),
                directory,
            )
            for device in ("auto", "cpu")
        ]
    apart = [difference(a.graph, b.graph) for a, b in zip(*controls, strict=True)]
    return {"difference": max(difference(run.graph, plain.graph), *apart), "kept": kept, "controls": len(apart)}


def mixed() -> dict[str, object]:
    """Mix devices as code does that forgets about them, and measure latency where it is."""
    found: dict[str, object] = {}
    away = torch.ones(3, device=pretend_accelerator.NAME)
    for name, mix in {
        "add": lambda: away + torch.ones(3),
        "cat": lambda: torch.cat([away[:1], torch.ones(1)]),
        "put": lambda: away.index_copy(0, torch.tensor([1]), away[:1]),
        "number": lambda: away * torch.tensor(2.0),
        "index": lambda: away[torch.tensor([0, 2])],
    }.items():
        try:
            found[name] = str(mix().device)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            found[name] = "same device" in str(error)
    module = seed().module().to(pretend_accelerator.DEVICE)
    latency, waits = measure_latency(module, data(3, 1)), pretend_accelerator.waits
    return {**found, "latency": latency > 0, "waits": len(waits), "places": sorted({str(d) for d in waits})}


def rewritten(name: str) -> dict[str, object]:
    """Score one candidate of every family of every kind, carry it out, and simplify; there and on the CPU."""
    kinds = [kind() for kind in PASSES.values() if issubclass(kind, Morphism)]
    found: list[torch.Tensor] = []
    for device in (pretend_accelerator.DEVICE, torch.device("cpu")):
        torch.manual_seed(0)
        graph, inputs = moved(graph_of(name), device), ZOO[name].inputs(3)
        objective = make_objective(graph, "mse")
        outputs = objective.program(objective.program.bind(inputs)).outputs[0]
        batches = bind_batches(objective.program, [(inputs, torch.zeros(outputs.shape))])
        families, _ = find_families(graph, kinds)
        perturbations = [family.perturbation for family in families]
        thetas = learn(objective, perturbations, batches, ScoreOptions(steps=2, seed=1)).thetas
        every = screen(objective, perturbations, thetas, batches, seed=2)
        places = singly((number, 0) for number in range(len(families)))
        refined = refine(objective, perturbations, thetas, places, batches).first_order
        found.append(torch.cat([*(estimate.predicted for estimate in every), refined]))
        for family, theta in zip(families, thetas, strict=True):
            after = rewrite_together(graph, [(family.site.members[0], theta or None)]).after
            assert {t.device for t in after.tensors.values()} == {graph.device}
        assert {t.device for t in archir.apply(graph, "simplify").tensors.values()} == {graph.device}
    there, here = found
    return {"families": len(families), "difference": float((there - here).abs().max() / here.abs().max())}


def looped(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> dict[str, object]:
    """Take a growth step in a plain loop, with an average of the weights; there and on the CPU."""
    found: list[dict[str, torch.Tensor]] = []
    x, y = data(60, 1).inputs, data(60, 1).targets
    assert isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)
    for device in (pretend_accelerator.DEVICE, torch.device("cpu")):
        graph = moved(seed(), device)
        model: nn.Module = graph.module().eval()
        optimizer = make(list(model.parameters()))
        average = torch.optim.swa_utils.AveragedModel(model, avg_fn=lambda old, new, count: (old + new) / 2)
        for step in range(4):
            if step == 2:
                budget = graph.parameter_count + 60
                plan = archir.propose(
                    graph.with_tensors(model.state_dict()), [(x, y)], budget=budget, morphisms="split", options=RANDOM
                )
                assert plan.specs and plan.check([(x, y)]).after > 0
                model, optimizer = plan.apply(model, optimizer, ema=average)
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(x.to(device)), y.to(device)))
            optimizer.step()
            average.update_parameters(model)
        held = [*model.state_dict().values(), *average.module.state_dict().values()]
        held += [
            t for s in optimizer.state.values() for k, t in s.items() if k != "step" and isinstance(t, torch.Tensor)
        ]
        assert {t.device.type for t in held} == {device.type}
        found.append({n: t.cpu() for n, t in (model.state_dict() | dict(average.module.named_parameters())).items()})
    there, here = found
    return {"difference": max(float((t.double() - here[n].double()).abs().max().detach()) for n, t in there.items())}


def outcomes() -> Iterator[tuple[str, dict[str, object]]]:
    yield "mixed", mixed()
    yield "resumed", resumed()
    yield "looped adam", looped(lambda p: torch.optim.Adam(p, 0.01, amsgrad=True))
    yield "looped rprop", looped(lambda p: torch.optim.Rprop(p, 0.01))
    yield "looped adafactor", looped(lambda p: torch.optim.Adafactor(p, 0.01))
    for name in ("mlp", "gpt"):
        yield f"rewritten {name}", rewritten(name)
    for name, run in RUNS.items():
        yield name, both(run)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, outcome in outcomes():
        json.dump({"name": name, **outcome}, sys.stdout)
        print(flush=True)
