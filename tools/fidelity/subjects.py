"""What is measured on: a network, its data, and its weights early, in the middle and late in training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pydoc_data import topics

import torch
from torch import nn

from archir.growing.batches import Batches, stream
from archir.growing.data import load_data
from archir.growing.examples import Examples, Split
from archir.growing.recalibration import recalibrate
from archir.growing.training import evaluate, train
from archir.ir.graph import Graph
from archir.scoring.losses import LOSSES
from frontends.pytorch import trace
from tools.fidelity.nets import GPT, ResidualNet, ViT

STAGES: Mapping[str, float] = {"early": 0.05, "middle": 0.3, "late": 1.0}
"""The part of the training done at each stage."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A network to be trained and its data.

    Attributes:
        name: `images`, `text`, `dilated` or `patches`.
        data: what the data are.
        build: makes the network.
        train: what weights and θ are learned on.
        held: parts of the data that are held out: the one candidates are scored on, one to see what they do to other
            examples, and the one a growth step checks its set on.
        batch: examples of a batch.
        steps: steps of training in all.
        rate: learning rate of Adam at the start; it falls to zero along a cosine.
    """

    name: str
    data: str
    build: Callable[[], nn.Module] = field(repr=False)
    train: Examples = field(repr=False)
    held: tuple[Examples, Examples, Examples] = field(repr=False)
    batch: int
    steps: int
    rate: float


def subject(name: str, *, seed: int, data: str | None) -> Subject:
    """Return the subject of a name.

    Args:
        name: `images`, `text`, `dilated` or `patches`.
        seed: seed of which examples are held out.
        data: spec of the images, as `archir.growing.data.load_data` takes it; scikit-learn's digits if not given.
    """
    if name == "text":
        return _text(seed)
    if name == "images":
        return _images(seed, data)
    return _digits(name, seed, (lambda: ResidualNet(1, 10, dilation=2)) if name == "dilated" else lambda: ViT(1, 8, 10))


def stages(subject: Subject, seed: int) -> Iterator[tuple[str, Graph, float]]:
    """Train a network and yield its graph at each stage, batch statistics recalibrated, with its held-out loss."""
    torch.manual_seed(seed)
    module, loss = subject.build(), LOSSES["cross_entropy"]
    optimiser = torch.optim.Adam(module.parameters(), lr=subject.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, subject.steps)
    batches = stream(Batches(subject.train, subject.batch, seed))
    done = 0
    for stage, part in STAGES.items():
        until = round(part * subject.steps)
        for _ in range(until - done):
            train(module, [next(batches)], loss, optimiser)
            schedule.step()
        done = until
        module.eval()
        recalibrate(module, itertools.islice(Batches(subject.train, subject.batch, seed + 1), 20))
        inputs = subject.train.take(slice(2)).inputs
        assert isinstance(inputs, torch.Tensor)
        yield stage, trace(module, (inputs,)), evaluate(module, subject.held[1], loss).loss


def _images(seed: int, data: str | None) -> Subject:
    found = load_data(data or "digits", validation=0.5, seed=seed)
    train = found.train.take(slice(None))
    images = train.inputs
    assert isinstance(images, torch.Tensor)
    channels, classes, stride = images.shape[1], len(found.classes), 2 if images.shape[2] > 16 else 1
    return Subject(
        "images",
        f"{data} of {len(found.train)} images to train on" if data else "scikit-learn's digits: no CIFAR-10 was given",
        lambda: ResidualNet(channels, classes, stride=stride),
        train,
        _parts(found.validation, 768 if data else 240),
        64,
        2000 if data else 400,
        4e-3,
    )


def _digits(name: str, seed: int, build: Callable[[], nn.Module]) -> Subject:
    """Return a network on images that ship with scikit-learn."""
    found = load_data("digits", validation=0.5, seed=seed)
    return Subject(
        name,
        "scikit-learn's digits",
        build,
        found.train.take(slice(None)),
        _parts(found.validation, 240),
        64,
        400,
        4e-3,
    )


def _text(seed: int, examples: int = 384, length: int = 32) -> Subject:
    """Return a language model of the characters of Python's own help texts."""
    text = "\n".join(topics.topics[key] for key in sorted(topics.topics))
    known = sorted({c for c in text if c.isascii() and (c.isprintable() or c == "\n")})
    number = {c: i for i, c in enumerate(known)}
    codes = torch.tensor([number[c] for c in text if c in number])
    windows = codes[: (len(codes) - 1) // length * length].reshape(-1, length)
    following = codes[1 : windows.numel() + 1].reshape(-1, length)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    everything = Examples(windows[order], following[order], "help texts of Python")
    held = everything.take(slice(3 * examples))
    return Subject(
        "text",
        f"{windows.numel()} characters of Python's help texts, windows of {length}",
        lambda: GPT(len(known), length),
        everything.take(slice(3 * examples, None)),
        _parts(held, examples),
        64,
        3000,
        4e-3,
    )


def _parts(split: Split, examples: int) -> tuple[Examples, Examples, Examples]:
    first, second, third = (split.take(slice(i * examples, (i + 1) * examples)) for i in range(3))
    return first, second, third
