"""Fixtures that every test may use."""

import matplotlib
import pytest
import torch

matplotlib.use("Agg")


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder that run store, caches and reports go to."""
    monkeypatch.setenv("MEDKD_HOME", str(tmp_path))
    return tmp_path
