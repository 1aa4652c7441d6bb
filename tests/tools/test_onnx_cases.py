"""The node cases of ONNX: those that are claimed are read, and none of them computes something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from tools.onnx_cases import Case, cases, is_claimed, judge

SOME = 12
"""Every how many of the claimed cases are judged here; `tools/bench.py onnx` judges all."""


@cache
def claimed() -> Sequence[Case]:
    return [case for case in cases() if is_claimed(case)]


def shares(found: Sequence[Case]) -> Counter[str]:
    verdicts = [judge(case) for case in found]
    wrong = [f"{v.name}: {v.why}" for v in verdicts if v.outcome == "wrong"]
    assert wrong == []
    return Counter(verdict.outcome for verdict in verdicts)


def test_some_claimed_cases_pass() -> None:
    found = claimed()[::SOME]
    counts = shares(found)
    assert counts["passed"] >= 0.95 * len(found) > 60


def test_a_wrong_answer_is_told() -> None:
    case = next(case for case in claimed() if case.name == "test_relu")
    ((inputs, outputs),) = case.data
    assert judge(case).outcome == "passed"
    assert judge(replace(case, data=[(inputs, [outputs[0] + 0.1])])).why == "with 1 inputs: off by 0.1"
    assert "instead of" in judge(replace(case, data=[(inputs, [outputs[0].astype(np.float64)])])).why
    assert "2 results" not in judge(replace(case, data=[(inputs, [*outputs, *outputs])])).outcome
