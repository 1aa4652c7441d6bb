"""The figures of the study, read off its records."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from tools.growth.records import Record
from tools.growth.tasks import Task

BOOTSTRAPS = 2000
"""Samples that an interval is read off."""

NEAR = 0.02
"""By what part the FLOPs of two trainings may differ that are said to take as many."""

Predictions = Mapping[str, Mapping[str, float]]
"""By criterion what it predicts for the loss of each random allocation, lower is better, by the name of the arm."""


def figures(
    records: Sequence[Record], tasks: Mapping[str, Task], predictions: Mapping[str, Predictions] | None = None
) -> dict[str, Any]:
    """Return the figures of each task.

    Args:
        records: all trainings.
        tasks: the tasks by name.
        predictions: by task what criteria say of its random allocations; see `tools.growth.criteria`.
    """
    found: dict[str, Any] = {}
    for name, task in tasks.items():
        some = [r for r in records if r.key.task == name]
        uniform = [r for r in some if r.key.arm == "uniform"]
        random = [r for r in some if r.key.arm.startswith("random-")]
        predicted = {} if predictions is None else predictions.get(name, {})
        found[name] = {
            "judged_by": task.judged_by,
            "records": len(some),
            "failures": {str(r.key.path): r.failure for r in some if r.failure},
            "seconds_of_a_training": _mean([r.seconds for r in some]),
            "rates": {f"{r.key.rate:g}": value(r, task) for r in uniform if r.key.seed == 0 and not r.failure},
            "uniform": _spread([value(r, task) for r in uniform if r.key.rate == task.rate and not r.failure]),
            "random": _spread([value(r, task) for r in random if not r.failure]),
            "compared": _compared(some, task),
            "correlation_with_the_end": _criteria([r for r in random if not r.failure], task, predicted),
        }
    return found


def _compared(records: Sequence[Record], task: Task) -> dict[str, Any]:
    """Return by how much each arm is better than the uniform network from the same seed, and what it costs.

    `better_by` (than the uniform network trained for the steps of the task), `equal_training` (than that which was
    trained for as many FLOPs) and `default_better_by` (how much the arm `grown` is better than this one) are means of
    paired differences of the test score, with 95 % intervals by Student's t; positive is better. Costs are means of
    ratios to the uniform network.
    """
    known = {(r.key.arm, r.key.seed): r for r in records if not r.failure and r.key.rate == task.rate}
    of_kind: dict[str, list[Record]] = {}
    for (arm, _), record in known.items():
        if arm != "uniform" and not arm.startswith("random-"):
            of_kind.setdefault(re.sub(r"-[\d.]+$", "", arm), []).append(record)
    found: dict[str, Any] = {}
    for kind, some in sorted(of_kind.items()):
        pairs = [(r, known["uniform", r.key.seed]) for r in some if ("uniform", r.key.seed) in known]
        longer = [(r, _as_dear(r, of_kind.get("uniform-longer", []))) for r, _ in pairs]
        default = [(known["grown", r.key.seed], r) for r in some if ("grown", r.key.seed) in known]
        found[kind] = {
            "tested": {str(r.key.seed): _tested(r, task) for r in some},
            "better_by": _difference([_tested(r, task) - _tested(u, task) for r, u in pairs]),
            "equal_training": _difference([_tested(r, task) - _tested(u, task) for r, u in longer if u is not None]),
            "default_better_by": _difference([_tested(g, task) - _tested(r, task) for g, r in default if g is not r]),
            "parameters": _mean([r.parameters / u.parameters for r, u in pairs]),
            "flops": _mean([r.flops / u.flops for r, u in pairs]),
            "training_flops": _mean([r.training_flops / u.training_flops for r, u in pairs]),
            "seconds": _mean([r.seconds / u.seconds for r, u in pairs]),
        }
    return found


def _as_dear(record: Record, others: Sequence[Record]) -> Record | None:
    """Return the one of other records from the same seed that took as many FLOPs, but for rounding."""
    of_seed = [r for r in others if r.key.seed == record.key.seed and r is not record]
    best = min(of_seed, key=lambda r: abs(r.training_flops - record.training_flops), default=None)
    near = best is not None and abs(best.training_flops / record.training_flops - 1) < NEAR
    return best if near else None


def _tested(record: Record, task: Task) -> float:
    assert record.test is not None
    return task.score(record.test)


def _difference(values: Sequence[float]) -> dict[str, float]:
    """Return the mean of differences, its 95 % interval, and their number."""
    if len(values) < 2:
        return {"number": len(values)}
    mean, error = statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return {"number": len(values), "mean": mean, "low": mean - reach, "high": mean + reach}


def value(record: Record, task: Task) -> float:
    """Return the figure a training is judged by, on the validation split."""
    assert record.validation is not None
    return float(getattr(record.validation, task.judged_by))


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Return the rank correlation of two lists, and its 95 % interval over samples of pairs drawn with replacement."""
    pairs, generator = np.array([one, other]), np.random.default_rng(0)
    draws = generator.integers(len(one), size=(BOOTSTRAPS, len(one)))
    found = [float(stats.spearmanr(*pairs[:, d]).statistic) for d in draws if all(np.ptp(p[d]) > 0 for p in pairs)]
    low, high = np.quantile(found, [0.025, 0.975])
    return {"mean": float(stats.spearmanr(*pairs).statistic), "low": float(low), "high": float(high)}


def _criteria(records: Sequence[Record], task: Task, predictions: Predictions) -> dict[str, Any]:
    """Return how well the final score of random allocations is known before; larger is better for all."""
    if len(records) < 4:
        return {}
    final = [_score(r, task, -1) for r in records]
    looks = {f"after step {p.step}": i for i, p in enumerate(records[0].curve[:-1])}
    criteria: dict[str, Callable[[Record], float]] = {
        "parameters": lambda r: r.parameters,
        "flops": lambda r: r.flops,
        **{name: lambda r, i=i: _score(r, task, i) for name, i in looks.items()},  # type: ignore[misc]
    }
    found = {name: [of(r) for r in records] for name, of in criteria.items()}
    found |= {name: [-values[r.key.arm] for r in records] for name, values in predictions.items()}
    return {name: rank_correlation(values, final) for name, values in found.items() if len(set(values)) > 1}


def _score(record: Record, task: Task, look: int) -> float:
    point = record.curve[look]
    if task.judged_by == "loss":
        return -point.loss
    assert point.accuracy is not None
    return point.accuracy


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    quartiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    names = ("least", "lower", "median", "upper", "most")
    found = {name: float(q) for name, q in zip(names, quartiles, strict=True)}
    return {"number": len(values), "mean": statistics.fmean(values), "deviation": deviation, **found}


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0
