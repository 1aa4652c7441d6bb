"""The configuration of a run: a TOML file, checked as a whole before anything starts.

    seed = 0
    loss = "cross_entropy"            # or "mse", "bce_with_logits", "file.py:function"
    output = "runs/mine"

    [model]
    factory = "mine.py:seed"          # or "package.module:function"; or graph = "net.archir"
    arguments = { width = 8 }

    [data]
    source = "digits"                 # see archir.load_data

    [budget]
    parameters = 60_000

`[optimiser]`, `[augmentation]`, `[training]`, `[growth]` and `[prices]` hold the fields of `OptimiserOptions`,
`Augmentation`, `GrowOptions` and `Prices`. `[growth]` also holds the kinds of rewrite, `passes = ["split", "mine"]`,
and the modules of those that do not come with archir, `plugins = ["mine.py"]`. Relative paths start from the folder of
the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from archir.errors import ArchirError, FileError, GrowError
from archir.grow.batches import Augmentation
from archir.grow.budget import Budget, Prices
from archir.grow.data import Dataset, load_data
from archir.grow.objects import load_object
from archir.grow.optimisers import OptimiserOptions
from archir.grow.options import GrowOptions
from archir.grow.tables import Problems, check_keys, fields_of, read_fields
from archir.score.losses import Loss, find_loss
from archir.score.ranges import shown

LONGEST = 2**20
"""The most bytes of a configuration."""

TRAINING = ("steps", "batch_size", "warmup", "schedule", "clip", "evaluate_every", "checkpoint_every")
"""Fields of `GrowOptions` that are given in `[training]`; those of one value that are left go in `[growth]`."""

_PARTS = ("optimiser", "augmentation", "prices", "seed")
_GROWTH = tuple(f.name for f in fields(GrowOptions) if f.name not in (*TRAINING, *_PARTS))
_KINDS = ("passes", "plugins")
_KEYS = ("seed", "loss", "output")
_TABLES = ("model", "data", "budget", "optimiser", "augmentation", "training", "growth", "prices")


@dataclass(frozen=True)
class ModelSource:
    """Where the seed network comes from: one of a function and a file.

    Attributes:
        factory: `package.module:name` or `file.py:name` of a function that makes an nn.Module.
        arguments: keyword arguments of the function.
        graph: an `.archir` file.
    """

    factory: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    graph: str | None = None

    def __post_init__(self) -> None:
        if (self.factory is None) == (self.graph is None):
            raise GrowError("the model needs one of factory and graph")
        if self.arguments and self.graph is not None:
            raise GrowError("arguments are those of a factory, a graph takes none")


@dataclass(frozen=True)
class DataSource:
    """Where the examples come from; see `load_data` for the fields.

    Attributes:
        source: what `load_data` takes.
        validation: part of the training data to validate on, if no validation data are given.
        test: part of the data to test on, if no test data are given.
        limit: number of examples to train and validate on.
        normalise: standardise each channel.
    """

    source: str
    validation: float = 0.1
    test: float = 0.2
    limit: int | None = None
    normalise: bool = True

    def __post_init__(self) -> None:
        wrong = [name for name in ("validation", "test") if not 0 < getattr(self, name) < 1]
        if wrong:
            raise GrowError(f"{' and '.join(wrong)} must be between 0 and 1")
        if self.limit is not None and self.limit < 1:
            raise GrowError(f"limit is {self.limit}, not positive")


@dataclass(frozen=True)
class RunConfig:
    """Everything a run needs to know.

    Attributes:
        model: the seed network.
        data: the examples.
        loss: name of a loss, or `file.py:function`.
        budget: hard limits on the cost of the grown network.
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

    def load_data(self) -> Dataset:
        """Read the examples.

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
    problems: Problems = []
    check_keys(content, (*_KEYS, *_TABLES), "", problems)
    tables = {name: _table(content, name, problems) for name in _TABLES}
    model = read_fields(ModelSource, tables["model"], "model", problems)
    data = read_fields(DataSource, tables["data"], "data", problems)
    budget = read_fields(Budget, tables["budget"], "budget", problems)
    top = read_fields(_Top, {k: content[k] for k in _KEYS if k in content}, "", problems)
    options = _options(tables, top.seed if top else 0, problems)
    kinds = {k: v for k, v in tables["growth"].items() if k in _KINDS}
    growth = read_fields(_Growth, kinds, "growth", problems)
    problems += _problems_of_budget(budget) if budget else []
    if top is not None and ":" not in top.loss:
        problems += _problems_of_loss(top.loss)
    if problems or None in (model, data, budget, top, options, growth):
        raise GrowError(f"{where} does not make a run", why="\n         ".join(problems))
    assert model and data and budget and top and options and growth
    return RunConfig(
        model, data, top.loss, budget, options, growth.passes, growth.plugins, base / top.output, base, text
    )


@dataclass(frozen=True)
class _Top:
    seed: int = 0
    loss: str = "cross_entropy"
    output: str = "run"


@dataclass(frozen=True)
class _Growth:
    passes: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()


def _table(content: Mapping[str, Any], name: str, problems: Problems) -> dict[str, Any]:
    table = content.get(name, {})
    if not isinstance(table, dict):
        problems.append(f"{name} is {shown(table)}, not a table")
        return {}
    return table


def _options(tables: Mapping[str, dict[str, Any]], seed: int, problems: Problems) -> GrowOptions | None:
    known = fields_of(GrowOptions)
    training, growth = tables["training"], tables["growth"]
    check_keys(training, TRAINING, "training", problems)
    check_keys(growth, (*_GROWTH, *_KINDS), "growth", problems)
    optimiser = read_fields(OptimiserOptions, tables["optimiser"], "optimiser", problems)
    augmentation = read_fields(Augmentation, tables["augmentation"], "augmentation", problems)
    prices = read_fields(Prices, tables["prices"], "prices", problems)
    given: dict[str, Any] = {}
    for where, names in (("training", TRAINING), ("growth", _GROWTH)):
        present = {k: v for k, v in tables[where].items() if k in names}
        given |= known.values(present, where, problems)
    if optimiser is None or augmentation is None or prices is None:
        return None
    given |= {"optimiser": optimiser, "prices": prices, "seed": seed}
    given |= {"augmentation": augmentation if augmentation != Augmentation() else None}
    return known.build(given, "training and growth", problems)


def _problems_of_budget(budget: Budget) -> list[str]:
    if not budget.limits:
        return [f"budget needs one of {', '.join(f.name for f in fields(Budget))}"]
    return [f"budget.{name} is {limit}, not positive" for name, limit in budget.limits.items() if limit <= 0]


def _problems_of_loss(name: str) -> list[str]:
    try:
        find_loss(name)
    except ArchirError as error:
        return [f"{error.what}; {error.mend}"]
    return []
