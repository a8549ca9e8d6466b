import warnings

import numpy as np
import pytest

from medkd.errors import DataError
from medkd.evaluation.embedding import umap_embedding
from medkd.evaluation.probes import neighbour_purity


def separated_blobs(n_blobs, n_each):
    rng = np.random.default_rng(0)
    centres = 20 * np.eye(16)[:n_blobs]
    labels = np.repeat(np.arange(n_blobs), n_each)
    return centres[labels] + 0.05 * rng.standard_normal((len(labels), 16)), labels


@pytest.mark.slow
def test_repeated_fits_of_separated_classes_are_the_same_to_the_bit():
    features, labels = separated_blobs(6, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first, again = (umap_embedding(features, seed=3) for _ in range(2))
    assert first.dtype == np.float32 and first.shape == (240, 2)
    assert first.tobytes() == again.tobytes()
    assert neighbour_purity(first, labels) == 1
    assert umap_embedding(features, seed=4).tobytes() != first.tobytes()


@pytest.mark.slow
def test_embeds_ten_samples_and_ignores_their_length():
    features, _ = separated_blobs(2, 5)
    lengths = 2.0 ** np.arange(10)[:, None]  # powers of two: exact in floating point
    coordinates = umap_embedding(features.astype(np.float32))
    assert coordinates.shape == (10, 2) and np.isfinite(coordinates).all()
    np.testing.assert_array_equal(umap_embedding(features.astype(np.float32) * lengths), coordinates)


def test_refuses_too_few_rows_and_nan():
    with pytest.raises(DataError, match=r"n >= 4 and d >= 2; got shape \(3, 8\)"):
        umap_embedding(np.ones((3, 8)))
    with pytest.raises(DataError, match="finite features"):
        umap_embedding(np.full((12, 8), np.nan))
