"""Fixtures of the widgets."""

import pytest


@pytest.fixture
def interactive(monkeypatch):
    """A kernel of JupyterLab, with somebody to use a widget."""
    monkeypatch.delenv("MEDKD_HEADLESS", raising=False)
    monkeypatch.setenv("JPY_SESSION_NAME", "x")
