"""How well the loss after a rewrite, or a set of them, is predicted: five seeds, early, middle and late in training.

The networks are a residual network on CIFAR-10, a small GPT on text, and (two seeds) a residual network of dilated
convolutions on scikit-learn's digits. Candidates of every morphism are scored and built, alone and in sets, and the
true change of the loss is measured on the examples they were scored on (in sample) and on others (held out). Writes
the tables and plots of docs/scoring.md if CIFAR-10 is given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from tools.fidelity.figures import figures
from tools.fidelity.measure import Plan, measure
from tools.fidelity.pages import write_pages
from tools.fidelity.records import Moment, from_json, to_json
from tools.fidelity.subjects import subject

SUBJECTS: Mapping[str, Plan] = {"images": Plan(), "text": Plan(), "dilated": Plan(composites=10)}
"""What is measured on each network; the last is there for composites, and for kernels whose dilation can change."""

SEEDS: Mapping[str, int] = {"images": 5, "text": 5, "dilated": 2}
"""The number of trainings of each network."""

PROCESSES = 2


def run(data: str | None = None, records: str | None = None) -> Mapping[str, object]:
    """Return the figures.

    Args:
        data: spec of CIFAR-10, as `archir.load_data` takes it; scikit-learn's digits take its place if it is
            not given, and the figures say so.
        records: a folder to keep what was measured in; what is there already is not measured again.
    """
    folder = None if records is None else Path(records)
    jobs = [(name, seed, data, folder) for name in SUBJECTS for seed in range(SEEDS[name])]
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        found = [moment for moments in pool.map(_measure, jobs) for moment in moments]
    if data is not None:
        write_pages(found)
    return figures(found)


def _measure(job: tuple[str, int, str | None, Path | None]) -> Sequence[Moment]:
    """Return what is measured in one training, read from where it is kept if it is there."""
    name, seed, data, folder = job
    path = None if folder is None else folder / f"{name}-{seed}.json"
    if path is not None and path.exists():
        return from_json(json.loads(path.read_text()))
    torch.set_num_threads(1)
    found = list(measure(subject(name, seed=seed, data=data), seed, SUBJECTS[name]))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(to_json(found)))
    return found
