"""What growing costs on networks of real size: times over that of a training step, memory over the peak of one.

The networks are a ResNet-18 and a VGG-19 on images of 32 x 32, a GPT-2 on texts of 128 tokens and a ViT-S/16; `--only`
names some. Each is trained for a few steps on examples that can be learned, and then grown once, by splits, to one and
a half times its parameters, with the default options but for the examples it is scored on: four batches, as many as the
default is of batches of 128. `--part` of the width makes them smaller; without it, what is found is kept in
docs/real.json, where the figures of other networks stay, and docs/real.md is written anew. A GPU is used where there is
one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from archir.axes.infer import infer_widths
from archir.cost import cost
from archir.growing.batches import Batches
from archir.growing.examples import Examples
from archir.growing.growth import Growth, grow_once
from archir.growing.options import GrowOptions
from archir.growing.recalibration import recalibrate
from archir.growing.trainer import Trainer
from archir.ir.graph import Graph
from archir.scoring.batches import bind_batches
from archir.scoring.budget import Budget
from archir.scoring.families import find_families
from archir.scoring.learn import Learner
from archir.scoring.losses import find_loss
from archir.scoring.objective import make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.score import score
from frontends.pytorch import trace
from passes.split import Split
from tools.peak_memory import peak
from tools.real_networks import GPT2, ViT, resnet18, vgg19
from tools.real_page import keep
from tools.timing import medians, seconds

TRAINED, ROUNDS, SCORED = 20, 3, 4
"""Steps of training before anything is measured; rounds of what is timed more than once; batches of scoring."""

GROWTH = 1.5
"""The multiple of its parameters that a network is grown to."""

TOKENS = 50257

NOISE = 10.0
"""Deviation of the noise of images where that of the pattern is 1: a network that has learned all there is to learn in
a few steps has nothing to grow for."""


@dataclass(frozen=True)
class Subject:
    """A network to measure on.

    Attributes:
        make: makes it of a part of its width.
        draw: draws so many inputs and targets.
        batch_size: examples of a batch.
    """

    make: Callable[[float], nn.Module]
    draw: Callable[[int], tuple[Tensor, Tensor]]
    batch_size: int


def images(side: int, classes: int, count: int) -> tuple[Tensor, Tensor]:
    """Return images of as many patterns as there are classes under noise that drowns them."""
    labels = torch.randint(classes, (count,))
    patterns = torch.randn(classes, 3, side, side, generator=torch.Generator().manual_seed(0))
    return patterns[labels] + NOISE * torch.randn(count, 3, side, side), labels


def texts(count: int, length: int = 128, used: int = 97) -> tuple[Tensor, Tensor]:
    """Return texts in which each token follows from the one before."""
    every = (torch.randint(used, (count, 1)) + 7 * torch.arange(length + 1)) % used
    return every[:, :-1].contiguous(), every[:, 1:].contiguous()


def gpt2(part: float) -> nn.Module:
    """Return a GPT-2 with a part of the heads, all of one size."""
    heads = max(1, round(12 * part))
    return GPT2(width=64 * heads, heads=heads, tokens=TOKENS)


def vit(part: float) -> nn.Module:
    """Return a ViT-S/16 with a part of the heads, all of one size."""
    heads = max(1, round(6 * part))
    return ViT(width=64 * heads, heads=heads)


SUBJECTS: Mapping[str, Subject] = {
    "resnet18": Subject(lambda part: resnet18(round(64 * part)), partial(images, 32, 10), 64),
    "vgg19": Subject(lambda part: vgg19(round(64 * part)), partial(images, 32, 10), 64),
    "gpt2": Subject(gpt2, texts, 4),
    "vit_small": Subject(vit, partial(images, 224, 1000), 16),
}


def run(only: str | None = None, part: float = 1.0) -> Mapping[str, float]:
    """Return the figures.

    Args:
        only: names of networks, with commas between; all if not given.
        part: of the width of each.

    Raises:
        ValueError: there is no network of a name.
    """
    names = list(SUBJECTS) if only is None else only.split(",")
    if unknown := [name for name in names if name not in SUBJECTS]:
        raise ValueError(f"there is no network {unknown[0]!r}, but {', '.join(SUBJECTS)}")
    figures: dict[str, float] = {}
    for name in names:
        found = _measured(SUBJECTS[name], part)
        figures |= {f"{figure}_{name}": value for figure, value in found.items()}
        if part == 1:
            keep({name: found})
    return figures


def _measured(subject: Subject, part: float) -> Mapping[str, float]:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, loss = subject.batch_size, find_loss("cross_entropy")
    module = subject.make(part).to(device)
    inputs, targets = (t.to(device) for t in subject.draw(40 * size))
    examples = Examples(inputs, targets)
    traced: list[Graph] = []
    tracing = seconds(lambda: traced.append(trace(module, (inputs[:2],))))
    options = GrowOptions(batch_size=size, score_examples=SCORED * size, warmup=0).with_rate(1e-3)
    trainer = Trainer(traced[0], options)
    train = partial(trainer.train, loss=loss, first_step=0)
    batches = list(Batches(examples, size, 0, device=device))
    train(batches[:TRAINED])
    recalibrate(trainer.module, batches[: options.recalibrate_batches])
    graph = trainer.graph()
    analysis = seconds(lambda: infer_widths(graph))
    finding = seconds(lambda: find_families(graph, [Split()]))
    objective = make_objective(graph, loss)
    families, _ = find_families(graph, [Split()])
    learner = Learner(objective, [f.perturbation for f in families], ScoreOptions(steps=1000))
    (bound,) = bind_batches(objective.program, batches[:1])
    times = medians({"train": lambda: train(batches[:1]), "learn": lambda: learner.step(bound)}, ROUNDS)
    budget = Budget(parameters=round(GROWTH * cost(graph).parameters))
    grown: list[Growth] = []
    step = partial(
        grow_once,
        graph,
        train=examples,
        selection=examples.take(slice(0, SCORED * size)),
        check=examples.take(slice(SCORED * size, 2 * SCORED * size)),
        loss=loss,
        budget=budget,
        options=options,
        morphisms=(Split(),),
        seed=0,
    )
    growing = seconds(lambda: grown.append(step()))
    rewriting = grown[0].rewriting
    assert rewriting is not None, grown[0].why
    carrying = seconds(lambda: trainer.become(rewriting))
    few = ScoreOptions(steps=4, budget=budget)
    scoring = partial(score, objective, batches[:1], morphisms=(Split(),), learn=batches[:4], options=few)
    memory = peak(scoring) / peak(lambda: train(batches[:1]))
    return {
        "parameters": cost(graph).parameters,
        "train_step_seconds": times["train"],
        "trace_over_train_step": tracing / times["train"],
        "analysis_over_train_step": analysis / times["train"],
        "candidates_over_train_step": finding / times["train"],
        "learning_step_over_train_step": times["learn"] / times["train"],
        "growth_step_over_train_step": growing / times["train"],
        "carry_over_over_train_step": carrying / times["train"],
        "peak_memory_over_train_step": memory,
        "share_of_budget": budget.share(grown[0].cost),
        "units": _units(rewriting.after) - _units(graph),
        "expected_change": grown[0].expected or 0.0,
        "true_change": grown[0].realised,
    }


def _units(graph: Graph) -> int:
    return sum(width.size for width in infer_widths(graph))
