"""Which models of both zoos are emitted as source and as ONNX, each verified on two batch sizes.

Each model has a process of its own and 300 seconds, as each of its forms has if that one crashes or hangs; what does is
told as such. Models of
packages that are not installed are left out; where none is, the columns `source` and `ONNX` of the tables of README.md
and docs/coverage.md are written anew, and nothing else of them. With `--records` what was found is kept, a file a
model, and found there when the command is given again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from tests.models.wide.catalog import FAMILIES
from tests.models.wide.packages import installed
from tests.models.zoo import ZOO
from tools.coverage import write_emission
from tools.emission import FORMS, Verdict, emit


def run(records: str | None = None) -> Mapping[str, object]:
    """Return the figures, and write the columns.

    Args:
        records: a folder to keep verdicts in; what is there already is not found out again.
    """
    folder = None if records is None else Path(records)
    families = {"own": ZOO, **{f: models for f, (package, models) in FAMILIES.items() if installed(package)}}
    verdicts: dict[str, Mapping[str, Verdict]] = {}
    for name in (f"{family}/{model}" for family, models in families.items() for model in models):
        verdicts[name] = _recorded(folder, name)
        told = ", ".join(f"{form}: {verdict.cell}" for form, verdict in verdicts[name].items())
        print(f"{name}: {told}", file=sys.stderr, flush=True)
    if all(installed(package) for package, _ in FAMILIES.values()):
        write_emission({name: {form: v.cell for form, v in found.items()} for name, found in verdicts.items()})
    return {
        "number_of_models": len(verdicts),
        **{form.lower(): sum(not found[form].reason for found in verdicts.values()) for form in FORMS},
        "models": {name: {form: asdict(v) for form, v in found.items()} for name, found in verdicts.items()},
    }


def _recorded(folder: Path | None, name: str) -> Mapping[str, Verdict]:
    if folder is None:
        return emit(name)
    file = folder / f"{name.replace('/', '-')}.json"
    if file.exists():
        return {form: Verdict(**verdict) for form, verdict in json.loads(file.read_text()).items()}
    verdicts = emit(name)
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({form: asdict(verdict) for form, verdict in verdicts.items()}))
    return verdicts
