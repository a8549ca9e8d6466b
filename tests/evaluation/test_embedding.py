import hashlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from medkd.errors import DataError, ParameterError
from medkd.evaluation.embedding import embed_together, quality, rotated_onto, umap_embedding
from medkd.evaluation.probes import neighbour_purity, unit_rows


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
def test_what_umap_compiles_is_kept_for_other_processes():
    """By numba's own record of one function that each step of UMAP is made of."""
    umap_embedding(np.random.default_rng(0).normal(size=(30, 4)))
    from umap import layouts, umap_

    for compiled in (layouts.rdist, umap_.smooth_knn_dist, umap_.compute_membership_strengths):
        assert compiled.stats.cache_path, compiled.__name__
        assert sum((compiled.stats.cache_hits | compiled.stats.cache_misses).values()) > 0, compiled.__name__


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


def turned(features, seed=1):
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((features.shape[1],) * 2))
    return features @ rotation


def share_beside_own_class(features, reference, labels):
    nearest = NearestNeighbors(n_neighbors=10).fit(reference).kneighbors(features, return_distance=False)
    return (labels[nearest] == labels[:, None]).mean()


def test_rotation_brings_features_with_other_axes_back_to_the_reference():
    features, _ = separated_blobs(4, 20)
    reference = unit_rows(features)
    np.testing.assert_allclose(rotated_onto(reference, turned(reference)), reference, atol=0.02)


def test_rotation_keeps_the_distances_between_images_that_were_turned_together():
    features, _ = separated_blobs(2, 10)
    other = unit_rows(np.random.default_rng(3).standard_normal(features.shape))
    together = rotated_onto(unit_rows(features), other, groups=np.repeat(["p1", "p2"], 10))
    for rows in (slice(0, 10), slice(10, 20)):
        np.testing.assert_allclose(together[rows] @ together[rows].T, other[rows] @ other[rows].T, atol=1e-12)


def test_rotation_does_not_carry_random_features_into_the_classes_of_the_reference():
    """120 images in 128 dimensions: a rotation found on the images themselves does."""
    rng, labels = np.random.default_rng(0), np.arange(120) % 3
    reference = unit_rows(4 * np.eye(128)[labels] + 0.5 * rng.standard_normal((120, 128)))
    noise = unit_rows(rng.standard_normal((120, 128)))
    naive = noise @ orthogonal_procrustes(noise, reference)[0]
    assert share_beside_own_class(naive, reference, labels) > 0.6
    honest = rotated_onto(reference, noise, groups=np.arange(120) // 2)
    assert share_beside_own_class(honest, reference, labels) == pytest.approx(1 / 3, abs=0.1)


def test_images_of_one_patient_only_are_turned_without_themselves_all_the_same():
    features, _ = separated_blobs(2, 10)
    reference = unit_rows(features)
    alone = rotated_onto(reference, turned(reference), groups=np.zeros(20))
    np.testing.assert_array_equal(alone, rotated_onto(reference, turned(reference)))


@pytest.mark.slow
def test_methods_share_the_plane_that_is_fitted_on_the_reference():
    features, labels = separated_blobs(5, 24)
    wide = np.pad(turned(features), ((0, 0), (0, 4)))
    plane = embed_together({"CE only": wide, "teacher": features}, "teacher", seed=3)
    assert list(plane) == ["CE only", "teacher"]
    np.testing.assert_array_equal(plane["teacher"], umap_embedding(np.pad(features, ((0, 0), (0, 4))), seed=3))
    for label in range(5):
        centres = [points[labels == label].mean(axis=0) for points in (plane["teacher"], plane["CE only"])]
        radius = plane["teacher"][labels == label].std()
        assert np.linalg.norm(centres[0] - centres[1]) < 2 * radius
    assert neighbour_purity(np.concatenate([plane["teacher"], plane["CE only"]]), np.tile(labels, 2)) == 1


def digest_of_shared_plane():
    features, _ = separated_blobs(6, 40)
    blurred = features + 0.05 * np.random.default_rng(1).standard_normal(features.shape)
    plane = embed_together(
        {"teacher": features, "GMCD": turned(blurred)}, "teacher", groups=np.arange(240) // 2, seed=3
    )
    return hashlib.sha256(b"".join(points.tobytes() for points in plane.values())).hexdigest()


@pytest.mark.slow
def test_shared_plane_of_separated_classes_is_the_same_to_the_bit_in_another_process():
    call = "import test_embedding, torch; print(test_embedding.digest_of_shared_plane(), torch.get_num_threads())"
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_NUM_THREADS"}
    other = subprocess.run(
        [sys.executable, "-c", call],
        cwd=Path(__file__).parent,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    digest, n_threads = other.stdout.split()
    assert digest == digest_of_shared_plane() == digest_of_shared_plane()
    assert n_threads == "1", "numba's threads became those of torch"


def test_methods_of_one_plane_need_a_reference_and_the_same_images():
    features, _ = separated_blobs(2, 10)
    with pytest.raises(ParameterError, match='reference = "teacher" is not among the methods KD'):
        embed_together({"KD": features}, "teacher")
    with pytest.raises(DataError, match='"KD" has 19 and the reference "teacher" has 20'):
        embed_together({"teacher": features, "KD": features[1:]}, "teacher")
    with pytest.raises(DataError, match="finite features"):
        embed_together({"teacher": features, "KD": features * np.nan}, "teacher")


def test_quality_of_separated_and_of_mixed_labels():
    features, labels = separated_blobs(3, 20)
    plane = np.random.default_rng(0).standard_normal((60, 2))
    found = quality(features, plane, np.array(["NV", "MEL", "DF"])[labels])
    assert found["silhouette_features"] > 0.95 and found["purity_features"] == 1
    assert found["silhouette_features"] == silhouette_score(unit_rows(features), labels)
    assert abs(found["silhouette_plane"]) < 0.1 and found["purity_plane"] == pytest.approx(1 / 3, abs=0.1)


def test_purity_of_small_groups_can_reach_one():
    features, patients = separated_blobs(8, 4)
    assert quality(features, features[:, :2], patients)["purity_features"] == 1


def test_silhouette_of_one_label_or_of_a_label_a_row_is_unknown():
    features, _ = separated_blobs(2, 5)
    for labels in (np.zeros(10), np.arange(10)):
        found = quality(features, features[:, :2], labels)
        assert np.isnan(found["silhouette_features"]) and np.isnan(found["silhouette_plane"])
