"""What networks are fed: imputation and scaling by training rows, and images as they lie in the cache."""

import numpy as np
import pytest
import torch

from medkd.data.views import GMCD, plain_view
from medkd.training.inputs import ImageModality, VectorModality

CPU = torch.device("cpu")


def test_vectors_are_imputed_and_scaled_by_training_rows_only():
    values = np.array([[1.0, 5.0], [3.0, np.nan], [np.nan, 7.0], [100.0, np.nan]], np.float32)
    rows = VectorModality(values, np.array([0, 1, 2]), CPU).plain(torch.arange(4))
    # first column: median of 1 and 3 is 2, so training values are 1, 3, 2: mean 2, SD sqrt(2/3)
    expected = (np.array([1.0, 3.0, 2.0, 100.0]) - 2) / np.sqrt(2 / 3)
    np.testing.assert_allclose(rows[:, 0], expected, rtol=1e-6)
    assert not torch.isnan(rows).any()


def test_changing_a_test_row_changes_no_training_row():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20, 3)).astype(np.float32)
    changed = values.copy()
    changed[15:] = 1e6
    train = np.arange(15)
    rows = torch.from_numpy(train)
    one, two = VectorModality(values, train, CPU), VectorModality(changed, train, CPU)
    assert torch.equal(one.plain(rows), two.plain(rows))


def test_a_column_that_is_constant_or_unknown_in_training_becomes_zero():
    values = np.array([[4.0, np.nan], [4.0, np.nan], [9.0, 3.0]], np.float32)
    rows = VectorModality(values, np.array([0, 1]), CPU).plain(torch.arange(3))
    assert rows[:, 0].tolist() == [0, 0, 0]
    assert rows[:2, 1].tolist() == [0, 0]


def test_small_units_keep_their_values_and_a_rounded_constant_is_one():
    rng, n = np.random.default_rng(0), 600
    values = np.stack([np.exp(rng.normal(size=n)) * 3e-8, np.full(n, 100.1)], axis=1).astype(np.float32)
    values[-1, 1] = 100.15
    rows = VectorModality(values, np.arange(n - 1), CPU).plain(torch.arange(n))
    assert len(rows[:, 0].unique()) == n and rows[: n - 1, 0].std().item() == pytest.approx(1, rel=0.01)
    assert rows[:, 1].tolist() == [0] * n


def test_plain_images_are_the_rows_asked_for_in_their_order(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    modality = ImageModality(mapped, GMCD, CPU)
    rows = torch.tensor([3, 0])
    assert torch.equal(modality.plain(rows), plain_view(torch.from_numpy(images[[3, 0]])))


def test_two_augmented_views_differ_and_a_seed_repeats_them():
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    modality = ImageModality(images, GMCD, CPU)
    rows = torch.arange(4)
    generator = torch.Generator().manual_seed(3)
    first, second = modality.augmented(rows, generator), modality.augmented(rows, generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, modality.augmented(rows, torch.Generator().manual_seed(3)))
