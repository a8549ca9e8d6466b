"""Fixtures of the stage tests."""

import pytest


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One project folder for the module: stages build on each other's runs as they do in a report."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MEDKD_HOME", str(tmp_path_factory.mktemp("project")))
    yield
    patch.undo()
