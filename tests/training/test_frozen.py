"""Features of a frozen encoder: computed once, stored by what they depend on, picked by row and view."""

import dataclasses

import numpy as np
import pytest
import torch

from medkd.data.arrays import ArrayImages
from medkd.data.views import GMCD, plain_view
from medkd.errors import ParameterError
from medkd.models.encoders import FeatureHead, build_image_encoder, trunk
from medkd.training import frozen
from medkd.training.frozen import FrozenModality, frozen_features, frozen_head

CPU = torch.device("cpu")
SIZE, N = 16, 7


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture
def weights(tmp_path):
    return save_weights(tmp_path / "conv4.pt", seed=0)


@pytest.fixture
def compute(images, weights, tmp_path):
    """`frozen_features` of the images with a small network; arguments replace its settings."""

    def call(source=None, **changed):
        settings = dict(weights=weights, size=SIZE, augment=GMCD, n_views=2, seed=3, device=CPU, width=0.125)
        settings |= dict(precision="float32", folder=tmp_path / "features") | changed
        return frozen_features(ArrayImages(images) if source is None else source, "conv4", **settings)

    return call


def save_weights(path, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.save(build_image_encoder("conv4", width=0.125).state_dict(), path)
    return path


@pytest.fixture
def passes(monkeypatch):
    """Batches that went through an encoder, one entry a forward pass."""
    counted = []
    build = frozen.trunk

    def counting(*args, **settings):
        module, dim = build(*args, **settings)
        module.register_forward_hook(lambda *_: counted.append(1))
        return module, dim

    monkeypatch.setattr(frozen, "trunk", counting)
    return counted


def test_plain_features_are_those_of_a_direct_forward_pass(compute, images, weights):
    features = compute(batch_size=3)
    assert [(view.shape, view.dtype) for view in features] == [((N, 8), np.float16)] * 3
    backbone, dim = trunk("conv4", weights, width=0.125)
    with torch.no_grad():
        direct = backbone.eval()(plain_view(torch.from_numpy(images)))
    assert dim == 8
    torch.testing.assert_close(torch.from_numpy(features[0]).float(), direct, atol=1e-3, rtol=1e-3)


def test_random_views_differ_and_do_not_depend_on_the_batch_size(compute, tmp_path):
    one = compute(batch_size=3)
    two = compute(batch_size=N, folder=tmp_path / "other")
    assert not np.array_equal(one[1], one[2]) and not np.array_equal(one[0], one[1])
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=2e-3, rtol=2e-3)


def test_a_second_call_runs_no_encoder_and_opens_no_image(compute, images, passes):
    class Closed(ArrayImages):
        def load(self, size):
            raise AssertionError("the images were opened")

    first = compute()
    n_passes = len(passes)
    second = compute(source=Closed(images))
    assert n_passes == 3 and len(passes) == n_passes
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_more_views_are_added_to_those_that_exist(compute, passes):
    first = compute(n_views=1)
    assert len(passes) == 2
    second = compute(n_views=3)
    assert len(passes) == 4
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=False))


def test_an_interrupted_run_keeps_the_views_it_finished(compute, passes, monkeypatch):
    save, saved = frozen._save, []

    def stop_after_two(path, features):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        save(path, features)

    monkeypatch.setattr(frozen, "_save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        compute()
    monkeypatch.setattr(frozen, "_save", save)
    passes.clear()
    assert len(compute()) == 3 and len(passes) == 1


def test_every_setting_that_changes_features_makes_new_ones(compute, images, passes, tmp_path):
    compute()
    other = images.copy()
    other[0] = 255 - other[0]
    plain_too = {
        "weights": {"weights": save_weights(tmp_path / "other.pt", seed=1)},
        "size": {"size": 24},
        "images": {"source": ArrayImages(other)},
    }
    views_only = {"augment": {"augment": dataclasses.replace(GMCD, hue=0.02)}, "seed": {"seed": 4}}
    for name, change in plain_too.items():
        passes.clear()
        compute(**change)
        assert len(passes) == 3, name
    for name, change in views_only.items():
        passes.clear()
        compute(**change)
        assert len(passes) == 2, name


def test_the_same_weights_under_another_name_are_found(compute, passes, weights, tmp_path):
    compute()
    passes.clear()
    copied = tmp_path / "copied.pt"
    copied.write_bytes(weights.read_bytes())
    compute(weights=copied)
    assert not passes


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: np.save(path, np.load(path).astype(np.float32)),
        lambda path: np.save(path, np.load(path)[:-1]),
    ],
    ids=["empty", "truncated", "zeroed", "other dtype", "fewer rows"],
)
def test_a_damaged_view_is_computed_again(compute, passes, tmp_path, damage):
    first = [np.array(view) for view in compute()]
    passes.clear()
    (path,) = (tmp_path / "features").glob("*-view2.npy")
    damage(path)
    again = compute()
    assert len(passes) == 1
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_random_numbers_after_it_do_not_depend_on_what_the_cache_held(compute):
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        compute()
        assert torch.equal(before, torch.get_rng_state())


def test_features_lie_in_the_project_folder_by_default(compute, project):
    compute(folder=None)
    assert len(list((project / "data" / "cache" / "features").glob("*.npy"))) == 3


def test_random_weights_and_negative_views_are_refused(compute):
    with pytest.raises(ParameterError, match="needs pre-trained weights"):
        compute(weights="")
    with pytest.raises(ParameterError, match="n_views=-1"):
        compute(n_views=-1)


def numbered(n_views, n=5):
    """Feature (view, row) holds its own numbers."""
    return [np.stack([np.full(n, view), np.arange(n)], 1).astype(np.float16) for view in range(1 + n_views)]


def test_rows_are_those_asked_for_in_their_order():
    modality = FrozenModality(numbered(3), CPU)
    rows = torch.tensor([4, 0, 4, 2])
    plain = modality.plain(rows)
    assert plain.dtype == torch.float32 and plain.tolist() == [[0, 4], [0, 0], [0, 4], [0, 2]]
    augmented = modality.augmented(rows, torch.Generator().manual_seed(0))
    assert augmented.dtype == torch.float32 and augmented[:, 1].tolist() == rows.tolist()


def test_every_augmented_view_is_picked_about_equally_often_and_the_plain_one_never():
    views = FrozenModality(numbered(3), CPU).augmented(torch.arange(5).repeat(600), torch.Generator().manual_seed(0))
    shares = torch.bincount(views[:, 0].long(), minlength=4) / 3000
    assert shares[0] == 0
    torch.testing.assert_close(shares[1:], torch.full((3,), 1 / 3), atol=0.04, rtol=0)


def test_a_seed_repeats_the_picked_views():
    modality, rows = FrozenModality(numbered(3), CPU), torch.arange(5)
    one, two = (modality.augmented(rows, torch.Generator().manual_seed(1)) for _ in "12")
    assert torch.equal(one, two)


def test_without_views_the_plain_features_are_used():
    modality, rows = FrozenModality(numbered(0), CPU), torch.arange(5)
    assert torch.equal(modality.augmented(rows, torch.Generator()), modality.plain(rows))


def test_head_is_a_feature_head_behind_dropout():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = frozen_head(6, 4, dropout=0.5).eval()
    features = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    assert isinstance(head[1], FeatureHead)
    torch.testing.assert_close(head(features), head[1](features))
    assert head(features).shape == (3, 4) and head(features).min() >= 0


def test_a_part_of_a_source_shares_what_was_computed_for_the_whole(tmp_path, monkeypatch):
    """A choice of classes must not run the encoder again."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    torch.manual_seed(0)
    torch.save(build_image_encoder("resnet12", width=0.125).state_dict(), tmp_path / "trunk.pth")
    settings = {
        "size": 16,
        "augment": GMCD,
        "n_views": 1,
        "seed": 0,
        "device": torch.device("cpu"),
        "width": 0.125,
        "folder": tmp_path,
    }
    source = ArrayImages(pixels)
    whole = frozen_features(source, "resnet12", tmp_path / "trunk.pth", **settings)
    files = set(tmp_path.iterdir())
    part = frozen_features(source.take(np.array([4, 1])), "resnet12", tmp_path / "trunk.pth", **settings)
    assert set(tmp_path.iterdir()) == files
    for one, all_rows in zip(part, whole, strict=True):
        np.testing.assert_array_equal(one, all_rows[[4, 1]])


def test_features_that_lie_on_the_device_are_picked_as_those_that_are_read_view_by_view():
    """What a GPU holds as one tensor a CPU reads from maps; both draw the same views."""
    views = [np.random.default_rng(view).normal(size=(6, 3)).astype(np.float16) for view in range(4)]
    modality, rows = FrozenModality(views, torch.device("cpu")), torch.tensor([4, 0, 0, 5])
    read = modality.augmented(rows, torch.Generator().manual_seed(0))
    modality.stack = torch.stack(modality.views)
    picked = modality.augmented(rows, torch.Generator().manual_seed(0))
    assert picked.dtype == torch.float32 and torch.equal(picked, read)
