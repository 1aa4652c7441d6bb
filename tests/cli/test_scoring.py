"""The command `score`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from archir.api import score
from archir.cli import scoring
from archir.cost import cost
from archir.growing.batches import Batches
from archir.growing.data import load_data
from archir.ir.load import load
from archir.ir.parse import parse_graph
from archir.scoring.options import ScoreOptions
from archir.scoring.score import score as score_candidates
from archir.scoring.scores import Scores
from passes.split import Split
from tests.cli.run import archir, refused


def test_score_lists_the_best_candidates(folder: Path) -> None:
    net = folder / "net.archir"
    assert archir("trace", f"{folder / 'models.py'}:digits", "--input", "2,1,8,8", "-o", net).code == 0
    options = ("--data", "digits", "--examples", "64", "--learn-steps", "3")
    table = archir("score", net, *options, "--top", "4").out
    assert "12 candidates, scored on 64 examples" in table and len(table.splitlines()) == 6
    found = json.loads(archir("score", net, *options, "--json").out)
    predicted = [s["predicted"] for s in found["scores"]]
    assert found["candidates"] == 12 and predicted == sorted(predicted)
    assert archir("apply", net, found["scores"][0]["spec"], "--dry-run").code == 0
    for row in found["scores"]:
        assert row["first_order"] + row["second_order"] == pytest.approx(row["predicted"], abs=1e-12)
        gain = -1000 * row["predicted"] / row["parameters"] if row["parameters"] > 0 else None
        assert row["gain_per_thousand_parameters"] == gain


def test_score_saves_all_scores_and_annotates_the_graph(folder: Path) -> None:
    net = folder / "net.archir"
    assert archir("trace", f"{folder / 'models.py'}:digits", "--input", "2,1,8,8", "-o", net).code == 0
    options = ("--data", "digits", "--examples", "64", "--learn-steps", "3", "--top", "2")
    files = ("--save", folder / "scores.json", "--annotate", folder / "net.txt")
    assert len(archir("score", net, *options, *files).out.splitlines()) == 4
    found = json.loads((folder / "scores.json").read_text())
    best = found["scores"][0]
    text = (folder / "net.txt").read_text()
    assert len(found["scores"]) == 12
    (line,) = [line for line in text.splitlines() if "# " in line]
    assert line.endswith(f"# {best['spec']}: {best['predicted']:+.5f} ± {best['stderr']:.5f}") and "w0=6" in line
    assert "cannot write" in refused("score", net, *options, "--annotate", folder / "missing" / "net.txt")
    bare = "\n".join(part.partition("  # ")[0] for part in text.splitlines())
    assert str(parse_graph(text.replace("w0=6", "6").replace("w0", "6"))) == str(load(net))
    assert bare.rstrip() == archir("show", net, "--widths").out.rstrip()


def test_score_refines_as_many_candidates_as_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, chunks = folder / "net.archir", []

    def spied(*arguments: Any, **given: Any) -> Scores:
        chunks.append(given["options"].chunk)
        return score_candidates(*arguments, **given)

    monkeypatch.setattr(scoring, "score_candidates", spied)
    assert archir("trace", f"{folder / 'models.py'}:digits", "--input", "2,1,8,8", "-o", net).code == 0
    options = ("--data", "digits", "--examples", "64", "--learn-steps", "3", "--json")
    every = json.loads(archir("score", net, *options).out)["scores"]
    some = json.loads(archir("score", net, *options, "--refine", "7", "--chunk", "2").out)["scores"]
    assert [sum(s["refined"] for s in rows) for rows in (every, some)] == [12, 7] and chunks == [None, 2]
    for option in (("--refine", "8"), ("--chunk", "2"), ("--set", "2")):
        done = archir("score", net, *options, *option, "--rule", "random")
        assert done.code == 2 and "a rule gives an order" in done.err


def test_score_chooses_a_set_and_learns_it_together(folder: Path) -> None:
    net = folder / "net.archir"
    assert archir("trace", f"{folder / 'models.py'}:digits", "--input", "2,1,8,8", "-o", net).code == 0
    options = ("--data", "digits", "--examples", "64", "--learn-steps", "5", "--passes", "split")
    more = ("--refine", "4", "--top", "1", "--set", "3", "--save", folder / "scores.json")
    printed = json.loads(archir("score", net, *options, *more, "--json").out)
    saved = json.loads((folder / "scores.json").read_text())
    assert len(printed["scores"]) == 1 and printed["set"] == saved["set"]

    graph, data = load(net), load_data("digits", seed=0)
    batches, learn = Batches(data.validation.take(slice(0, 64)), 128), Batches(data.train, 128, 0)
    scores = score(graph, batches, morphisms=(Split(),), learn=learn, steps=5, refine=4)
    path, found = scores.choose(3), printed["set"]
    assert [m["spec"] for m in found["members"]] == [s.spec for s in path] and 1 < len(path) <= 3
    assert [m["parameters"] for m in found["members"]] == [s.candidate.cost.parameters for s in path]
    together = scores.together(path).learned(learn, ScoreOptions(steps=5))
    grown = cost(scores.apply(path)) - cost(graph)
    assert all(found[name] == getattr(grown, name) for name in ("parameters", "flops", "peak_bytes"))
    assert found["additive"] == pytest.approx(sum(m["predicted"] for m in found["members"]), rel=1e-6)
    assert found["joint"] == pytest.approx(scores.joint(path), rel=1e-6)
    assert found["linearised_alone"] == pytest.approx(scores.linearised(path), rel=1e-4)
    assert found["linearised_together"] == pytest.approx(together.linearised(batches), rel=1e-6)
    assert found["linearised_together"] != pytest.approx(found["linearised_alone"], rel=1e-3)

    lines = archir("score", net, *options, *more).out.splitlines()
    assert lines[3] == "" and lines[4].startswith(f"a set of {len(path)}") and lines[5].startswith("member")
    assert [line.split("  ")[0] for line in lines[6:-2]] == [s.spec for s in path]
    told = [f"{found[name]:+.5f}" for name in ("additive", "joint", "linearised_alone", "linearised_together")]
    assert re.findall(r"[+-]\d\.\d{5}", lines[-2]) == told
    assert lines[-1] == f"Δ parameters {grown.parameters:+,}, Δ FLOPs {grown.flops:+,}"


def test_score_chooses_no_set_unless_asked_for_and_none_that_does_harm(folder: Path) -> None:
    net = folder / "net.archir"
    assert archir("trace", f"{folder / 'models.py'}:digits", "--input", "2,1,8,8", "-o", net).code == 0
    options = ("--data", "digits", "--examples", "64", "--learn-steps", "3", "--passes", "remove-block")
    assert json.loads(archir("score", net, *options, "--json").out)["set"] is None
    empty = json.loads(archir("score", net, *options, "--json", "--set", "2").out)["set"]
    assert empty.pop("members") == [] and set(empty.values()) == {0}
    assert archir("score", net, *options, "--set", "2").out.splitlines()[-1].startswith("no set: ")


def test_score_lists_the_candidates_by_another_rule(folder: Path) -> None:
    net = folder / "net.archir"
    assert archir("trace", f"{folder / 'models.py'}:digits", "--input", "2,1,8,8", "-o", net).code == 0
    options = ("--data", "digits", "--examples", "64", "--learn-steps", "3", "--rule")
    table = archir("score", net, *options, "taylor", "--top", "4").out
    assert "6 of 12 candidates, prune: " in table and len(table.splitlines()) == 6
    found = json.loads(archir("score", net, *options, "brute-force", "--json").out)
    assert found["rule"] == "brute-force" and found["candidates"] == len(found["ranked"]) == 12
    assert all(row["order"] == row["predicted"] for row in found["ranked"])
    assert "did you mean random?" in refused("score", net, *options, "randon")
    assert archir("score", net, *options, "random", "--save", folder / "scores.json").code == 2


def test_score_takes_the_statistics_of_each_batch(folder: Path) -> None:
    net = folder / "net.archir"
    assert archir("trace", f"{folder / 'models.py'}:normed", "--input", "2,1,8,8", "-o", net).code == 0
    options = ("--data", "digits", "--examples", "64", "--learn-steps", "3", "--json")
    running = json.loads(archir("score", net, *options).out)["scores"]
    one = json.loads(archir("score", net, *options, "--batch-statistics").out)["scores"]
    several = json.loads(archir("score", net, *options, "--batch-statistics", "--batch-size", "16").out)["scores"]
    assert len(running) == len(one) == len(several) == 8
    assert all(row["stderr"] > 0 for row in (*running, *several)) and all(row["stderr"] is None for row in one)
    assert one[0]["predicted"] != running[0]["predicted"]
    assert archir("score", net, *options, "--batch-statistics", "--rule", "random").code == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--data", "digits", "--loss", "cross_entropi"), "did you mean cross_entropy?"),
        (("--data", "digitz"), "did you mean digits?"),
        (("--data", "digits", "--passes", "splitt"), "did you mean split"),
    ],
)
def test_score_tells_what_is_wrong(folder: Path, options: tuple[str, ...], expected: str) -> None:
    net = folder / "net.archir"
    assert archir("trace", f"{folder / 'models.py'}:digits", "--input", "2,1,8,8", "-o", net).code == 0
    assert expected in refused("score", net, *options)


def test_score_rejects_inputs_of_another_shape(folder: Path) -> None:
    net = folder / "net.archir"
    assert archir("trace", f"{folder / 'models.py'}:mlp", "--input", "2,8", "-o", net).code == 0
    refused("score", net, "--data", "digits")
