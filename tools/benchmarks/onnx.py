"""Which node cases of ONNX are read, of the operators archir claims to read, and whether they compute what they should.

What counts as claimed and as passed is said in `tools/onnx_cases.py`. `failures` are wrong answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from frontends.onnx.operators.table import OPERATORS
from frontends.onnx.read import OPSETS
from tools.onnx_cases import cases, is_claimed, judge


def run(only: str | None = None) -> Mapping[str, object]:
    """Return the figures.

    Args:
        only: parts of the names of cases, with commas between.
    """
    parts = (only or "").split(",")
    every = [case for case in cases() if any(part in case.name for part in parts)]
    verdicts = [judge(case) for case in every if is_claimed(case)]
    counts = Counter(verdict.outcome for verdict in verdicts)
    return {
        "operators": len(OPERATORS),
        "opsets": [OPSETS.start, OPSETS.stop - 1],
        "cases": len(every),
        "claimed": len(verdicts),
        "passed": counts["passed"],
        "refused": counts["refused"],
        "wrong": counts["wrong"],
        "failures": counts["wrong"],
        "not_passed": {v.name: f"{v.outcome}: {v.why}" for v in verdicts if v.outcome != "passed"},
    }
