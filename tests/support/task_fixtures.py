"""Fixtures of the tests of tasks: a small chest and a small Decathlon folder."""

from pathlib import Path

import pytest

from premed.data.phantoms.writers import write_chestxray14, write_msd
from premed.tasks import chestxray14, msd


@pytest.fixture(scope="module")
def nih(tmp_path_factory) -> Path:
    return write_chestxray14(tmp_path_factory.mktemp("nih"), num_patients=16, seed=1, size=32)


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory) -> Path:
    return write_msd(tmp_path_factory.mktemp("msd"), num_cases=20, seed=1, num_unlabelled=2, shape=(12, 16, 14))


def chest(root: Path, **settings) -> chestxray14.ChestXray14:
    return chestxray14.build(chestxray14.Config(root=root, **{"size": 32, "stored": 32} | settings))


def brain(root: Path, **settings) -> msd.MSD:
    return msd.build(msd.Config(root=root, **{"roi": (16, 16, 16)} | settings))
