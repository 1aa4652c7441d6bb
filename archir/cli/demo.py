"""The demo: a small network grown on scikit-learn's digits, beside two that were not grown."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from archir.cli.console import RunProgress, print_table, say
from archir.cli.control import initialise, widen_uniformly
from archir.cli.growing import Outcome, finish, outcome_lines, seed_graph, start
from archir.cost import cost
from archir.grow.config import RunConfig, make_config
from archir.grow.control import train_static
from archir.grow.data import Dataset
from archir.grow.report import COLUMNS, rows
from archir.grow.run import CONFIG, create_run
from archir.grow.training import Metrics, evaluate
from archir.ir.graph import Graph
from archir.score.losses import Loss

TEXT = """\
# the run of `archir demo`
loss = "cross_entropy"

[model]
factory = "archir.cli.demo:DigitsNet"

[data]
source = "digits"
validation = 0.25

[budget]
parameters = 4_000

[optimiser]
name = "sgd"
rate = 0.1
weight_decay = 5e-4

[training]
steps = 3000
batch_size = 64
warmup = 30
evaluate_every = 100

[growth]
growth_steps = 4
first_growth = 0.02
last_growth = 0.2
learn_steps = 60
score_examples = 180
"""
"""The configuration of the demo."""


class DigitsNet(nn.Module):
    """A small residual network for 8 x 8 images of one channel."""

    def __init__(self, width: int = 3, classes: int = 10) -> None:
        """Make the layers.

        Args:
            width: channels of the residual stream; later ones are twice as many.
            classes: number of classes.
        """
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block = Block(width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, `[batch, classes]`, of images `[batch, 1, height, width]`."""
        x = F.relu(self.norm(self.stem(x)))
        x = self.block(x)
        x = F.relu(self.down_norm(self.down(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Block(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        """Make the layers, for a stream of so many channels."""
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return features shaped like the input, `[batch, channels, height, width]`."""
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(inner)))


def demo(out: Path, *, quiet: bool, text: str = TEXT) -> None:
    """Grow the network of the demo into a folder, train the controls, and print how they compare.

    Args:
        out: the folder; an earlier demo in it is replaced.
        quiet: show no progress.
        text: the configuration.

    Raises:
        FileError: there is another run in the folder, or it cannot be written.
    """
    began = time.monotonic()
    config = make_config(tomllib.loads(text), text=text, base=Path(), where="the demo")
    create_run(out, text, replace=_is_demo(out, text))
    with RunProgress(quiet=quiet) as progress:
        dataset, loss = config.load_data(), config.find_loss()
        seed = seed_graph(config, dataset.train)
        run = start(config, seed, dataset, loss, out, progress, resume=True)
    # The controls: neither is looked at before the end, so the test data are read once.
    size = max(seed.parameter_count, run.graph.parameter_count)
    uniform = initialise(widen_uniformly(seed, size), config.options.seed)
    statics = [_train(g, label, config, dataset, loss, quiet) for g, label in ((seed, "seed"), (uniform, "uniform"))]
    outcome = finish(run, dataset, loss, out, title="archir demo: digits")
    tested = [evaluate(module, dataset.test, loss) for module in statics]
    _tell(outcome, run.graph, (seed, uniform), tested, config, time.monotonic() - began)


def _is_demo(out: Path, text: str) -> bool:
    """Say whether the run in a folder is one of the demo."""
    file = out / CONFIG
    return file.is_file() and file.read_bytes().partition(b"\n")[0] == text.encode().partition(b"\n")[0]


def _train(graph: Graph, label: str, config: RunConfig, dataset: Dataset, loss: Loss, quiet: bool) -> nn.Module:
    total = config.options.steps
    with RunProgress(quiet=quiet, label=label) as progress:
        progress.line(f"control: the {label} network, {graph.parameter_count:,} parameters, {total} steps")
        return train_static(
            graph, dataset.train, loss, config.options, on_step=lambda step: progress.update(step + 1, total)
        )


def _tell(
    outcome: Outcome,
    grown: Graph,
    controls: tuple[Graph, Graph],
    tested: list[Metrics],
    config: RunConfig,
    seconds: float,
) -> None:
    print_table(COLUMNS, rows(outcome.report), title="growth: predicted and realised are changes of the loss")
    say("")
    nets = [
        ("seed, not grown", controls[0], tested[0]),
        ("uniformly widened", controls[1], tested[1]),
        ("grown", grown, outcome.test),
    ]
    cells = []
    for name, graph, metrics in nets:
        price = cost(graph)
        quality = "" if metrics.accuracy is None else f"{100 * metrics.accuracy:.2f} %"
        cells.append((name, f"{price.parameters:,}", f"{price.flops:,}", quality, f"{metrics.loss:.4f}"))
    steps = config.options.steps
    print_table(
        ("network", ">parameters", ">FLOPs", ">accuracy", ">loss"), cells, title=f"test data, after {steps} steps each"
    )
    say("")
    for line in outcome_lines(outcome):
        say(line)
    say(f"{seconds:.0f} seconds in all")
