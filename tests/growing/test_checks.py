"""Faults of examples and losses are found before a run begins, by their place; nothing is trained on nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from archir.errors import ArchirError, FileError, GrowError, ScoreError
from archir.growing.batches import Augmentation, Batches
from archir.growing.checks import check_examples, labelled
from archir.growing.examples import Examples
from archir.growing.grow import Run, grow_graph
from archir.growing.training import evaluate, train
from archir.ir.graph import Graph
from archir.scoring.budget import Budget
from archir.scoring.losses import Loss, check_loss, coupled, find_loss
from frontends.pytorch import trace
from passes.split import Split
from passes.widen import Widen
from tests.growing.process_groups import Pretended
from tests.growing.small_run import OPTIONS, data

SHORT = replace(OPTIONS, steps=4, growth_steps=0, checkpoint_every=2, evaluate_every=0)
CROSS_ENTROPY = find_loss("cross_entropy")


def _with(split: Examples, **places: float) -> Examples:
    """Return a split with labels changed: `_with(split, n3=-100)`."""
    assert isinstance(split.targets, torch.Tensor)
    targets = split.targets.clone()
    for place, value in places.items():
        targets[int(place[1:])] = int(value)
    return replace(split, targets=targets)


def _grow(graph: Graph, directory: Path | None = None, **changed: Any) -> Run:
    arguments: dict[str, Any] = {
        "train": data(64, 1),
        "validation": data(40, 2),
        "budget": Budget(parameters=900),
        "morphisms": (Split(),),
        "options": SHORT,
        **changed,
    }
    return grow_graph(graph, directory=directory, **arguments)


def _none(outputs: torch.Tensor, targets: torch.Tensor) -> Any:
    return None


def _number(outputs: torch.Tensor, targets: torch.Tensor) -> Any:
    return nn.functional.cross_entropy(outputs, targets).item()


def _whole(outputs: torch.Tensor, targets: torch.Tensor) -> Any:
    return (outputs.argmax(1) != targets).sum()


def _table(outputs: torch.Tensor, targets: torch.Tensor) -> Any:
    return outputs**2


def _detached(outputs: torch.Tensor, targets: torch.Tensor) -> Any:
    return nn.functional.cross_entropy(outputs.detach(), targets)


def _constant(outputs: torch.Tensor, targets: torch.Tensor) -> Any:
    return torch.zeros(len(outputs))


class _Undifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.mean()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        raise OSError("no way back")


def _failing(outputs: torch.Tensor, targets: torch.Tensor) -> Any:
    return _Undifferentiable.apply(outputs)  # type: ignore[no-untyped-call]


def _changed(outputs: torch.Tensor, targets: torch.Tensor) -> Any:
    first = outputs.exp()
    return (first * first.add_(1)).mean()


def _of_its_own(outputs: torch.Tensor, targets: torch.Tensor) -> Any:
    return torch.ones(len(outputs), requires_grad=True) * 2


def _broken(outputs: torch.Tensor, targets: torch.Tensor) -> Any:
    raise KeyError("mine")


@pytest.mark.parametrize(
    ("loss", "error", "named"),
    [
        (_none, ScoreError, "the loss _none returns a NoneType"),
        (_number, ScoreError, "the loss _number returns a float"),
        (_whole, ScoreError, r"the loss _whole returns a tensor of torch\.int64"),
        (_table, ScoreError, r"the loss _table returns \[32, 3\] for 32 examples"),
        (_detached, GrowError, "the loss _detached does not depend on the weights"),
        (_constant, GrowError, "the loss _constant does not depend on the weights"),
        (_failing, GrowError, r"the loss _failing cannot be differentiated\n.*OSError: no way back"),
        (_changed, GrowError, r"the loss _changed cannot be differentiated\n.*modified by an inplace operation"),
        (_of_its_own, GrowError, "the loss _of_its_own depends on none of the weights"),
        (None, ScoreError, "a NoneType is no loss"),
        (["mse"], ScoreError, "a list is no loss"),
        (3, ScoreError, "a int is no loss"),
        ("x" * 9000, ScoreError, "there is no loss 'x{79}"),
        (_broken, ScoreError, r"the loss _broken fails on a batch\n.*outputs \[32, 3\].*\n.*KeyError: 'mine'"),
        (nn.CrossEntropyLoss(torch.ones(7)), ScoreError, r"the loss CrossEntropyLoss fails on a batch(.|\n)*weight"),
        (Loss("mine", _table, _table), ScoreError, r"the loss mine of a batch is \[32, 3\], not one number"),
        (Loss("mine", _table, _none), ScoreError, "the loss mine of a batch is a NoneType, not one number"),
    ],
)
def test_a_loss_that_cannot_be_minimised_is_refused_before_anything_is_written(
    seed_graph: Graph, tmp_path: Path, loss: Any, error: type[ArchirError], named: str
) -> None:
    with pytest.raises(error, match=named):
        _grow(seed_graph, tmp_path / "run", loss=loss)
    assert not (tmp_path / "run").exists()


def test_training_refuses_what_no_weight_has_a_part_in() -> None:
    module = nn.Linear(2, 2)
    batches = [(torch.ones(2, 2), torch.zeros(2, dtype=torch.long))]
    optimiser = torch.optim.SGD(module.parameters(), 0.1)
    for function in (_detached, lambda outputs, targets: torch.ones(2, requires_grad=True) * 2):
        with pytest.raises(GrowError, match="depend"):
            train(module, batches, find_loss(function), optimiser)
    for clip in (-1, 0, math.nan, math.inf):
        with pytest.raises(GrowError, match="cannot be clipped"):
            train(module, batches, CROSS_ENTROPY, optimiser, clip=clip)


@pytest.mark.parametrize("label", [3, -1, -101, 2**40])
@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_label_the_model_does_not_know_is_told_by_its_example(seed_graph: Graph, label: int, part: str) -> None:
    """Also in an example that is not in the first batch."""
    changed = _with(data(40, 3), n37=label)
    with pytest.raises(FileError, match=rf"data is {label}, the model has 3 classes\n.*example 37 of"):
        _grow(seed_graph, None, **{part: changed})


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.table(tokens).mean(1)
        return found


@pytest.mark.parametrize("token", [7, -1, 2**40])
@pytest.mark.parametrize("part", ["training", "validation"])
def test_tokens_without_a_row_in_the_embedding_are_told(token: int, part: str) -> None:
    """Also those of an example that is not in the first batch."""
    good = torch.arange(60).reshape(20, 3) % 7
    bad = good.clone()
    bad[13, 1] = token
    labels = torch.zeros(20, dtype=torch.long)
    module = trace(_Tokens(), good[:2]).module()
    splits = {"training": Examples(good, labels, "mine"), "validation": Examples(good, labels, "mine")}
    check_examples(module, CROSS_ENTROPY, 4, splits)
    with pytest.raises(FileError, match=rf"an example of the {part} data, whose inputs run from .*{token}") as caught:
        check_examples(module, CROSS_ENTROPY, 4, {**splits, part: Examples(bad, labels, "mine")})
    assert "example 13 of Examples(20 examples from mine)" in caught.value.where and "index" in caught.value.why
    first = torch.full((4, 3), token)
    with pytest.raises(GrowError, match="the model rejects a batch") as refused:
        check_examples(module, CROSS_ENTROPY, 4, {"training": Examples(first, labels[:4])})
    assert "embedding = self.table(tokens)" in refused.value.where


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0])
@pytest.mark.parametrize("loss", ["bce_with_logits", "cross_entropy"])
def test_probabilities_lie_from_0_to_1(seed_graph: Graph, loss: str, value: float) -> None:
    wanted = torch.full((40, 3), 0.5)
    wanted[33, 2] = value
    split = replace(data(40, 1), targets=wanted)
    with pytest.raises(
        FileError, match=rf"is {value:g}, not a probability(.|\n)*example 33, position \[2\] of the val"
    ):
        _grow(seed_graph, validation=split, train=replace(split, targets=wanted.clamp(0, 1)), loss=loss)
    with pytest.raises(ScoreError, match="not a probability"):
        check_loss(find_loss(loss), torch.zeros(40, 3), wanted)
    check_loss(find_loss(loss), torch.zeros(40, 3), wanted.clamp(0, 1))


def test_whole_numbers_are_probabilities_only_for_two_classes(seed_graph: Graph) -> None:
    split = data(40, 1)
    assert isinstance(split.targets, torch.Tensor)
    hot = nn.functional.one_hot(split.targets, 3)
    with pytest.raises(FileError, match="a target of the loss bce_with_logits is 2, not a probability"):
        _grow(seed_graph, train=replace(split, targets=2 * hot), loss="bce_with_logits")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_inputs_and_targets_that_are_no_numbers_are_told(seed_graph: Graph, value: float) -> None:
    split = data(64, 1)
    assert isinstance(split.inputs, torch.Tensor)
    inputs = split.inputs.clone()
    inputs[50, 0, 1, 2] = value
    with pytest.raises(
        FileError, match=rf"inputs of the training data hold {value}\n.*example 50, position \[0, 1, 2\]"
    ):
        _grow(seed_graph, train=replace(split, inputs=inputs))
    wanted = torch.zeros(64, 3)
    wanted[2, 1] = value
    with pytest.raises(FileError, match=rf"targets of the training data hold {value}\n.*example 2, position \[1\]"):
        _grow(seed_graph, train=replace(split, targets=wanted), loss="mse")


def test_a_mask_may_be_infinite_but_not_nan() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.linear(x) + mask.clamp(min=-9)
            return scores

    inputs = {"x": torch.ones(4, 2), "mask": torch.zeros(4, 2)}
    inputs["mask"][1, 1] = -math.inf
    targets = torch.zeros(4, dtype=torch.long)
    check_examples(Masked(), CROSS_ENTROPY, 2, {"training": Examples(inputs, targets)})
    inputs["mask"][3, 0] = math.nan
    with pytest.raises(FileError, match=r"inputs\['mask'\] of the training data hold nan\n.*example 3, position \[0\]"):
        check_examples(Masked(), CROSS_ENTROPY, 2, {"training": Examples(inputs, targets)})


def _unlabelled(split: Examples, *, but: slice = slice(0)) -> Examples:
    assert isinstance(split.targets, torch.Tensor)
    targets = torch.full_like(split.targets, -100)
    targets[but] = split.targets[but]
    return replace(split, targets=targets)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_data_without_any_label_are_refused(seed_graph: Graph, part: str) -> None:
    name = {"train": "training"}.get(part, part)
    with pytest.raises(GrowError, match=f"no example of the {name} data has a label"):
        _grow(seed_graph, None, **{part: _unlabelled(data(40, 3))})


def test_a_batch_without_any_label_changes_nothing_and_is_said() -> None:
    """Not even by momentum and weight decay."""
    torch.manual_seed(0)
    module = nn.Linear(2, 3)
    optimiser = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    full, empty = torch.tensor([0, 2]), torch.tensor([-100, -100])
    x = torch.randn(2, 2)
    train(module, [(x, full)], CROSS_ENTROPY, optimiser)
    before = module.weight.detach().clone()
    done = train(module, [(x, empty), (x, empty)], CROSS_ENTROPY, optimiser)
    assert torch.equal(module.weight, before)
    assert (done.steps, done.examples, done.loss, done.skipped) == (0, 0, None, 2)
    done = train(module, [(x, empty), (x, full)], CROSS_ENTROPY, optimiser)
    assert (done.steps, done.examples, done.skipped) == (1, 2, 1) and done.loss is not None
    assert not torch.equal(module.weight, before)
    with pytest.raises(GrowError, match="has a label"):
        evaluate(module, Examples(x, empty), CROSS_ENTROPY)
    assert evaluate(module, Examples(x, torch.tensor([1, -100])), CROSS_ENTROPY).loss > 0


def test_growth_is_decided_on_examples_with_labels(seed_graph: Graph) -> None:
    """Where 12 of 200 validation examples have labels, half of these select and the others check; without, by chance
    nothing would be measured on nothing, and any rewrite that keeps the function be committed."""
    validation = _unlabelled(data(200, 2), but=slice(100, 112))
    assert labelled(validation, CROSS_ENTROPY).tolist() == list(range(100, 112))
    options = replace(OPTIONS, steps=8, growth_steps=1, rule="random", batch_size=8, evaluate_every=0, learn_steps=2)
    run = _grow(
        seed_graph,
        train=_unlabelled(data(64, 1), but=slice(0, 4)),
        validation=validation,
        options=options,
        morphisms=(Widen(),),
    )
    assert sum(e.get("skipped", 0) for e in run.history) > 0
    before = next(e for e in run.history if e["event"] == "evaluated")
    assert before["loss"] > 0 and all(e["realised"] != 0.0 for e in run.history if e["event"] == "grown")
    with pytest.raises(GrowError, match="too small to select"):
        _grow(seed_graph, validation=_unlabelled(data(40, 2), but=slice(1)), options=options)


@pytest.mark.parametrize("seed", [20_261_125, 2**63 - 1])
def test_large_seeds_are_seeds(seed_graph: Graph, seed: int) -> None:
    options = replace(OPTIONS, seed=seed, steps=4, growth_steps=1, learn_steps=2, refine=2, evaluate_every=0)
    run = _grow(seed_graph, options=options, morphisms=(Split(), Widen()))
    assert run.history[-1]["event"] == "finished"


def test_a_crop_larger_than_the_images_is_refused() -> None:
    batches = Batches(data(4, 1), 2, seed=0, augmentation=Augmentation(crop=10**9))
    with pytest.raises(GrowError, match="leaves nothing of images"):
        next(iter(batches))


@pytest.mark.parametrize("losses", [lambda o, t: (o**2).mean(1), lambda o, t: (o**2).mean()])
def test_losses_of_examples_and_their_mean_are_taken(losses: Callable[..., torch.Tensor], seed_graph: Graph) -> None:
    assert _grow(seed_graph, loss=losses).history[-1]["event"] == "finished"


@pytest.mark.parametrize(("coupling", "examples"), [(False, 3), (True, 5)])
def test_what_is_checked_is_the_share_of_a_process_in_the_precision_of_the_run(coupling: bool, examples: int) -> None:
    seen = list[tuple[int, torch.dtype]]()
    net, split = nn.Linear(2, 3), Examples(torch.randn(10, 2), torch.arange(10) % 3)
    net.register_forward_hook(lambda module, given, outputs: seen.append((len(outputs), outputs.dtype)))
    loss = find_loss(coupled(lambda outputs, targets: outputs.square().mean())) if coupling else CROSS_ENTROPY
    for number, precision in ((1, "bfloat16"), (0, "auto")):
        check_examples(
            net, loss, 5, {"training": split}, precision=precision, processes=Pretended(number=number, count=2)
        )
    assert seen == [(examples, torch.bfloat16), (5 if coupling else 2, torch.float32)]
