"""Runs to compare, in memory."""

import gc

import pytest
from support.comparing import add, xrays
from support.folds import FOLDS, add_fold
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


@pytest.fixture
def folded(store):
    """Three seeds of `none` and `mae` in three folds; mae's pre-training has the seed of its fine-tuning."""
    for seed in range(3):
        for fold in range(FOLDS):
            number = 10 * seed + fold
            add_fold(store, "none", seed, fold, xrays(1, number))
            add_fold(store, "mae", seed, fold, xrays(2.5, number), pretrain_seed=seed)
    return store
