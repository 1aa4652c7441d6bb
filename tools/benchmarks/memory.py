"""The peak memory of scoring over that of a training step on the same batch, in bytes of tensors that are alive.

The networks are a ResNet-20 on 128 images of 32x32 and a GPT of one block with 50,000 classes on one and on four texts
of 64 tokens; the candidates are all splits and prunes. Scoring is a step of learning, screening, and the refinement of
64 candidates; a training step is one of SGD with momentum. Weights, gradients and the state of the optimiser count
where they are there; what kernels use inside themselves does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from archir.scoring.batches import bind_batches
from archir.scoring.chunks import singly
from archir.scoring.families import find_families
from archir.scoring.learn import Learner
from archir.scoring.objective import make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.refine import refine
from archir.scoring.screen import screen
from archir.scoring.stream import streamed
from frontends.pytorch import trace
from passes.prune import Prune
from passes.split import Split
from tests.models.tokens import GPT
from tests.models.vision import ResNet20
from tools.peak_memory import peak

REFINED, CLASSES, LENGTH = 64, 50_000, 64


def run() -> Mapping[str, float]:
    """Return the figures."""
    torch.manual_seed(0)
    images, labels = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))
    figures = _ratios("resnet20_128_images", ResNet20(), images, labels)
    for examples in (1, 4):
        tokens = torch.randint(0, CLASSES, (examples, LENGTH + 1))
        model = GPT(CLASSES, width=128, length=LENGTH)
        figures |= _ratios(f"gpt_{examples}_examples", model, tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    return figures


def _ratios(name: str, model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    graph = trace(model, (inputs.expand(2, *inputs.shape[1:]) if len(inputs) == 1 else inputs[:2],))
    training = _training(graph.module().train(), inputs, targets)
    families, _ = find_families(graph, [Split(), Prune()])
    perturbations, batch = [f.perturbation for f in families], (inputs, targets)
    whole = make_objective(graph, "cross_entropy")
    objective = streamed(whole, perturbations, bind_batches(whole.program, [batch]))
    learner = Learner(objective, perturbations, ScoreOptions(steps=1000))
    learner.step(batch)
    members = [(f, m) for f, p in enumerate(perturbations) for m in range(p.members)]
    chosen = singly(members[:: len(members) // REFINED][:REFINED])
    peaks = {
        "learn": peak(partial(learner.step, batch)),
        "screen": peak(partial(screen, objective, perturbations, learner.thetas, [batch])),
        "refine": peak(partial(refine, objective, perturbations, learner.thetas, chosen, [batch])),
    }
    worst = max(peaks.values()) / training
    figures = {f"peak_memory_of_{kind}_over_train_step_{name}": found / training for kind, found in peaks.items()}
    return {f"peak_memory_over_train_step_{name}": worst, **figures}


def _training(module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> int:
    """Return the peak of a training step, the state of the optimiser already there."""
    optimiser = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimiser.zero_grad()
        torch.autograd.backward(F.cross_entropy(module(inputs).flatten(0, -2), targets.flatten()))
        optimiser.step()

    step()
    return peak(step)
