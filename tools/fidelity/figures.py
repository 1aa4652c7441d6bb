"""The figures of the fidelity benchmark, and the bars it holds them against."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from tools.fidelity.records import Moment, Single, Together

MODELS = ("additive", "joint", "linearised")
SIDES = ("in_sample", "held_out")
LEARNED = ("alone", "together")
"""How θ of a set was learned: each member as if it were alone, or all of them together."""


def figures(moments: Sequence[Moment]) -> dict[str, Any]:
    """Return all figures as what JSON can hold: those that have bars first, then of each subject."""
    subjects = list(dict.fromkeys(m.subject for m in moments))
    return {
        "bars": bars(moments),
        "moments": len(moments),
        **{name: _subject([m for m in moments if m.subject == name]) for name in subjects},
    }


def bars(moments: Sequence[Moment]) -> dict[str, dict[str, float]]:
    """Return the figures that have bars: the bar, then what was found on each network."""

    def found(of: Callable[[Sequence[Moment]], float], bar: float) -> dict[str, float]:
        names = dict.fromkeys(m.subject for m in moments)
        return {"bar": bar, **{name: of([m for m in moments if m.subject == name]) for name in names}}

    return {
        "spearman_in_sample": found(lambda some: _mean(spearman(some, "in_sample")), 0.95),
        **{
            f"correlation_of_sets_learned_{learned}": found(partial(_correlation_of_sets, learned), 0.95)
            for learned in LEARNED
        },
        "realised_over_expected": found(lambda some: kept(some, "expected", "realised"), 0.8),
        "realised_over_predicted": found(lambda some: kept(some, "predicted", "in_sample"), 0.8),
        "committed_sets_that_raise_the_loss_checked_on": found(
            lambda some: sum(m.committed.size > 0 and m.committed.realised >= 0 for m in some), 0
        ),
    }


def spearman(moments: Iterable[Moment], side: str, morphism: str | None = None) -> list[float]:
    """Return for each moment the rank correlation of predicted and true changes of single candidates.

    Of all kinds the clear ones are taken, whose predicted change exceeds twice its standard error; of one kind all.
    """
    found: list[float] = []
    for m in moments:
        chosen = [s for s in m.singles if (s.clear if morphism is None else s.morphism == morphism)]
        if len(chosen) > 3:
            found.append(float(spearmanr([s.predicted for s in chosen], [getattr(s, side) for s in chosen]).statistic))
    return found


def pooled_spearman(singles: Sequence[Single], side: str) -> float | None:
    """Return the rank correlation over candidates of all moments; None for fewer than four."""
    if len(singles) < 4:
        return None
    return float(spearmanr([s.predicted for s in singles], [getattr(s, side) for s in singles]).statistic)


def slope(singles: Sequence[Single], side: str) -> float:
    """Return the slope, through the origin, of true over predicted changes: 1 if predictions are right."""
    predicted, true = np.array([s.predicted for s in singles]), np.array([getattr(s, side) for s in singles])
    return float(predicted @ true / (predicted @ predicted))


def correlation(moments: Iterable[Moment], learned: str, model: str, side: str = "in_sample") -> list[float]:
    """Return for each moment the correlation of predicted and true changes over its sets."""
    return [
        float(np.corrcoef([getattr(s, model) for s in sets], [getattr(s, side) for s in sets])[0, 1])
        for sets in _sets(moments, learned)
    ]


def pooled_correlation(sets: Sequence[Together], model: str, side: str) -> float | None:
    """Return the correlation of predicted and true changes over sets of all moments; None for fewer than four."""
    if len(sets) < 4:
        return None
    return float(np.corrcoef([getattr(s, model) for s in sets], [getattr(s, side) for s in sets])[0, 1])


def rank_correlation(moments: Iterable[Moment], learned: str, model: str, side: str = "in_sample") -> list[float]:
    """Return the same of their ranks, which sets that ruin a network do not govern."""
    return [
        float(spearmanr([getattr(s, model) for s in sets], [getattr(s, side) for s in sets]).statistic)
        for sets in _sets(moments, learned)
    ]


def _sets(moments: Iterable[Moment], learned: str) -> list[list[Together]]:
    """Return for each moment the sets whose θ was learned in one way, if there are enough to correlate."""
    found = [[s for s in m.sets if s.learned == learned] for m in moments]
    return [sets for sets in found if len(sets) > 3]


def _correlation_of_sets(learned: str, moments: Sequence[Moment]) -> float:
    return _mean(correlation(moments, learned, "joint"))


def kept(moments: Iterable[Moment], predicted: str, realised: str) -> float:
    """Return the realised decrease of the loss over the predicted one, both summed over all committed sets."""
    done = [m.committed for m in moments if m.committed.size]
    promised = sum(float(getattr(c, predicted)) for c in done)
    return sum(float(getattr(c, realised)) for c in done) / promised if promised else float("nan")


def _subject(moments: Sequence[Moment]) -> dict[str, Any]:
    singles = [s for m in moments for s in m.singles]
    return {
        "data": moments[0].data,
        "seeds": len({m.seed for m in moments}),
        "loss": {stage: _mean([m.loss for m in moments if m.stage == stage]) for stage in _stages(moments)},
        "singles": {
            "number": len(singles),
            "clear": sum(s.clear for s in singles),
            **{f"spearman_{side}": summary(spearman(moments, side)) for side in SIDES},
            **{f"slope_{side}": slope(singles, side) for side in SIDES},
            **{f"sign_errors_{side}": sign_errors(singles, side) for side in SIDES},
            **{f"top_1_regret_{side}": summary([regret(m, side) for m in moments]) for side in SIDES},
            "by_stage": {
                stage: _mean(spearman([m for m in moments if m.stage == stage], "in_sample"))
                for stage in _stages(moments)
            },
            "by_morphism": {name: _kind([s for s in singles if s.morphism == name]) for name in kinds(moments)},
        },
        "sets": {learned: _of_sets(moments, learned) for learned in LEARNED},
        "rules": {
            rule: {
                "size": _mean([r.size for r in found]),
                **{side: summary([getattr(r, side) for r in found]) for side in SIDES},
            }
            for rule, found in rules(moments).items()
        },
        "committed": _committed(moments),
    }


def _of_sets(moments: Sequence[Moment], learned: str) -> dict[str, Any]:
    sets = [s for m in moments for s in m.sets if s.learned == learned]
    return {
        "number": len(sets),
        **{
            model: {
                **{f"correlation_{side}": summary(correlation(moments, learned, model, side)) for side in SIDES},
                "pooled_correlation_in_sample": pooled_correlation(sets, model, "in_sample"),
                "rank_correlation_in_sample": summary(rank_correlation(moments, learned, model)),
                "mean_absolute_error": _mean([abs(getattr(s, model) - s.in_sample) for s in sets]),
                "chosen": _chosen([s for s in sets if s.chosen == model], model),
            }
            for model in MODELS
        },
        "random": {side: summary([getattr(s, side) for s in sets if s.chosen == "random"]) for side in SIDES},
    }


def sign_errors(singles: Sequence[Single], side: str) -> float:
    """Return the part of the clear candidates whose true change has the other sign."""
    clear = [s for s in singles if s.clear]
    return _mean([float(s.predicted * getattr(s, side) < 0) for s in clear])


def regret(moment: Moment, side: str) -> float:
    """Return by how much the candidate predicted best is worse than the one that is best, in nats."""
    best = min(moment.singles, key=lambda s: s.predicted)
    return float(getattr(best, side) - min(getattr(s, side) for s in moment.singles))


def kinds(moments: Iterable[Moment]) -> list[str]:
    """Return the names of the morphisms of which candidates were built."""
    return sorted({s.morphism for m in moments for s in m.singles})


def rules(moments: Iterable[Moment]) -> dict[str, list[Any]]:
    """Return what each rule chose, in the order of the rules."""
    found: dict[str, list[Any]] = {}
    for m in moments:
        for r in m.rules:
            found.setdefault(r.rule, []).append(r)
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return mean, smallest and largest."""
    return {"mean": _mean(values), "min": min(values), "max": max(values)} if values else {}


def _kind(singles: Sequence[Single]) -> dict[str, Any]:
    return {
        "number": len(singles),
        **{f"spearman_{side}": pooled_spearman(singles, side) for side in SIDES},
        **{f"slope_{side}": slope(singles, side) for side in SIDES},
    }


def _chosen(sets: Sequence[Together], model: str) -> dict[str, float]:
    """Return means over the sets a model chose."""
    if not sets:
        return {}
    return {
        "size": _mean([s.size for s in sets]),
        "predicted": _mean([getattr(s, model) for s in sets]),
        **{side: _mean([getattr(s, side) for s in sets]) for side in SIDES},
    }


def _committed(moments: Sequence[Moment]) -> dict[str, Any]:
    done = [m.committed for m in moments if m.committed.size]
    return {
        "steps": len(moments),
        "committed": len(done),
        "size": _mean([c.size for c in done]),
        "chosen": _mean([c.chosen for c in done]),
        **{name: _mean([getattr(c, name) for c in done]) for name in ("predicted", "in_sample", "expected")},
        **{name: _mean([getattr(c, name) for c in done]) for name in ("realised", "held_out")},
        "realised_over_expected": kept(moments, "expected", "realised"),
        "in_sample_over_predicted": kept(moments, "predicted", "in_sample"),
        "held_out_over_predicted": kept(moments, "predicted", "held_out"),
        "raised_the_loss_checked_on": sum(c.realised >= 0 for c in done),
        "raised_the_loss_never_seen": sum(c.held_out >= 0 for c in done),
    }


def _stages(moments: Iterable[Moment]) -> list[str]:
    return list(dict.fromkeys(m.stage for m in moments))


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else float("nan")
