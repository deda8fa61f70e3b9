"""Runs to plan from, in memory."""

import numpy as np
import pytest
from support.comparing import add
from support.memory_store import MemoryStore


@pytest.fixture
def store(tmp_path):
    return MemoryStore(tmp_path / "runs")


def dice(value, seed, num=12, spread=0.05, noise=0.02):
    """Rows of a segmentation: a Dice of `value`, patients that differ by `spread` whatever the seed, and noise."""
    patients = spread * np.random.default_rng(1).standard_normal(num)
    scores = np.clip(value + patients + noise * np.random.default_rng([7, round(seed)]).standard_normal(num), 0, 1)
    about = {"hd95/organ": 5.0, "state/organ": "both"}
    return [{"case": f"v{i}", "patient": f"p{i}", "dice/organ": float(score)} | about for i, score in enumerate(scores)]


@pytest.fixture
def put(store):
    """Adds an experiment of a segmentation."""

    def put(strategy, seed, value, noise_seed=None, num=12, **more):
        rows = dice(value, 100 * (strategy != "none") + seed if noise_seed is None else noise_seed, num)
        return add(store, strategy, seed, rows, score="dice", **more)

    return put


@pytest.fixture
def varied(store, put):
    """Four seeds of `none`, and of `mae` a pre-training for each."""
    for seed in range(4):
        put("none", seed, 0.6)
        put("mae", seed, 0.62 + 0.01 * seed, pretrain_seed=seed)
    return store


@pytest.fixture
def shared(store, put):
    """Four seeds of `none`, and of `mae` on one pre-training."""
    for seed in range(4):
        put("none", seed, 0.6)
        put("mae", seed, 0.62 + 0.01 * seed)
    return store
