"""Runs to compare, in memory."""

import pytest
from support.comparing import add, xrays
from support.memory_store import MemoryStore


@pytest.fixture
def store(tmp_path):
    return MemoryStore(tmp_path / "runs")


@pytest.fixture
def trained(store):
    """Three seeds of `none` and of `mae`."""
    for seed in range(3):
        add(store, "none", seed)
        add(store, "mae", seed, xrays(2.5, seed))
    return store
