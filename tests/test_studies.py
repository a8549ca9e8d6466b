"""The study files in git: each is valid and is what its name says."""

from pathlib import Path

import pytest

from medkd.batch.study import Study, expand, nodes_of
from medkd.stages.distillation import ABLATIONS
from medkd.stages.self_distillation import METHODS
from medkd.training.baselines import BASELINES

FOLDER = Path(__file__).parents[1] / "studies"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_study_file_is_valid_told_in_the_readme_and_ends_in_evaluations(path):
    study = Study.read(path)
    assert study.name == path.stem.replace("_", "-")
    assert f"`{path.name}`" in (FOLDER / "README.md").read_text()
    cells = expand(study)
    nodes, of_cell = nodes_of(cells, {cell.dataset: "fingerprint" for cell in cells})
    assert len(of_cell) == len(cells) == max(1, len(study.cells))
    assert all(nodes[keys[-1]].entry.notebook == "07_evaluation" for keys in of_cell.values())


def test_the_rare_study_compares_all_that_the_journal_compares():
    asked = Study.read(FOLDER / "rare.yaml").parameters
    assert set(asked["self_distillation.methods"]) == set(METHODS) - {"cls", "reg"}
    assert asked["n_tasks"] >= 10 and asked["k_shots"] == [1, 3, 5]


def test_the_distillation_studies_hold_every_baseline_and_ablation_that_works_on_frozen_features():
    asked = Study.read(FOLDER / "distillation.yaml").parameters["distillation.methods"]
    assert set(asked) == {"ce", "gmcd"} | {name for name, baseline in BASELINES.items() if not baseline.maps}
    asked = Study.read(FOLDER / "distillation_ablation.yaml").parameters["distillation.ablations"]
    assert set(asked) == set(ABLATIONS)
