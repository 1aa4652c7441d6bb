from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from archir.api import score
from archir.cli import demo as demonstration
from archir.cli import growing, scoring
from archir.cli.controls import initialise, widen_uniformly
from archir.cost import cost
from archir.emit.check import tensors_in
from archir.errors import EmitError, FileError, GrowError
from archir.growing import engine, growth
from archir.growing.batches import Batches
from archir.growing.data import load_data
from archir.growing.engine import Run, grow_graph
from archir.growing.lock import lock_run
from archir.growing.run import Event, open_run
from archir.ir.graph import Graph
from archir.ir.load import load
from archir.ir.parse import parse_graph
from archir.scoring.options import ScoreOptions
from archir.scoring.score import score as score_candidates
from archir.scoring.scores import Scores
from frontends.pytorch import trace
from passes.split import Split
from tests.cli.run import archir, refused, write_models

CONFIG = """
output = "run"
[model]
factory = "models.py:digits"
[data]
source = "digits"
validation = 0.25
limit = 800
[budget]
parameters = 700
[optimiser]
rate = 0.05
[training]
steps = 60
batch_size = 32
evaluate_every = 30
[growth]
growth_steps = 1
first_growth = 0.5
last_growth = 0.5
learn_steps = 5
recalibrate_batches = 2
"""

FILES = [
    "config.toml",
    "fingerprint.json",
    "growth.png",
    "history.jsonl",
    "lock",
    "net.onnx",
    "net.py",
    "net.safetensors",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_models(tmp_path)
    (tmp_path / "run.toml").write_text(CONFIG)
    return tmp_path


def _change(folder: Path, old: str, new: str) -> Path:
    assert old in CONFIG
    file = folder / "run.toml"
    file.write_text(CONFIG.replace(old, new))
    return file


def _files(run: Path) -> list[str]:
    return sorted(p.name for p in run.iterdir() if not p.name.startswith(("step-", "__pycache__")))


@pytest.mark.slow
def test_grow_carries_out_a_run(folder: Path) -> None:
    done = archir("grow", folder / "run.toml")
    assert done.code == 0, done
    for text in ("seed", "growth 1", "end", "test data, after 60 steps", "ONNX"):
        assert text in done.out
    assert "growth step 1 at step 30: 460 -> " in done.err
    run = folder / "run"
    assert _files(run) == FILES
    events = open_run(run).history()
    assert [e["event"] for e in events[-3:]] == ["finished", "tested", "emitted"]
    (grown,) = (e for e in events if e["event"] == "grown")
    assert 460 < grown["parameters"] <= 700

    # What was emitted works without archir, and is the network of the last checkpoint.
    final = load(run / "step-0060.archir")
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        wanted = tensors_in(final.module().eval()(x))[0].numpy()
    np.save(folder / "x.npy", x.numpy())
    code = (
        "import sys, net, numpy as np, torch; found = net.load().eval()(torch.from_numpy(np.load(sys.argv[1])));"
        "np.save(sys.argv[2], found.detach().numpy()); print('archir' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(folder / "x.npy"), str(folder / "y.npy")]
    said = subprocess.run(command, cwd=run, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"
    np.testing.assert_allclose(np.load(folder / "y.npy"), wanted, atol=1e-6)
    session = onnxruntime.InferenceSession(run / "net.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, wanted, atol=1e-5)

    # The report tells the same again.
    told = archir("report", run)
    assert told.out.splitlines()[:4] == done.out.splitlines()[1:5]
    assert re.split(r"\s{2,}", told.out.splitlines()[0])[3:6] == ["parameters", "FLOPs", "predicted"]
    table = archir("report", run, "--markdown").out.splitlines()
    assert table[0].startswith("| step | what |") and table[1].startswith("| ---: | :--- |")
    assert json.loads(archir("report", run, "--json").out)["growth"][0]["parameters"] == grown["parameters"]
    assert archir("report", run, "--plot", folder / "again.png").code == 0
    assert (folder / "again.png").is_file()

    # A run is not overwritten; a finished one may be finished again.
    assert "there is a run in" in refused("grow", folder / "run.toml")
    again = archir("grow", folder / "run.toml", "--resume", "--quiet")
    assert again.code == 0 and again.err == ""
    assert again.out.splitlines()[:3] == done.out.splitlines()[:3]
    _change(folder, "steps = 60", "steps = 90")
    assert "another configuration" in refused("grow", folder / "run.toml", "--resume")


def test_tables_tell_of_peak_bytes_and_latency_where_they_are_bounded_or_priced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a clock that takes a microsecond for each parameter."""

    def measure(module: nn.Module, _: object) -> float:
        return 1e-6 * sum(p.numel() for p in module.parameters())

    for place in (engine, growth, growing):
        monkeypatch.setattr(place, "measure_latency", measure)
    more = "parameters = 700\npeak_bytes = 10_000\n[prices]\nlatency = 1e-6"
    assert archir("grow", _change(folder, "parameters = 700", more), "--quiet", "--controls").code == 0
    (grown,) = (e for e in open_run(folder / "run").history() if e["event"] == "grown")
    assert grown["latency"] == 1e-6 * grown["parameters"]
    lines = [line.strip("| ").split(" | ") for line in archir("report", folder / "run", "--markdown").out.splitlines()]
    assert lines[0][3:7] == ["parameters", "FLOPs", "peak bytes", "latency"]
    after = [f"{grown['peak_bytes']:,}", f"{grown['parameters'] / 1000:.3f} ms"]
    assert [row[5:7] for row in lines[2:5]] == [["64", "0.460 ms"], after, after]
    tests = lines[6:]
    assert tests[0][3:5] == ["peak bytes", "latency"]
    assert [row[0] for row in tests[2:]] == ["seed, not grown", "uniformly widened", "grown"]
    assert tests[2][3:5] == ["64", "0.460 ms"] and tests[4][3:5] == after


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("parameters = 700", "parameters = 300", "the budget is below the size of the seed"),
        ('source = "digits"', 'source = "digitz"', "did you mean digits?"),
        ('source = "digits"', 'source = "absent.npz"', "absent.npz"),
        ("models.py:digits", "models.py:narrow", "mat1 and mat2 shapes cannot be multiplied"),
        ("models.py:digits", "models.py:mlp", "outputs [32, 1, 8, 4] do not fit class numbers [32]"),
        ("models.py:digits", "models.py:Branch", "models.py:21: if x.sum() > 0:"),
        ("models.py:digits", "models.py:digit", "did you mean digits?"),
        ('output = "run"', 'output = "run"\nloss = "cross_entropi"', "did you mean cross_entropy?"),
        ('output = "run"', 'output = "run"\nloss = "models.py:infinite"', "the loss"),
        ('output = "run"', 'output = "run"\nloss = "bce_with_logits"', "bce_with_logits"),
        ("learn_steps = 5", 'passes = ["splitt"]', "did you mean split"),
        ("learn_steps = 5", "learn_stepss = 5", "did you mean learn_steps or"),
    ],
)
def test_grow_tells_what_is_wrong_and_leaves_nothing(folder: Path, old: str, new: str, expected: str) -> None:
    assert expected in refused("grow", _change(folder, old, new))
    assert not (folder / "run").exists()


def test_grow_needs_its_files(folder: Path) -> None:
    assert "there is no file" in refused("grow", folder / "absent.toml")
    assert "there is no run in" in refused("grow", folder / "run.toml", "--resume")
    (folder / "broken.toml").write_text("[")
    assert "is not TOML" in refused("grow", folder / "broken.toml")


def test_losses_that_diverge_end_the_run_with_one_error(folder: Path) -> None:
    error = refused("grow", _change(folder, "rate = 0.05", "rate = 1e30"), "--quiet")
    assert "at step" in error and "lower the learning rate" in error
    assert _files(folder / "run") == ["config.toml", "fingerprint.json", "history.jsonl", "lock"]


def test_an_interrupted_run_goes_on_to_the_same_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _change(folder, "batch_size = 32", "batch_size = 32\ncheckpoint_every = 20")
    assert archir("grow", config, "--out", folder / "whole").code == 0

    def interrupted(graph: Graph, **options: Any) -> Run:
        told = options["on_event"]

        def on_event(event: Event) -> None:
            told(event)
            if event["event"] == "grown":
                raise KeyboardInterrupt

        return grow_graph(graph, **{**options, "on_event": on_event})

    monkeypatch.setattr(growing, "grow_graph", interrupted)
    done = archir("grow", config, "--out", folder / "cut")
    assert done.code == 130 and "goes on with --resume" in done.err
    monkeypatch.setattr(growing, "grow_graph", grow_graph)
    done = archir("grow", config, "--out", folder / "cut", "--resume")
    assert done.code == 0 and "going on from step 20" in done.err
    whole, cut = (load(folder / name / "step-0060.archir") for name in ("whole", "cut"))
    assert str(whole) == str(cut)
    assert all(torch.equal(whole.tensor(name), cut.tensor(name)) for name in whole.by_name)


def test_grow_takes_other_data_and_another_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(200, 1, 8, 8)).astype(np.float32), generator.integers(10, size=200)
    np.savez("other.npz", x=x, y=y)
    _change(folder, "limit = 800\n", "")
    done = archir("grow", "run.toml", "--data", "other.npz", "--out", "elsewhere", "--quiet", "--controls")
    assert done.code == 0, done
    for name in ("seed, not grown", "uniformly widened", "grown"):
        assert name in done.out and name in archir("report", "elsewhere").out
    assert (folder / "elsewhere" / "net.py").is_file() and not (folder / "run").exists()
    assert open_run(folder / "elsewhere").config.startswith("# with --data other.npz\n")


def test_the_report_is_there_before_the_network_is_emitted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing is lost where that fails; and nobody else writes into the directory until it is done."""
    run = folder / "run"
    locked: list[str] = []

    def fails(*_: object, **__: object) -> None:
        with pytest.raises(FileError, match="is in use") as caught, lock_run(run):
            pass
        locked.append(caught.value.why)
        raise EmitError("no way to say it")

    monkeypatch.setattr(growing, "to_onnx", fails)
    done = archir("grow", folder / "run.toml", "--quiet")
    assert done.code == 1 and "no way to say it" in done.err
    assert len(locked) == 1 and f"process {os.getpid()} " in locked[0]
    for text in ("growth 1", "test data, after 60 steps"):
        assert text in done.out
    assert (run / "growth.png").is_file() and (run / "net.py").is_file()
    assert [e["event"] for e in open_run(run).history()][-2:] == ["finished", "tested"]
    assert archir("report", run).out.splitlines()[0].split() == done.out.splitlines()[1].split()
    with lock_run(run):
        pass


def test_report_needs_a_run(tmp_path: Path) -> None:
    assert "there is no run in" in refused("report", tmp_path)


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


@pytest.mark.slow
def test_demo_runs_from_end_to_end_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = demonstration.TEXT
    for old, new in (("steps = 3000", "steps = 40"), ("learn_steps = 60", "learn_steps = 3")):
        assert old in text
        text = text.replace(old, new)
    text = text.replace("growth_steps = 4", "growth_steps = 1").replace("warmup = 30", "warmup = 4")
    for _ in range(2):
        demonstration.demo(tmp_path / "demo", quiet=True, text=text)
        out = capsys.readouterr().out
        for part in ("seed, not grown", "uniformly widened", "grown", "ONNX", "seconds in all"):
            assert part in out
        assert _files(tmp_path / "demo") == FILES
    assert [e["event"] for e in open_run(tmp_path / "demo").history()].count("started") == 1


def test_demo_leaves_other_runs_alone(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "config.toml").write_text("seed = 1\n")
    assert "there is a run in" in refused("demo", "--out", folder / "run")
    assert (folder / "run" / "config.toml").read_text() == "seed = 1\n"


def test_uniform_control_is_as_large_as_it_may_be() -> None:
    graph = trace(demonstration.DigitsNet(width=3), (torch.randn(2, 1, 8, 8),))
    for limit in (graph.parameter_count, 1000, 4000):
        wide = widen_uniformly(graph, limit)
        assert 0.9 * limit < wide.parameter_count <= limit
    assert cost(widen_uniformly(graph, graph.parameter_count)) == cost(graph)
    with pytest.raises(GrowError, match="more than 10"):
        widen_uniformly(graph, 10)


def test_uniform_control_is_initialised_like_a_new_network() -> None:
    torch.manual_seed(0)
    graph = trace(demonstration.DigitsNet(width=3), (torch.randn(2, 1, 8, 8),))
    wide = initialise(widen_uniformly(graph, 20_000), seed=0)
    kernel = wide.tensor("block.conv1.weight")
    bound = (kernel[0].numel()) ** -0.5
    assert kernel.abs().max() <= bound
    assert kernel.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert torch.equal(wide.tensor("norm.weight"), torch.ones(kernel.shape[1]))
    assert torch.equal(initialise(wide, seed=0).tensor("head.weight"), wide.tensor("head.weight"))
