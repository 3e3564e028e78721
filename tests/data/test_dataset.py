"""Digits, and the parts and views of a set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normlib.data import DataError, Dataset, load
from normlib.data.dataset import balanced_pick


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def rows(x: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x.flatten(1)}


def test_digits_are_scikit_learns(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    raw = load_digits()
    together = torch.cat([digits.x_train, digits.x_test]).flatten(1).double() * 16
    labels = torch.cat([digits.y_train, digits.y_test])
    found = sorted(map(tuple, torch.cat([together, labels[:, None]], dim=1).tolist()))
    assert found == sorted(map(tuple, np.column_stack([raw.data, raw.target]).tolist()))
    assert torch.bincount(digits.y_test).tolist() == [36] * 10
    assert digits.x_train.dtype == torch.float32
    assert digits.y_train.dtype == torch.int64
    assert (digits.shape, digits.classes, digits.source) == ((1, 8, 8), 10, "scikit-learn")


def test_digits_are_the_same_split_for_everyone(digits: Dataset) -> None:
    assert digits.official
    assert digits.digest == "f405ce60f69d095dc945c3ae382392a5fd256f2b7f97e9c1fdefc7d111637c94"


def test_each_load_has_memory_of_its_own(digits: Dataset) -> None:
    other = load("digits")
    before = digits.x_train.clone()
    other.x_train.zero_()
    other.y_train.zero_()
    assert torch.equal(load("digits").x_train, before)
    assert digits.y_train.any()


@pytest.mark.parametrize("count", [1, 10, 37, 100, 140])
def test_a_pick_is_balanced_nested_and_repeatable(count: int) -> None:
    labels = np.repeat(np.arange(10), 14)
    chosen = balanced_pick(labels, count, seed=3)
    shares = np.bincount(labels[chosen], minlength=10)
    assert len(set(chosen.tolist())) == count
    assert shares.max() - shares.min() <= 1
    assert np.array_equal(chosen, balanced_pick(labels, count, seed=3))
    assert set(chosen) <= set(balanced_pick(labels, min(count + 13, 140), seed=3))


def test_a_pick_outlasts_a_rare_class_and_follows_its_seed() -> None:
    labels = np.array([0] * 2 + [1] * 20)
    assert np.bincount(labels[balanced_pick(labels, 12, seed=0)]).tolist() == [2, 10]
    assert not np.array_equal(balanced_pick(labels, 12, seed=0), balanced_pick(labels, 12, seed=1))
    assert len(balanced_pick(labels, 3, seed=2**63)) == 3


def test_a_subset_keeps_images_and_labels_together(digits: Dataset) -> None:
    part = digits.subset(200, 50, seed=1)
    label_of = {x.numpy().tobytes(): int(y) for x, y in zip(digits.x_train, digits.y_train, strict=True)}
    assert [label_of[x.numpy().tobytes()] for x in part.x_train] == part.y_train.tolist()
    assert (len(part.y_train), len(part.y_test)) == (200, 50)
    assert torch.bincount(part.y_test).tolist() == [5] * 10
    assert part.digest == digits.digest
    assert digits.subset(n_train=20).x_test is digits.x_test


def test_validation_comes_from_training_images_only(digits: Dataset) -> None:
    tuning = digits.split_validation(300, seed=2)
    assert len(tuning.x_test) == 300
    assert rows(tuning.x_train) | rows(tuning.x_test) == rows(digits.x_train)
    assert len(tuning.x_train) + len(tuning.x_test) == len(digits.x_train)
    assert not rows(tuning.x_test) & rows(tuning.x_train)
    assert torch.bincount(tuning.y_test).tolist() == [30] * 10


def test_flat_shares_memory_and_order(digits: Dataset) -> None:
    flat = digits.flat()
    assert flat.shape == (64,)
    assert flat.x_train.data_ptr() == digits.x_train.data_ptr()
    assert torch.equal(flat.x_train[5].view(1, 8, 8), digits.x_train[5])


def test_pooled_averages_squares(digits: Dataset) -> None:
    pooled = digits.pooled(4)
    slow = torch.tensor([[digits.x_test[7, 0, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean() for j in range(2)] for i in range(2)])
    torch.testing.assert_close(pooled.x_test[7, 0], slow)
    assert pooled.shape == (1, 2, 2)
    with pytest.raises(DataError, match=r"\(1, 8, 8\) cannot be averaged over 3 x 3"):
        digits.pooled(3)
    with pytest.raises(DataError, match="Call pooled before flat"):
        digits.flat().pooled(2)


def test_standardized_uses_training_statistics(digits: Dataset) -> None:
    x = digits.x_train.double()
    mean, deviation = x.mean(), ((x - x.mean()) ** 2).mean().sqrt()
    found = digits.standardized()
    torch.testing.assert_close(found.x_test.double(), (digits.x_test.double() - mean) / deviation, atol=1e-5, rtol=1e-5)
    features = digits.flat().standardized().x_train
    constant = digits.flat().x_train.std(0) == 0
    assert constant.any()
    assert torch.equal(features[:, constant], torch.zeros_like(features[:, constant]))
    torch.testing.assert_close(features[:, ~constant].square().mean(0), torch.ones(int((~constant).sum())))


@pytest.mark.parametrize("ask", [{"n_train": 0}, {"n_train": 1438}, {"n_test": 361}])
def test_too_large_a_part_is_refused(digits: Dataset, ask: dict[str, int]) -> None:
    with pytest.raises(DataError, match=r"'digits' has (1437 training|360 test) images; cannot take"):
        digits.subset(**ask)
    with pytest.raises(DataError, match="1437 for validation leaves none"):
        digits.split_validation(1437)


def test_to_moves_every_tensor(digits: Dataset) -> None:
    moved = digits.to("meta")
    assert {t.device.type for t in (moved.x_train, moved.y_train, moved.x_test, moved.y_test)} == {"meta"}
    assert repr(digits) == "Dataset('digits', 1437 + 360 of (1, 8, 8), 10 classes, official, scikit-learn, cpu)"
