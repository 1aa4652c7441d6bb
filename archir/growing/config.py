"""The configuration of a run: a TOML file, checked as a whole before anything starts.

    seed = 0
    loss = "cross_entropy"            # or "mse", "bce_with_logits", "file.py:function"
    output = "runs/mine"

    [model]
    factory = "mine.py:seed"          # or "package.module:function"; or graph = "net.archir", "net.onnx"
    arguments = { width = 8 }
    dynamic = ["x:1=T"]               # axis 1 of the input x may have any size, called T

    [data]
    source = "digits"                 # or "mine.py:function", which may return a DataLoader; see archir.load_data
    # source = "train=mine.py:train, validation=mine.py:validation, test=mine.py:test"    # three generators, say
    workers = 2                       # processes that read examples that are not in memory

    [budget]
    parameters = 60_000               # or flops = 0.5: a part of what the network costs, to compress it to

`[optimiser]`, `[augmentation]`, `[training]`, `[growth]` and `[prices]` hold the fields of `OptimiserOptions`,
`Augmentation`, `Training`, `Growing` and `Prices`. `[growth]` also holds the kinds of rewrite, `passes = ["split",
"mine"]`, and the modules of those that do not come with archir, `plugins = ["mine.py"]`. Relative paths start from the
folder of the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Self

import pydantic
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator

from archir.errors import ArchirError, FileError, GrowError, ParseError
from archir.growing.batches import Augmentation
from archir.growing.data import Dataset, load_data
from archir.growing.importing import load_object
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import Growing, GrowOptions, Training
from archir.ir.axis_names import parse_dynamic
from archir.scoring.budget import Budget, Prices
from archir.scoring.losses import Loss, find_loss
from archir.scoring.ranges import CLOSED, Count, Seed, Text, Truth, Whole, checked, problem, problems_of

LONGEST = 2**20
"""The most bytes of a configuration."""

Inside = Annotated[float, Field(strict=True, gt=0, lt=1)]


@checked(GrowError, "this is no model")
@pydantic.dataclasses.dataclass(frozen=True, config=CLOSED)
class ModelSource:
    """Where the seed network comes from: one of a function and a file.

    Attributes:
        factory: `package.module:name` or `file.py:name` of a function that makes an nn.Module.
        arguments: keyword arguments of the function.
        dynamic: the axes of its inputs that are dynamic besides the batch, `x:1=T`.
        graph: an `.archir` or an ONNX file.

    Raises:
        GrowError: there is neither or both, or a graph with arguments; or an axis is not written right.
    """

    factory: Text | None = None
    arguments: Mapping[str, Any] = Field(default_factory=dict)
    dynamic: tuple[Text, ...] = ()
    graph: Text | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.factory is None) == (self.graph is None):
            raise problem("the model needs one of factory and graph")
        if self.arguments and self.graph is not None:
            raise problem("arguments are those of a factory, a graph takes none")
        if self.dynamic and self.graph is not None:
            raise problem("a graph says itself which axes are dynamic")
        try:
            parse_dynamic(self.dynamic)
        except ParseError as error:
            told = "; ".join(line.strip() for line in error.where.splitlines())
            raise problem(f"dynamic: {told}; {error.hint}") from error
        return self


@checked(GrowError, "these are no data")
@pydantic.dataclasses.dataclass(frozen=True, config=CLOSED)
class DataSource:
    """Where the examples come from; see `load_data` for the fields.

    Attributes:
        source: what `load_data` takes.
        validation: part of the training data to validate on, if no validation data are given.
        test: part of the data to test on, if no test data are given.
        limit: number of examples to train and validate on.
        normalise: standardise each channel.
        workers: how many processes read examples that are not in memory.

    Raises:
        GrowError: a value is of another kind or out of range; all of them at once.
    """

    source: Text
    validation: Inside = 0.1
    test: Inside = 0.2
    limit: Count | None = None
    normalise: Truth = True
    workers: Whole | None = None


@dataclass(frozen=True)
class RunConfig:
    """Everything a run needs to know.

    Attributes:
        model: the seed network.
        data: the examples.
        loss: name of a loss, or `file.py:function`.
        budget: hard limits on the cost of the network in the end, or parts of what it costs at first.
        options: how it is trained and grown.
        passes: specifications of the kinds of rewrite it grows by; the default kinds if empty.
        plugins: modules whose passes are known beside those that come with archir.
        output: the directory of the run.
        base: folder that relative paths start from.
        text: the file, as it was written.
        data_base: folder that relative paths of the data start from, if it is another one.
    """

    model: ModelSource
    data: DataSource
    loss: str
    budget: Budget
    options: GrowOptions
    passes: tuple[str, ...]
    plugins: tuple[str, ...]
    output: Path
    base: Path
    text: str
    data_base: Path | None = None

    def load_data(self, names: Sequence[str] = ()) -> Dataset:
        """Read the examples.

        Args:
            names: of the arguments of the model that are given by name, if they are known, see `load_data`.

        Raises:
            FileError: they are missing or damaged.
            GrowError: the source makes no sense, or the user's function fails.
        """
        data = self.data
        return load_data(
            data.source,
            base=self.base if self.data_base is None else self.data_base,
            validation=data.validation,
            test=data.test,
            seed=self.options.seed,
            limit=data.limit,
            normalise=data.normalise,
            workers=data.workers,
            names=names,
        )

    def find_loss(self) -> Loss:
        """Return the loss.

        Raises:
            FileError: the file of the loss is missing.
            GrowError: there is no such function.
            ScoreError: there is no loss of that name.
        """
        return loss_of(self.loss, self.base)

    def with_data(self, source: str) -> RunConfig:
        """Return the configuration with other data, whose relative paths start from the working directory."""
        text = f"# with --data {source}\n{self.text}"
        return replace(self, data=replace(self.data, source=source), data_base=Path(), text=text)

    def with_rule(self, rule: str) -> RunConfig:
        """Return the configuration with candidates chosen by another rule.

        Raises:
            GrowError: there is no such rule.
        """
        return replace(self, options=replace(self.options, rule=rule), text=f"# with --rule {rule}\n{self.text}")

    def on(self, device: str | None, *, sharded: bool | None = None) -> RunConfig:
        """Return the configuration with everything computed on another device, or in shards or not, if that is given.

        The text stays what it is: where a run is computed is no part of what it is.

        Raises:
            GrowError: this is no name of a device, or tensors are to be laid out otherwise.
        """
        return replace(self, options=self.options.on(device, sharded=sharded))


def loss_of(spec: str, base: Path = Path()) -> Loss:
    """Return the loss of a name, or of a user's function named by `file.py:function`.

    Raises:
        FileError: the file of the function is missing.
        GrowError: there is no such function.
        ScoreError: there is no loss of that name.
    """
    return find_loss(load_object(spec, base=base) if ":" in spec else spec)


def read_config(path: Path) -> RunConfig:
    """Read the configuration of a run.

    Raises:
        FileError: the file is missing, or no TOML.
        GrowError: keys are unknown or missing, or values make no sense; all of them at once.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST + 1)
        if len(data) > LONGEST:
            raise FileError(f"{path} is no configuration", why=f"it is longer than {LONGEST} bytes")
        text = data.decode().replace("\r\n", "\n")
        content = tomllib.loads(text)
    except FileNotFoundError as error:
        raise FileError(f"there is no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read {path}", why=str(error)) from error
    except RecursionError as error:
        raise FileError(f"{path} is nested too deep") from error
    except ValueError as error:  # of TOML, or of a whole number of thousands of digits
        raise FileError(f"{path} is not TOML", why=str(error)) from error
    return make_config(content, text=text, base=path.parent, where=str(path))


def make_config(content: Mapping[str, Any], *, text: str, base: Path, where: str) -> RunConfig:
    """Return the configuration made of the content of a file.

    Args:
        content: the tables.
        text: the file itself.
        base: folder that relative paths start from.
        where: name of the file, for errors.

    Raises:
        GrowError: keys are unknown or missing, or values make no sense; all of them at once.
    """
    try:
        found = TypeAdapter(_File).validate_python(dict(content))
        training, growth = vars(found.training), dict(vars(found.growth))
        passes, plugins = growth.pop("passes"), growth.pop("plugins")
        options = GrowOptions(
            **training,
            **growth,
            optimiser=found.optimiser,
            augmentation=found.augmentation if found.augmentation != Augmentation() else None,
            prices=found.prices,
            seed=found.seed,
        )
    except ValidationError as error:
        raise GrowError(f"{where} does not make a run", why="\n         ".join(problems_of(error, _File))) from error
    except GrowError as error:  # two tables do not fit together
        raise GrowError(f"{where} does not make a run", why=error.where) from error
    return RunConfig(
        found.model, found.data, found.loss, found.budget, options, passes, plugins, base / found.output, base, text
    )


def _limited(budget: Budget) -> Budget:
    if not budget.limits:
        raise problem(f"a budget needs one of {', '.join(f.name for f in fields(Budget))}")
    wrong = [f"{name} is {limit}, not positive" for name, limit in budget.limits.items() if limit <= 0]
    if wrong:
        raise problem("; ".join(wrong))
    return budget


def _known(loss: str) -> str:
    if ":" not in loss:
        try:
            find_loss(loss)
        except ArchirError as error:
            raise problem(f"{error.what}; {error.hint}") from error
    return loss


@pydantic.dataclasses.dataclass(frozen=True, config=CLOSED, kw_only=True)
class _Growth(Growing):
    """The table `[growth]`."""

    passes: tuple[Text, ...] = ()
    plugins: tuple[Text, ...] = ()


@pydantic.dataclasses.dataclass(frozen=True, config=CLOSED, kw_only=True)
class _File:
    """The keys of a file."""

    model: ModelSource
    data: DataSource
    budget: Annotated[Budget, AfterValidator(_limited)]
    seed: Seed = 0
    loss: Annotated[Text, AfterValidator(_known)] = "cross_entropy"
    output: Text = "run"
    optimiser: OptimiserOptions = field(default_factory=OptimiserOptions)
    augmentation: Augmentation = field(default_factory=Augmentation)
    training: Training = field(default_factory=Training)
    growth: _Growth = field(default_factory=_Growth)
    prices: Prices = field(default_factory=Prices)
