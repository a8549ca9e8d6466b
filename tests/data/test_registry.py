import dataclasses
import sys
import types

import numpy as np
import pytest

from medkd.data import registry
from medkd.data.folds import Split
from medkd.data.images import FileImages
from medkd.errors import DataError, ParameterError


@pytest.fixture
def phantoms(monkeypatch, make_cohort):
    """Stand-in generators, so that these tests draw no simulated images."""

    def make(*, n_patients: int = 3):
        return make_cohort(["a"] * n_patients, [str(i) for i in range(n_patients)])

    module = types.ModuleType("medkd.data.phantoms")
    module.PHANTOMS = dict.fromkeys(("phantom-glioma", "phantom-paired-skin", "phantom-rare-skin"), make)
    monkeypatch.setitem(sys.modules, "medkd.data.phantoms", module)


def test_names_are_listed_with_the_chain_they_serve():
    chains = {name: registry.chain_of(name) for name in registry.cohort_names()}
    assert chains == {
        "phantom-glioma": "teacher-student",
        "phantom-glioma-600": "teacher-student",
        "phantom-paired-skin": "teacher-student",
        "phantom-rare-skin": "rare",
        "isic2018": "rare",
        "milk10k": "teacher-student",
        "milk10k-5": "teacher-student",
        "tcga-gbmlgg": "vector",
    }


@pytest.mark.parametrize("name", registry.cohort_names())
def test_descriptions_are_complete_and_agree_on_the_root(name):
    about = registry.describe(name)
    assert about["needs_root"] is not name.startswith("phantom-")
    assert all(about[field] for field in ("title", "chain", "licence", "source"))


def test_an_unknown_name_tells_the_nearest():
    for function in (registry.describe, registry.chain_of, registry.load_cohort):
        with pytest.raises(DataError, match='no cohort "isic2081"; did you mean "isic2018"'):
            function("isic2081")


def test_real_cohorts_need_a_root_and_phantoms_refuse_one(phantoms, tmp_path):
    with pytest.raises(DataError, match="milk10k needs root, .* get them from https://"):
        registry.load_cohort("milk10k")
    with pytest.raises(DataError, match="phantom-glioma is simulated and reads no files"):
        registry.load_cohort("phantom-glioma", str(tmp_path))


def test_every_generator_is_registered():
    from medkd.data.phantoms import PHANTOMS

    assert set(PHANTOMS) == {name for name in registry.cohort_names() if not registry.describe(name)["needs_root"]}


def test_settings_reach_the_generator_and_unknown_ones_are_refused(phantoms):
    assert len(registry.load_cohort("phantom-glioma", n_patients=5)) == 5
    with pytest.raises(ParameterError, match="phantom-glioma has no setting n_patient; known are n_patients"):
        registry.load_cohort("phantom-glioma", n_patient=5)


def test_real_cohorts_are_read_from_their_root(isic_folder, milk_folder, tmp_path):
    isic = registry.load_cohort("isic2018", str(isic_folder), cache_dir=tmp_path / "cache")
    assert (isic.name, len(isic)) == ("isic2018", 9)
    assert len(registry.load_cohort("milk10k", str(milk_folder))) == 4
    five = registry.load_cohort("milk10k-5", str(milk_folder))
    assert (five.name, len(five), len(five.classes)) == ("milk10k-5", 3, 5)
    with pytest.raises(ParameterError, match="milk10k-5 has no setting classes; known are cache_dir"):
        registry.load_cohort("milk10k-5", str(milk_folder), classes=("NV", "BCC"))


def test_summary_counts_images_and_lesions_by_class(isic_folder):
    summary = registry.summary(registry.load_cohort("isic2018", str(isic_folder))).set_index("class")
    assert summary.index.tolist() == ["NV", "MEL", "BKL", "BCC", "AKIEC", "VASC", "DF"]
    assert summary["n_samples"].tolist() == [2, 1, 1, 1, 1, 1, 2]
    assert summary["n_groups"].tolist() == [1, 1, 1, 1, 1, 1, 1]
    assert summary["role"].tolist() == ["base"] * 4 + ["rare"] * 3


def test_check_finds_nothing_in_a_clean_cohort(make_cohort, image_folder, tmp_path):
    images = FileImages(
        ["a.jpg", "b.png", "sub/c.jpg", "d.png", "e.png"], root=image_folder, cache_dir=tmp_path / "cache"
    )
    cohort = make_cohort(["a"] * 5, ["p", "q", "r", "s", "t"], images=images)
    assert registry.check(cohort, n_folds=2, val_fraction=0.5) == []


def test_check_finds_one_file_under_two_lesions_but_not_twice_under_one(make_cohort, image_folder, tmp_path):
    (image_folder / "d.png").write_bytes((image_folder / "b.png").read_bytes())
    images = FileImages(
        ["a.jpg", "b.png", "sub/c.jpg", "d.png", "e.png"], root=image_folder, cache_dir=tmp_path / "cache"
    )
    apart = make_cohort(["a"] * 5, ["p", "q", "r", "s", "t"], images=images)
    findings = registry.check(apart, n_folds=2, val_fraction=0.5)
    assert len(findings) == 1
    assert "one photo image file is filed under several lesions, q = s" in findings[0]
    together = make_cohort(["a"] * 5, ["p", "q", "r", "q", "t"], images=images)
    assert registry.check(together, n_folds=2, val_fraction=0.5) == []


def test_check_reports_folds_that_leak(make_cohort, monkeypatch):
    """A division that ignores the lesions, planted in place of the real one."""
    planted = Split(train=np.array([0, 2]), val=np.array([4, 5]), test=np.array([1, 3]))
    monkeypatch.setattr(registry, "split_rows", lambda cohort, **settings: planted)
    findings = registry.check(make_cohort(["a"] * 6, list("ppqqrr")), n_folds=2)
    assert [finding[:33] for finding in findings] == [f"fold {i}: lesions p, q have samples" for i in range(2)]


def test_check_says_when_lesion_ids_are_not_there(make_cohort):
    cohort = dataclasses.replace(make_cohort(["a"] * 8, list("pqrstuvw")), group="image")
    findings = registry.check(cohort, n_folds=2, val_fraction=0.5)
    assert len(findings) == 1
    assert "without lesion ids" in findings[0]


@pytest.mark.slow
@pytest.mark.parametrize("name, folder", [("isic2018", "isic2018_task3_128"), ("milk10k-5", "milk10k_128")])
def test_real_sets_file_no_image_under_two_lesions(name, folder, real_folder, tmp_path):
    cohort = registry.load_cohort(name, str(real_folder(folder)), cache_dir=tmp_path)
    assert registry.check(cohort, n_folds=2, val_fraction=0.5) == []
