"""Runs a benchmark by name: `python tools/bench.py cost --json -`.

A benchmark is a file of `tools/benchmarks` with a function `run() -> Mapping[str, object]`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
BENCHMARKS = tuple(sorted(p.stem for p in HERE.joinpath("benchmarks").glob("*.py")))


def main() -> int:
    """Run one benchmark and write its figures as JSON."""
    parser = argparse.ArgumentParser(description="run a benchmark")
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--json", default="-", metavar="PATH", help="where to write the figures; - for standard output")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))
    figures: Mapping[str, object] = importlib.import_module(f"tools.benchmarks.{options.name}").run()
    text = json.dumps(dict(figures), indent=2) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
    else:
        Path(options.json).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
