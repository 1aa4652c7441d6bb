"""Everything a run does stays on one device, and what comes of it is what the CPU makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from archir.growing.latency import ROUNDS, WARM_UP

GROWN = (
    "one by one",
    "in grades",
    "expanded",
    "retrained",
    "statistics of the batch",
    "float16",
    "attention",
    "compressed",
    "sampled",
)
SCORED = ("gradmax", "splitting-index")
"""Rules by which nothing is chosen here."""

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    """What all runs did, in a process of their own: the device is there for all of a process."""
    command = [sys.executable, "-W", "error", "-m", "tests.growing.pretend_runs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {one.pop("name"): one for one in found}


def test_devices_that_are_mixed_are_told_of(outcomes: dict[str, dict[str, Any]]) -> None:
    found = outcomes["mixed"]
    assert [found[name] for name in ("add", "cat", "put")] == [True, True, True]
    assert [found[name] for name in ("number", "index")] == ["pretend:0", "pretend:0"]


def test_latency_is_that_until_the_device_is_done(outcomes: dict[str, dict[str, Any]]) -> None:
    found = outcomes["mixed"]
    assert found["latency"] and found["waits"] == WARM_UP + ROUNDS and found["places"] == ["pretend:0"]


@pytest.mark.parametrize("name", GROWN + SCORED)
def test_a_run_on_an_accelerator_is_that_on_the_cpu(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    found = outcomes[name]
    assert found["difference"] < 1e-5 and found["device"] == "cpu"
    assert found["operators"] > 1000, "next to nothing was done there"
    assert ("grown" in found["events"]) == (name in GROWN)


@pytest.mark.parametrize(("name", "families"), [("mlp", 20), ("gpt", 60)])
def test_every_kind_of_rewrite_stays_where_the_network_is(
    name: str, families: int, outcomes: dict[str, dict[str, Any]]
) -> None:
    found = outcomes[f"rewritten {name}"]
    assert found["families"] > families and found["difference"] < 1e-4


@pytest.mark.parametrize("name", ["adam", "rprop", "adafactor"])
def test_a_loop_goes_on_where_the_network_is(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    assert outcomes[f"looped {name}"]["difference"] < 1e-5


def test_a_run_goes_on_on_another_device(outcomes: dict[str, dict[str, Any]]) -> None:
    assert outcomes["resumed"] == {"difference": 0.0, "kept": ["step-0003.archir"], "controls": 2}
