"""Fixtures that every test may use."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from medkd.data.cohort import Cohort

matplotlib.use("Agg")


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder that run store, caches and reports go to."""
    monkeypatch.setenv("MEDKD_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One project folder for the module: stages build on each other's runs as they do in a report."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MEDKD_HOME", str(tmp_path_factory.mktemp("project")))
    yield
    patch.undo()


@pytest.fixture
def lesion_cohort():
    """A function: class -> images, the last two classes rare -> cohort without pictures, two images per lesion."""

    def make(sizes):
        classes = tuple(sizes)
        names = np.repeat(classes, list(sizes.values()))
        table = pd.DataFrame({"id": [f"x{i:03d}" for i in range(len(names))], "class": names})
        table["label"], table["roi"] = [classes.index(name) for name in names], table["id"]
        table["patient"] = [f"L{i // 2}" for i in range(len(names))]
        roles = {"base_classes": classes[:-2], "rare_classes": classes[-2:], "group": "lesion"}
        return Cohort("toy", "Toy", True, classes, table, {}, **roles)

    return make
