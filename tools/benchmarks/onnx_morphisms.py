"""Networks go from torch to ONNX to archir, are rewritten at random, and are written as source and as ONNX again.

`failures` are rewrites that change what they say they keep, and exports that compute something else.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tools.onnx_morphisms import MODELS, Trial, trial

CHAIN = 20
"""How many rewrites there are before both exports."""


def run(trials: int = 1000) -> Mapping[str, object]:
    """Return the figures.

    Args:
        trials: how many rewrites to carry out.
    """
    done: list[Trial] = []
    while sum(t.rewrites for t in done) < trials:
        seed = len(done)
        left = trials - sum(t.rewrites for t in done)
        done.append(trial(MODELS[seed % len(MODELS)], seed, min(CHAIN, left)))
        print(f"{done[-1].model}: {done[-1].rewrites} rewrites, {len(done[-1].problems)} problems", file=sys.stderr)
    problems = {f"{t.model}, seed {t.seed}": t.problems for t in done if t.problems}
    return {
        "rewrites": sum(t.rewrites for t in done),
        "exports": 2 * len(done),
        "failures": len(problems),
        "problems": problems,
    }
