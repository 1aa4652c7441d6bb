"""Batches: every example once, the same order for the same seed, streams that go on where they were."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from archir.errors import GrowError
from archir.growing.batches import Augmentation, Batches, stream
from archir.growing.examples import Examples
from archir.growing.training_loss import Mixed
from archir.scoring.targets import Targets


def _numbered(count: int) -> Examples:
    return Examples(torch.arange(count).float()[:, None], torch.arange(count))


def _targets(batches: Batches) -> list[int]:
    return [t for _, targets in batches for t in _numbers(targets)]


def _numbers(targets: Targets) -> list[int]:
    assert isinstance(targets, torch.Tensor)
    return [int(t) for t in targets]


@given(count=st.integers(1, 40), size=st.integers(1, 45), seed=st.none() | st.integers(0, 9))
def test_every_example_is_used_once_in_batches_of_nearly_equal_size(count: int, size: int, seed: int | None) -> None:
    batches = Batches(_numbered(count), size, seed=seed)
    sizes = [len(targets) for _, targets in batches]
    assert len(sizes) == len(batches)
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
    assert sorted(_targets(batches)) == list(range(count))
    assert all(x[:, 0].tolist() == _numbers(t) for x, t in batches if isinstance(x, torch.Tensor))


def test_without_a_seed_the_order_is_that_of_the_split() -> None:
    assert _targets(Batches(_numbered(7), 3)) == list(range(7))


def test_the_order_depends_on_the_seed_alone() -> None:
    batches = Batches(_numbered(30), 8, seed=3)
    assert _targets(batches) == _targets(batches) == _targets(Batches(_numbered(30), 30, seed=3))
    assert _targets(batches) != _targets(Batches(_numbered(30), 8, seed=4))


@pytest.mark.parametrize("start", [0, 1, 4, 5, 13])
def test_a_stream_goes_on_where_it_was(start: int) -> None:
    images = Examples(torch.arange(320.0).view(20, 1, 4, 4), torch.arange(20))
    batches = Batches(images, 5, seed=2, augmentation=Augmentation(flip=True, crop=1, cutout=2))
    whole = list(islice(stream(batches), 20))
    again = list(islice(stream(batches, start), 20 - start))
    for (x, t), (y, u) in zip(whole[start:], again, strict=True):
        assert isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)
        assert torch.equal(x, y) and _numbers(t) == _numbers(u)
    passes = [sorted(i for _, t in whole[k : k + 4] for i in _numbers(t)) for k in range(0, 20, 4)]
    assert passes == [list(range(20))] * 5
    assert _numbers(whole[0][1]) != _numbers(whole[4][1])


def test_inputs_by_name_stay_together() -> None:
    split = Examples({"a": torch.arange(9), "b": torch.arange(9) * 2}, torch.arange(9))
    for inputs, targets in Batches(split, 4, seed=1):
        assert isinstance(inputs, dict)
        assert inputs["a"].tolist() == _numbers(targets) and torch.equal(inputs["b"], 2 * inputs["a"])


def test_several_targets_stay_together() -> None:
    split = Examples(torch.arange(9), {"a": torch.arange(9) * 2, "b": (torch.arange(9) * 3, torch.arange(9) * 4)})
    seen = 0
    for x, targets in Batches(split, 4, seed=1):
        assert isinstance(x, torch.Tensor) and isinstance(targets, dict) and isinstance(targets["b"], tuple)
        for factor, found in zip((2, 3, 4), (targets["a"], *targets["b"]), strict=True):
            assert torch.equal(found, factor * x)
        seen += len(x)
    assert seen == 9


def test_flipping_mirrors_about_half_of_the_images() -> None:
    images = torch.arange(200 * 6.0).view(200, 1, 2, 3)
    changed = Augmentation(flip=True)(images, torch.Generator().manual_seed(0))
    mirrored = (changed == images.flip(3)).all((1, 2, 3)) if changed.dim() == 4 else torch.zeros(200)
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(changed, images, strict=True)])
    assert bool((mirrored ^ kept).all())
    assert 70 < int(kept.sum()) < 130


def test_cropping_shifts_each_image_and_fills_with_zeros() -> None:
    images = 1 + torch.arange(50 * 2 * 12.0).view(50, 2, 4, 3)
    changed = Augmentation(crop=1)(images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    shifts = set()
    for before, after in zip(padded, changed, strict=True):
        found = [(i, j) for i in range(3) for j in range(3) if torch.equal(before[:, i : i + 4, j : j + 3], after)]
        assert len(found) == 1
        shifts.update(found)
    assert len(shifts) == 9


@pytest.mark.parametrize("side", [1, 2, 3, 9])
def test_cutting_out_blanks_one_square_of_each_image(side: int) -> None:
    images = torch.ones(200, 2, 5, 4)
    changed = Augmentation(cutout=side)(images, torch.Generator().manual_seed(0))
    assert torch.equal(changed[:, 0], changed[:, 1])
    blank, places = changed[:, 0] == 0, set()
    for image in blank:
        rows, columns = image.any(1), image.any(0)
        assert torch.equal(image, rows[:, None] & columns), "a rectangle"
        assert 0 < rows.sum() <= side and 0 < columns.sum() <= side
        places.add((tuple(rows.tolist()), tuple(columns.tolist())))
    if side <= 3:
        assert len(places) == 20, "the centre is anywhere"


def test_mixing_takes_two_examples_with_their_targets() -> None:
    split = Examples(torch.eye(12, dtype=torch.float64), torch.arange(12))
    shares = []
    for inputs, targets in islice(stream(Batches(split, 6, 1, Augmentation(mixup=0.5))), 60):
        assert isinstance(targets, Mixed) and isinstance(inputs, torch.Tensor)
        share = float(targets.share[0])
        assert torch.equal(targets.share, torch.full((6,), share, dtype=torch.float64))
        first, second = (F.one_hot(torch.tensor(_numbers(t)), 12).double() for t in (targets.first, targets.second))
        torch.testing.assert_close(inputs, share * first + (1 - share) * second, rtol=1e-12, atol=1e-15)
        assert sorted(_numbers(targets.first)) == sorted(_numbers(targets.second))
        shares.append(share)
    assert min(shares) < 0.1 and max(shares) > 0.9 and len(set(shares)) == 60
    assert abs(sum(shares) / 60 - 0.5) < 0.15


def test_a_stream_of_mixes_goes_on_where_it_was() -> None:
    batches = Batches(Examples(torch.randn(20, 3), torch.arange(20)), 5, seed=2, augmentation=Augmentation(mixup=0.2))
    whole, again = list(islice(stream(batches), 12)), list(islice(stream(batches, 7), 5))
    for (x, t), (y, u) in zip(whole[7:], again, strict=True):
        assert isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)
        assert isinstance(t, Mixed) and isinstance(u, Mixed)
        assert torch.equal(x, y) and torch.equal(t.share, u.share) and _numbers(t.second) == _numbers(u.second)


def test_bad_options_are_refused() -> None:
    with pytest.raises(GrowError, match="the batch size is 0"):
        Batches(_numbered(3), 0)
    with pytest.raises(GrowError, match="only shuffled images"):
        Batches(_numbered(3), 2, augmentation=Augmentation(flip=True))
    with pytest.raises(GrowError, match="are not images"):
        list(Batches(_numbered(3), 2, seed=0, augmentation=Augmentation(flip=True)))
    tokens = Examples(torch.arange(3)[:, None], torch.arange(3))
    with pytest.raises(GrowError, match=r"inputs of type torch\.int64 cannot be mixed"):
        list(Batches(tokens, 2, seed=0, augmentation=Augmentation(mixup=0.2)))
