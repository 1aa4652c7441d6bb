"""The study of growth: its tasks, how a budget is allocated, and its records."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from archir.axes.infer import infer_widths
from archir.cli.canvases import CLASSES
from archir.cost import cost
from archir.errors import GrowError
from archir.growing.batches import Batches
from archir.growing.checks import held_out
from archir.growing.data import load_data
from archir.growing.examples import Examples
from archir.growing.expansion import widen_uniformly
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.training import Metrics
from archir.scoring.budget import Budget
from archir.scoring.losses import LOSSES
from archir.scoring.objective import make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.score import score
from passes.prune import Prune
from tests.growing.static_training import train_static as plainly
from tools import rival_pruning
from tools.benchmarks import growth as benchmark
from tools.benchmarks.growth import run
from tools.growth import arms, images, runs
from tools.growth.allocations import LEAST, budget, drawn, uniform
from tools.growth.arms import find_arm
from tools.growth.criteria import CRITERIA, predictions, wide_network
from tools.growth.figures import figures
from tools.growth.records import Key, Record, Records
from tools.growth.segmentation import SIDE
from tools.growth.subjects import find_task
from tools.growth.table import NOISE, made, perceptron
from tools.growth.tasks import Task
from tools.growth.text import text
from tools.growth.training import Outcome, Point, train_static


@pytest.fixture(scope="module")
def toy() -> Task:
    """Return a task that takes no time."""
    return Task(
        "toy",
        load_data("digits"),
        lambda times: nn.Sequential(nn.Flatten(), *perceptron((64, 6 * times, 4 * times, 10))),
        LOSSES["cross_entropy"],
        "accuracy",
        1500,
        GrowOptions(steps=20, batch_size=32, warmup=2, clip=1.0, optimiser=OptimiserOptions("adamw", 1e-2, 0.01)),
        (1e-3, 1e-2, 3e-2),
    )


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the spec of a few images like those of CIFAR-10."""
    monkeypatch.setattr(images, "EXAMPLES", 40)
    noise = np.random.default_rng(0)
    for part in ("train", "test"):
        x = noise.integers(256, size=(40, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{part}.npz", x=x, y=np.arange(40) % 10)
    return f"train={tmp_path}/train.npz, test={tmp_path}/test.npz"


@pytest.mark.slow
def test_the_uniform_residual_network_is_what_widening_the_seed_gives(cifar: str) -> None:
    task = find_task("residual", cifar)
    sizes = uniform(task)
    assert list(sizes.values()) == [6, 9, 9, 14, 15, 17, 17]
    widened = widen_uniformly(task.network(task.seed_sizes, 0), Budget(parameters=task.parameters))
    assert {w.name: w.size for w in infer_widths(widened.graph)} == sizes
    assert budget(task).limits == {"parameters": 14_798, "flops": 557_364}
    assert cost(task.network(sizes, 0)) == task.cost(sizes)
    assert task.dataset.train.take(slice(1)).inputs.shape == (1, 3, 16, 16)  # type: ignore[union-attr]
    assert (len(task.dataset.train), len(task.dataset.validation), len(task.dataset.test)) == (32, 8, 40)


def test_the_plain_network_has_a_width_for_each_convolution(cifar: str) -> None:
    assert list(find_task("vgg", cifar).seed_sizes.values()) == [3, 4, 6, 7, 9, 10]


@pytest.mark.parametrize("name", ["table", *(pytest.param(name, marks=pytest.mark.slow) for name in ("unet", "text"))])
def test_a_random_allocation_spends_the_budget(name: str) -> None:
    task = find_task(name)
    limits = budget(task)
    assert limits.allows(task.cost(task.seed_sizes))
    assert limits.flops is not None
    seen = [drawn(task, number) for number in range(5)]
    for sizes in seen:
        found = cost(task.network(sizes, 0))
        assert limits.allows(found) and found.flops >= LEAST * limits.flops
        assert found == task.cost(sizes)
    assert len({tuple(sizes.values()) for sizes in seen}) == 5
    drawn.cache_clear()
    assert drawn(task, 3) == seen[3]


@pytest.mark.slow
def test_heads_are_not_added_by_hand() -> None:
    task = text()
    sizes = uniform(task)
    assert all(sizes[name] == task.seed_sizes[name] == 2 for name in task.held)
    assert min(sizes[name] / size for name, size in task.seed_sizes.items() if name not in task.held) >= 2


def test_networks_are_drawn_afresh(toy: Task) -> None:
    one, same, other = (toy.network(toy.seed_sizes, seed) for seed in (0, 0, 1))
    for name, node in one.by_name.items():
        mine = one.tensors[node.id]
        assert torch.equal(mine, same.tensors[same.by_name[name].id])
        assert torch.equal(mine, other.tensors[other.by_name[name].id]) is name.endswith("bias")
        bound = 0.0 if name.endswith("bias") else mine[0].numel() ** -0.5
        assert 0.8 * bound <= mine.abs().max() <= bound


def test_static_training_is_that_of_archir(toy: Task) -> None:
    graph = toy.network(uniform(toy), 3)
    found = train_static(toy, graph, 3, 1e-2)
    wanted = plainly(graph, toy.dataset.train, toy.loss, toy.training(3, 1e-2)).state_dict()
    for name, tensor in found.module.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=0)
    assert [p.step for p in found.curve] == [1, 2, 5, 10, 15, 20]
    batch = len(toy.dataset.train) / -(-len(toy.dataset.train) // 32)
    assert found.training_flops == pytest.approx(3 * cost(graph).flops * batch * 20, rel=0.02)
    assert found.curve[-1].training_flops == found.training_flops


def test_what_is_recorded_is_not_made_again(toy: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, float]] = []

    def arm(task: Task, seed: int, rate: float) -> Outcome:
        made.append((seed, rate))
        if seed == 1:
            raise GrowError("it did not work")
        return find_arm("seed")(task, seed, rate)

    monkeypatch.setattr(arms, "ARMS", {**arms.ARMS, "counted": arm})
    records, lines = Records(tmp_path), list[str]()
    keys = [runs.key(toy.lasting(8), "counted", seed) for seed in (0, 1)]
    first = runs.make(keys, {"toy": toy}, records, lines.append)
    assert runs.make(keys, {"toy": toy}, records, lines.append) == first == records.all()
    assert made == [(0, 1e-2), (1, 1e-2)] and len(lines) == 2
    done, failed = first
    assert done.sizes == toy.seed_sizes and done.parameters == toy.cost(toy.seed_sizes).parameters
    assert done.validation is not None and done.validation.accuracy == done.curve[-1].accuracy
    assert done.test is not None and done.curve[-1].step == 8
    assert "it did not work" in failed.failure and failed.validation is None
    assert list(tmp_path.rglob("*.lock")) == []
    with pytest.raises(ValueError, match="another task"):
        runs.make(keys, {"toy": replace(toy, parameters=1600)}, records, lines.append)


def test_a_record_is_made_by_one_process(toy: Task, tmp_path: Path) -> None:
    records, wanted = Records(tmp_path), runs.key(toy.lasting(8), "seed")
    with records.claim(wanted) as mine, records.claim(wanted) as other:
        assert (mine, other) == (True, False)
        assert runs.make([wanted], {"toy": toy}, records, print) == []
    assert len(runs.make([wanted], {"toy": toy}, records, print)) == 1


def test_arms_have_names() -> None:
    with pytest.raises(ValueError, match="no arm 'rundom-1'"):
        find_arm("rundom-1")


def record(arm: str, seed: int, accuracy: float, half: float, flops: int) -> Record:
    """Return a made-up training."""
    curve = (Point(10, 1, 1.0, half), Point(20, 2, 1.0, accuracy))
    key, end = Key("toy", arm, seed, 1e-2, 20), Metrics(1.0, accuracy)
    return Record(key, "", {}, 1000, flops, 2, 3.0, end, end, curve, {}, "", "")


def test_figures_of_what_is_known(toy: Task) -> None:
    random = [record(f"random-{i}", 0, i / 10, i / 20, -i) for i in range(8)]
    found = figures([*random, *(record("uniform", i, 0.5 + i / 10, 0.1, 0) for i in range(3))], {"toy": toy})["toy"]
    assert found["rates"] == {"0.01": 0.5}
    assert found["uniform"]["mean"] == pytest.approx(0.6) and found["uniform"]["deviation"] == pytest.approx(0.1)
    assert (found["random"]["number"], found["random"]["most"]) == (8, 0.7)
    correlations = found["correlation_with_the_end"]
    assert correlations["after step 10"] == {
        "mean": pytest.approx(1),
        "low": pytest.approx(1),
        "high": pytest.approx(1),
    }
    assert correlations["flops"]["mean"] == pytest.approx(-1)
    assert "parameters" not in correlations, "they are all the same"
    assert json.loads(json.dumps(found)) == found


def test_tasks_without_their_data_are_left_out(tmp_path: Path) -> None:
    found = run(str(tmp_path), only="residual")
    assert found["left_out"] == {"residual": "needs CIFAR-10: give --data"}
    with pytest.raises(ValueError, match="no task or part 'resnet'"):
        run(str(tmp_path), only="resnet")
    with pytest.raises(ValueError, match="give its files"):
        find_task("vgg")


@pytest.mark.slow
def test_the_parts_of_the_study_share_their_trainings(
    toy: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each training is counted once, though several parts ask for it."""
    monkeypatch.setattr(benchmark, "find_task", lambda name, data: replace(toy, name=name))
    found = run(str(tmp_path), only="table,rates,ceiling,criteria,noise", trials=4, steps=20)
    told, predicted = found["table"], found["predictions"]
    assert isinstance(told, dict) and isinstance(predicted, dict) and found["made_elsewhere"] == 0
    assert (told["uniform"]["number"], told["random"]["number"], told["failures"]) == (5, 4, {})
    assert set(predicted["table"]) == set(CRITERIA) <= set(told["correlation_with_the_end"])
    assert all(set(p) == {f"random-{i}" for i in range(4)} for p in predicted["table"].values())
    assert len(Records(tmp_path).all()) == 7 + 4


def test_no_paragraph_is_in_two_parts() -> None:
    dataset = text().dataset
    parts: Sequence[torch.Tensor] = [
        inputs
        for split in (dataset.train, dataset.validation, dataset.test)
        if torch.is_tensor(inputs := split.take(slice(None)).inputs)
    ]
    windows = [{tuple(w) for w in part.unfold(1, 32, 1).flatten(0, 1).tolist()} for part in parts]
    assert len(windows[0] & windows[1]) < 0.1 * len(windows[1])
    assert [len(p) for p in parts[1:]] == pytest.approx([len(parts[0]) / 8] * 2, rel=0.3)


def test_a_table_has_the_noise_it_says() -> None:
    (inputs, targets), (again, _) = made(5000), made(5000)
    assert torch.equal(inputs, again) and targets.shape == (5000, 1)
    assert float(targets.var()) == pytest.approx(1 + NOISE**2, rel=0.05)


def test_every_pixel_has_a_class() -> None:
    split = find_task("unet").dataset.train.take(slice(None))
    train, pixels = split.inputs, split.targets
    assert torch.is_tensor(train) and torch.is_tensor(pixels)
    assert train.shape[1:] == (1, SIDE, SIDE) and pixels.shape[1:] == (SIDE, SIDE)
    assert torch.bincount(pixels.flatten(), minlength=CLASSES).min() > 10_000


def test_networks_that_grow_stay_within_what_the_uniform_one_costs(toy: Task) -> None:
    found = find_arm("grown")(toy.lasting(40), 0, 1e-2)
    assert budget(toy).allows(cost(found.graph))
    contractions = [e for e in found.notes["history"] if e["event"] == "grown"]
    assert len(contractions) == 8 and all(e["specs"] for e in contractions)
    assert found.training_flops > 40 * 32 * 3 * cost(found.graph).flops


def test_growing_is_compared_with_the_uniform_network_of_the_same_seed(toy: Task) -> None:
    """Scores are accuracies; the control that was trained longer belongs to what its run has spent."""

    def record(arm: str, seed: int, accuracy: float, spent: int, parameters: int = 100) -> Record:
        said = Metrics(1.0, accuracy)
        wanted = Key("toy", arm, seed, toy.rate, 20)
        return Record(wanted, toy.settings, {}, parameters, 10, spent, 2.0, said, said, (), {}, "", "")

    records = [record("uniform", s, 0.5 + 0.1 * s, 1000) for s in range(3)]
    records += [record("grown", s, 0.52 + 0.1 * s + 0.01 * s, 1500, 90) for s in range(3)]
    records += [record("uniform-longer-1.51", s, 0.55 + 0.1 * s, 1510) for s in range(2)]
    records += [record("uniform-longer-1.60", 2, 0.9, 1600)]
    found = figures(records, {"toy": toy})["toy"]["compared"]["grown"]
    reach = 4.302653 * 0.01 / 3**0.5
    assert found["better_by"] == pytest.approx(
        {"number": 3, "mean": 0.03, "low": 0.03 - reach, "high": 0.03 + reach}, rel=1e-6
    )
    assert found["equal_training"]["number"] == 2 and found["equal_training"]["mean"] == pytest.approx(-0.025)
    assert (found["parameters"], found["flops"], found["training_flops"]) == (0.9, 1.0, 1.5)
    rival = figures([*records, *(record("searched-1.50", s, 0.5, 1500) for s in range(2))], {"toy": toy})["toy"]
    assert rival["compared"]["searched"]["default_better_by"]["mean"] == pytest.approx(0.075)
    wanted = list(runs.as_dear(toy, [r for r in records if r.key.arm == "grown"], "searched"))
    times = 1500 / (3 * toy.cost(uniform(toy)).flops * 20 * 32)
    assert [k.arm for k in wanted] == [f"searched-{times:.2f}"] * 3 and [k.seed for k in wanted] == [0, 1, 2]


def test_a_random_search_costs_what_it_is_given(toy: Task) -> None:
    """The uniform network is the first, and the one that goes on the best of all that were tried."""
    found = find_arm("searched-1.6")(toy.lasting(40), 0, 1e-2)
    whole = runs.flops_of_uniform(toy.lasting(40))
    assert 1.5 * whole < found.training_flops <= 1.6 * whole
    losses, kept = found.notes["losses"], found.notes["kept"]
    assert len(losses) >= 10 and kept
    assert {w.name: w.size for w in infer_widths(found.graph)} == drawn(toy, 1000 + kept - 1)
    alone = find_arm(f"random-{1000 + kept - 1}")(toy.lasting(40), 0, 1e-2)
    for name, tensor in found.module.state_dict().items():
        torch.testing.assert_close(tensor, alone.module.state_dict()[name], rtol=0, atol=0)
    first = [find_arm(f"random-{1000 + n}")(toy.lasting(40), 0, 1e-2).curve[0] for n in range(len(losses) - 1)]
    assert losses[1:] == [point.loss for point in first]
    assert first[kept - 1].accuracy == max(p.accuracy for p in first if p.accuracy is not None)
    assert budget(toy).allows(cost(found.graph))


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "hessian"])
def test_others_contract_the_same_network_to_the_same_budgets(toy: Task, importance: str) -> None:
    pytest.importorskip("torch_pruning")
    grown = find_arm("grown")(toy.lasting(40), 0, 1e-2)
    found = find_arm(f"pruned-{importance}")(toy.lasting(40), 0, 1e-2)
    expanded = next(e for e in grown.notes["history"] if e["event"] == "expanded")
    assert found.notes["parameters"][0] == expanded["parameters"]
    assert len(found.notes["parameters"]) == 9
    assert budget(toy).allows(cost(found.graph))


def test_criteria_judge_allocations_by_a_network_that_holds_them(toy: Task) -> None:
    """What is removed of a width is counted: an allocation with more units of all widths costs less."""
    allocations = [drawn(toy, number) for number in range(4)]
    wide = wide_network(toy, allocations, 0, 1e-2)
    sizes = {w.name: w.size for w in infer_widths(wide)}
    assert sizes == {name: max(a[name] for a in allocations) for name in sizes}
    less = {name: max(size // 2, 1) for name, size in sizes.items()}
    found = predictions(toy, wide, [*allocations, sizes, less], 0)
    assert set(found) == set(CRITERIA)
    for values in found.values():
        assert len(set(values)) == 6 and values[4] == 0
    for name in ("magnitude", "taylor", "G/2 alone", "G/2 together"):
        assert found[name][5] > 0


@pytest.mark.slow
def test_units_that_nothing_removes_are_told_of() -> None:
    """Those of a stream that a layer norm runs over."""
    task, sizes = text(), text().seed_sizes
    stream, *_ = sizes
    wide = task.network(sizes, 0)
    with pytest.raises(ValueError, match=f"no candidate removes units of {stream}"):
        predictions(task, wide, [{**sizes, stream: sizes[stream] - 1}], 0)


def test_units_of_no_importance_do_not_go_all_at_once() -> None:
    """A third of the units give nothing; what is asked for is between, and none of the others goes."""
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    first, last = nn.Linear(4, 30), nn.Linear(30, 2)
    with torch.no_grad():
        last.weight[:, :10] = first.weight[:10] = first.bias[:10] = 0
    net, inputs = nn.Sequential(first, nn.ReLU(), last), torch.randn(64, 4)
    scored = rival_pruning.score(net, Examples(inputs, torch.randn(64, 2)), LOSSES["mse"])

    def hidden(small: nn.Module) -> int:
        return len(small.get_parameter("0.bias"))

    for importance in rival_pruning.IMPORTANCES:
        small = rival_pruning.prune_until(scored, inputs[:2], importance, lambda n: hidden(n) <= 25)
        assert hidden(small) == 25
        torch.testing.assert_close(small(inputs), net(inputs))
    with pytest.raises(GrowError, match="no network pruned by magnitude is small enough"):
        rival_pruning.prune_until(scored, inputs[:2], "magnitude", lambda n: False)
    with pytest.raises(GrowError, match="Torch-Pruning fails"):
        rival_pruning.prune_until(scored, inputs[:2, :3], "magnitude", lambda n: True)


def test_a_set_with_quotas_is_chosen_unit_by_unit(toy: Task) -> None:
    """Against all sets of the same quotas: what is chosen is one of them, and the best where units are judged alone."""
    allocations = [{"w0": 3, "w1": 3}, {"w0": 2, "w1": 3}]
    small = replace(toy, options=replace(toy.options, steps=40))
    wide = wide_network(small, [{"w0": 5, "w1": 4}], 0, 1e-2)
    objective = make_objective(wide, toy.loss)
    seen, _ = held_out(toy.dataset.validation, toy.loss, toy.options.score_examples, 0)
    for name, how in {n: c for n, c in CRITERIA.items() if c.strategy == "sampled"}.items():
        options = ScoreOptions(settled=how.settled, adapted=how.adapted, seed=0)
        scores = score(
            objective, Batches(seen, toy.options.batch_size), morphisms=(Prune(),), strategy="sampled", options=options
        )
        assert scores.refinement is not None
        labels = [s.candidate.family.site.label for s in scores.choice]
        for sizes, found in zip(allocations, predictions(toy, wide, allocations, 0)[name], strict=True):
            quota = {"w0": 5 - sizes["w0"], "w1": 4 - sizes["w1"]}
            count = sum(quota.values())
            sets = [
                c
                for c in itertools.combinations(range(len(labels)), count)
                if all([labels[i] for i in c].count(w) == n for w, n in quota.items())
            ]
            alone = scores.refinement.quadratic[0]
            values = [scores.refinement.joint(c) if how.together else float(alone[list(c)].sum()) for c in sets]
            if how.together:
                assert any(abs(found - v) < 1e-9 for v in values) and found <= sorted(values)[len(values) // 2]
            else:
                assert found == pytest.approx(min(values), abs=1e-9)
