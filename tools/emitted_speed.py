"""How fast what is emitted of a grown network is, against a network of that shape that is written by hand.

A network of half the widths is traced and every width is doubled by splits, as growth would have it; the network
written by hand has these widths from the start, and the same weights. Both are exported to ONNX, and run by
onnxruntime; the emitted source and the network by hand are run and trained by PyTorch. Both take turns on one thread,
and a figure is the median over the rounds of how long one took over how long the other did: seconds that the processor
worked for them, so that a busy machine disturbs little.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.api import apply, widths
from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.ir.graph import Graph
from frontends.pytorch import trace
from tests.models.tokens import GPT
from tests.models.vision import ResNet20
from tools.timing import in_turn, seconds
from tools.unet import UNet

CLASSES, LENGTH, HEADS = 1000, 64, 4
LEAST = 0.05
"""Seconds that are timed at once, at least: what takes less is done several times."""

FEWEST = 5
"""Rounds that are made however long one takes."""


@dataclass(frozen=True)
class Subject:
    """A network by hand in two sizes.

    Attributes:
        make: makes it, with this part of its widths.
        inputs: makes inputs for a batch.
        targets: makes targets for a batch, of classes on axis 1 of the outputs, or on the last of three.
        batch: examples of a training step; half of it is what inference is timed on.
        fixed: size of widths that are not doubled: the heads of attention.
    """

    make: Callable[[float], nn.Module]
    inputs: Callable[[int], Tensor]
    targets: Callable[[int], Tensor]
    batch: int
    fixed: int = 0


SUBJECTS: Mapping[str, Subject] = {
    "resnet20": Subject(
        lambda part: ResNet20(int(16 * part)),
        lambda batch: torch.randn(batch, 3, 32, 32),
        lambda batch: torch.randint(0, 10, (batch,)),
        batch=16,
    ),
    "gpt": Subject(
        lambda part: GPT(CLASSES, width=int(128 * part), heads=HEADS, length=LENGTH),
        lambda batch: torch.randint(0, CLASSES, (batch, LENGTH)),
        lambda batch: torch.randint(0, CLASSES, (batch, LENGTH)),
        batch=8,
        fixed=HEADS,
    ),
    "unet": Subject(
        lambda part: UNet(width=int(64 * part)),
        lambda batch: torch.randn(batch, 3, 128, 128),
        lambda batch: torch.randint(0, 2, (batch, 128, 128)),
        batch=2,
    ),
}


def speed(name: str, budget: float) -> dict[str, float]:
    """Return how long a subject takes over what it is compared with, and how large its file in 8-bit integers is.

    Args:
        name: of the subject.
        budget: seconds that each comparison takes, about; five rounds are made at least.
    """
    subject = SUBJECTS[name]
    graph = doubled(subject)
    by_hand = subject.make(1.0)
    by_hand.load_state_dict(graph.module().state_dict())  # refused where the shapes differ
    inputs, targets = subject.inputs(subject.batch), subject.targets(subject.batch)
    few = inputs[: subject.batch // 2]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = _files(graph, by_hand, few, Path(folder))
            sessions = {kind: _session(file, few) for kind, file in files.items()}
            sizes = {kind: file.stat().st_size for kind, file in files.items()}
            emitted = _loaded(to_python(graph, folder).path)
        steps = _step(emitted, inputs, targets), _step(by_hand, inputs, targets)
        return {
            "onnx_over_direct": ratio(sessions["emitted"], sessions["direct"], budget),
            "inference_over_by_hand": ratio(_inference(emitted, few), _inference(by_hand, few), budget),
            "training_over_by_hand": ratio(steps[0], steps[1], budget),
            "int8_over_float": ratio(sessions["int8"], sessions["emitted"], budget),
            "int8_bytes_over_float": sizes["int8"] / sizes["emitted"],
        }
    finally:
        torch.set_num_threads(threads)


def ratio(one: Callable[[], object], other: Callable[[], object], budget: float) -> float:
    """Return how long one task takes over another, as the median of rounds in which both are done.

    Args:
        one: the task.
        other: the task it is compared with.
        budget: seconds that all rounds take, about.
    """
    tasks = {"one": one, "other": other}
    for task in tasks.values():
        task()
    once = seconds(other, time.process_time)
    repeats = max(1, math.ceil(LEAST / max(once, 1e-6)))

    def several(task: Callable[[], object]) -> Callable[[], object]:
        def act() -> None:
            for _ in range(repeats):
                task()

        return act

    rounds = max(FEWEST, int(budget / (2 * repeats * once)))
    times = in_turn({name: several(task) for name, task in tasks.items()}, rounds, time.process_time)
    return statistics.median(a / b for a, b in zip(times["one"], times["other"], strict=True))


def doubled(subject: Subject) -> Graph:
    """Return a graph traced at half the widths, with every width doubled by splits."""
    graph = trace(subject.make(0.5), (subject.inputs(2),))
    splits = [
        f"split{{width={width.name}, units={list(range(width.size))}}}"
        for width in widths(graph)
        if width.size != subject.fixed
    ]
    return apply(graph, splits)


def _files(graph: Graph, by_hand: nn.Module, few: Tensor, folder: Path) -> dict[str, Path]:
    """Write archir's file, one in 8-bit integers, and what the exporter makes of the network by hand."""
    files = {kind: folder / f"{kind}.onnx" for kind in ("emitted", "int8", "direct")}
    to_onnx(graph, files["emitted"])
    to_onnx(graph, files["int8"], quantise="int8")
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            by_hand.eval(),
            (few,),
            files["direct"],
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            external_data=False,
            verbose=False,
        )
    log.setLevel(level)
    return files


def _session(file: Path, inputs: Tensor) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: inputs.numpy()}
    return lambda: session.run(None, given)


def _loaded(file: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("emitted_net", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.load()
    assert isinstance(net, nn.Module)
    return net


def _inference(net: nn.Module, inputs: Tensor) -> Callable[[], object]:
    @torch.inference_mode()
    def run() -> None:
        net.eval()(inputs)

    return run


def _step(net: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], object]:
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        outputs = net.train()(inputs)
        classes = outputs.transpose(1, 2) if outputs.dim() == 3 else outputs
        optimiser.zero_grad()
        F.cross_entropy(classes, targets).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step
