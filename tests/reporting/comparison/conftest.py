"""Runs to compare, in memory."""

import gc

import pytest
from support.comparing import add, xrays
from support.memory_store import MemoryStore


@pytest.fixture(autouse=True)
def uncollected(monkeypatch):
    """statsmodels' Holm collects the whole process's garbage at each call, longer than all that a comparison does."""
    monkeypatch.setattr(gc, "collect", lambda *generation: 0)


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
