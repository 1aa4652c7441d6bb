"""The node cases of ONNX: those that are claimed are read, and none of them computes something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from tools.onnx_cases import Case, cases, is_claimed, judge

SOME = 12
"""Every how many of the claimed cases are judged where all would take too long."""


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


@pytest.mark.slow
def test_claimed_cases_pass() -> None:
    counts = shares(claimed())
    assert counts["passed"] >= 0.95 * len(claimed()) > 800


def test_a_wrong_answer_is_told() -> None:
    case = next(case for case in claimed() if case.name == "test_relu")
    ((inputs, outputs),) = case.data
    assert judge(case).outcome == "passed"
    assert judge(replace(case, data=[(inputs, [outputs[0] + 0.1])])).why == "with 1 inputs: off by 0.1"
    assert "instead of" in judge(replace(case, data=[(inputs, [outputs[0].astype(np.float64)])])).why
    assert "2 results" not in judge(replace(case, data=[(inputs, [*outputs, *outputs])])).outcome
