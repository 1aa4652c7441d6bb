"""How long it takes to write a network as PyTorch source, and how fast what is written runs.

`writing`: capture, writing, and the check, in seconds, and the peak. The networks are a ResNet-18 U-Net on images of
128 x 128 and 256 x 256, a ResNet-20, a GPT, and residual chains of 1,200 and 2,400 calls, for which the time of a call
has to stay the same. Writing is everything from the graph to the text, checked against the vocabulary; the check stores
the files, loads them and compares them with the graph for two batch sizes. Capture is timed once, the others as medians
of rounds in which they take their turn; the peak is that of tensors alive while the file is written and checked, over
the bytes of the stored tensors.

`speed`: the time of what is emitted of a grown ResNet-20, GPT and U-Net over that of a network of that shape that is
written by hand (`tools/emitted_speed.py`): the ONNX file over what the exporter of torch makes of it, the source in
inference and in a training step; and an ONNX file in 8-bit integers over the one in floating point.

`int8`, which is run if it is asked for alone (`--only int8`): how far off 8-bit integers put the outputs of the models
of the zoo.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.emit.check import Quantised
from archir.emit.layouts import LAYOUTS, draft
from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.errors import EmitError
from archir.ir.graph import Graph
from frontends.pytorch import trace
from tests.models.tokens import GPT
from tests.models.vision import ResNet20
from tests.models.zoo import ZOO
from tools.emitted_speed import SUBJECTS as COMPARED
from tools.emitted_speed import speed
from tools.peak_memory import PeakMemory
from tools.timing import medians
from tools.unet import UNet

ROUNDS = 3
SECONDS = 4.0
"""How long a comparison of speeds takes, about."""

PARTS = ("writing", "speed")
RATIOS = ("onnx_over_direct", "inference_over_by_hand", "training_over_by_hand")
CLASSES, LENGTH = 1000, 64


class _Residual(nn.Module):
    """A residual block of five calls."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.down(F.gelu(self.up(self.norm(x)))))


class _Chain(nn.Module):
    """Residual blocks in a loop, each followed by a call of the network itself: six calls a block."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Residual(8) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).tanh()
        return x


def _chain(calls: int) -> tuple[nn.Module, Tensor]:
    return _Chain(calls // 6), torch.randn(2, 8)


SUBJECTS: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "unet_128": lambda: (UNet(), torch.randn(2, 3, 128, 128)),
    "unet_256": lambda: (UNet(), torch.randn(2, 3, 256, 256)),
    "resnet20": lambda: (ResNet20(), torch.randn(2, 3, 32, 32)),
    "gpt": lambda: (GPT(CLASSES, width=128, length=LENGTH), torch.randint(0, CLASSES, (2, LENGTH))),
    **{f"chain_{calls}": partial(_chain, calls) for calls in (1200, 2400)},
}


def run(only: str = ",".join(PARTS), trials: int = ROUNDS) -> Mapping[str, object]:
    """Return the figures.

    Args:
        only: the parts to run.
        trials: rounds of writing.
    """
    torch.manual_seed(0)
    parts = only.split(",")
    found: dict[str, object] = {}
    if "writing" in parts:
        found |= {name: _figures(*make(), trials) for name, make in SUBJECTS.items()}
    if "int8" in parts:
        found |= _quantised()
    if "speed" in parts:
        ratios = {name: speed(name, SECONDS) for name in COMPARED}
        found |= {f"largest_{ratio}": max(of[ratio] for of in ratios.values()) for ratio in RATIOS}
        found["speed"] = ratios
    return found


def _figures(model: nn.Module, x: Tensor, rounds: int) -> Mapping[str, object]:
    start = time.perf_counter()
    graph = trace(model, (x,))
    captured = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        tasks = {"write": lambda: draft(graph, LAYOUTS[0]), "all": lambda: to_python(graph, folder)}
        times = medians(tasks, rounds)
        layout = next(k for k in LAYOUTS if draft(graph, k).text == (Path(folder) / "net.py").read_text())
        memory = PeakMemory()
        with memory:
            to_python(graph, folder)
    return {
        "calls": sum(1 for _ in graph.calls),
        "layout": layout,
        "trace_seconds": captured,
        "write_seconds": times["write"],
        "check_seconds": times["all"] - times["write"],
        "write_and_check_seconds": times["all"],
        "peak_over_stored_bytes": memory.peak / _stored(graph),
    }


def _quantised() -> Mapping[str, object]:
    """Return how far off the outputs of the models of the zoo are in 8-bit integers, and who cannot be quantised."""
    verdicts: dict[str, str] = {}
    found: list[Quantised] = []
    for name, example in ZOO.items():
        torch.manual_seed(0)
        graph = trace(example.build(), example.inputs(), example.kwargs(), static_batch=example.static_batch)
        with tempfile.TemporaryDirectory() as folder:
            try:
                quantised = to_onnx(graph, Path(folder) / "net.onnx", quantise="int8").quantised
            except EmitError as error:
                verdicts[name] = error.what
                continue
        assert quantised is not None
        found.append(quantised)
        verdicts[name] = quantised.verdict
    off = [one.relative for one in found if one.relative is not None]
    return {
        "models": len(ZOO),
        "quantised": len(found),
        "largest_relative": max(off),
        "median_relative": statistics.median(off),
        "smallest_alike": min(one.alike for one in found if one.alike is not None),
        "int8": verdicts,
    }


def _stored(graph: Graph) -> int:
    return sum(t.numel() * t.element_size() for t in graph.tensors.values())
