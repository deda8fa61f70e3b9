"""What all tests share: where real images are, and quiet, bounded machinery."""

import os
import re
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import pytest
from hypothesis import settings

settings.register_profile("premed", deadline=None, derandomize=True)  # no clocks, and the same examples for everybody
settings.load_profile("premed")

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("PREMED_DATA") or REPOSITORY.parent / "shared" / "data")


def locked(package: str) -> str:
    """The version that constraints.txt has of it."""
    (version,) = re.findall(rf"^{package}==(\S+)", (REPOSITORY / "constraints.txt").read_text(), re.M)
    return version


@pytest.fixture(scope="session")
def real() -> Callable[[str], Path]:
    """A folder of real images by name; the test is skipped, by name, where it is absent."""

    def find(folder: str) -> Path:
        path = REAL_DATA / folder
        if not path.is_dir():
            pytest.skip(f"real images: {folder} is not at {REAL_DATA}")
        return path

    return find


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Golden numbers and bitwise equality are stated for one thread."""
    import torch

    torch.set_num_threads(1)
