"""Runs a benchmark by name: `python tools/bench.py cost --json -`.

A benchmark is a file of `tools/benchmarks` with a function `run` that returns figures; its arguments are options here.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHMARKS = tuple(sorted(p.stem for p in HERE.joinpath("benchmarks").glob("*.py")))

OPTIONS = ("data", "records", "replay", "only", "trials", "steps", "part")


def main() -> int:
    """Run one benchmark and write its figures as JSON; fail if they count `failures`."""
    parser = argparse.ArgumentParser(description="run a benchmark")
    parser.add_argument("name", choices=BENCHMARKS, type=lambda name: name.replace("-", "_"))
    parser.add_argument("--json", default="-", metavar="PATH", help="where to write the figures; - for standard output")
    parser.add_argument("--data", metavar="SPEC", help="CIFAR-10, as `archir grow --data` takes it")
    parser.add_argument("--records", metavar="FOLDER", help="where to keep what was measured, and to go on from")
    parser.add_argument("--replay", metavar="RECORD", help="run one record again, and nothing else")
    parser.add_argument("--only", metavar="NAMES", help="parts to run, with commas between")
    parser.add_argument("--trials", type=int, metavar="COUNT", help="trials of each part")
    parser.add_argument("--steps", type=int, metavar="COUNT", help="optimiser steps of a training")
    parser.add_argument("--part", type=float, metavar="PART", help="part of the width of each network")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))
    run = importlib.import_module(f"tools.benchmarks.{options.name}").run
    given = {name: value for name in OPTIONS if (value := getattr(options, name)) is not None}
    if refused := given.keys() - inspect.signature(run).parameters.keys():
        parser.error(f"{options.name} takes no --{min(refused)}")
    figures = dict(run(**given))
    text = json.dumps(figures, indent=2) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
    else:
        Path(options.json).write_text(text)
    return 1 if figures.get("failures") else 0


if __name__ == "__main__":
    sys.exit(main())
