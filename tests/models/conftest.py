"""Fixtures of the models."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    """Initial weights and dropout draw from torch's default generator; leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
