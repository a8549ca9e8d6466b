import dataclasses

import pytest

from medkd.data import registry
from medkd.data.phantoms import PHANTOMS
from medkd.errors import DataError, ParameterError


@pytest.fixture
def phantoms(monkeypatch, make_cohort):
    """Stand-in generators, so that these tests draw no simulated images."""

    def make(*, n_patients: int = 3):
        return make_cohort(["a"] * n_patients, [str(i) for i in range(n_patients)])

    for name in PHANTOMS:
        monkeypatch.setitem(registry._ENTRIES, name, dataclasses.replace(registry._ENTRIES[name], load=make))


def test_names_are_listed_with_the_chain_they_serve():
    chains = {name: registry.chain_of(name) for name in registry.cohort_names() if name != "own"}
    assert chains == {
        "phantom-glioma": "teacher-student",
        "phantom-glioma-600": "teacher-student",
        "phantom-paired-skin": "teacher-student",
        "phantom-rare-skin": "rare",
        "isic2018": "rare",
        "ham10000": "rare",
        "dermamnist": "rare",
        "milk10k": "teacher-student",
        "milk10k-5": "teacher-student",
        "derm7pt": "teacher-student",
        "pad-ufes-20": "teacher-student",
        "tcga-gbmlgg": "vector",
        "tcga-gbmlgg-pathomic": "teacher-student",
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
    with pytest.raises(DataError, match="milk10k needs root, .*`medkd data fetch milk10k` gets them"):
        registry.load_cohort("milk10k")
    with pytest.raises(DataError, match="phantom-glioma is simulated and reads no files"):
        registry.load_cohort("phantom-glioma", str(tmp_path))


def test_every_generator_is_registered():
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
