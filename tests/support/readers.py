"""What tests of the readers share."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from premed.data.io.readers import read_image
from premed.errors import UserError

rng = np.random.default_rng(0)


def shipped(name: str) -> Path:
    """One of pydicom's own test files, of those that come with the package."""
    path = get_testdata_file(name, download=False)
    assert path is not None, name
    return Path(path)


def refused(path: Path, *words: str, shown: bool = False) -> None:
    with pytest.raises(UserError) as caught:
        read_image(path, shown)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def refused_cheaply(path: Path, *words: str) -> None:
    """Before 16 MB are taken."""
    tracemalloc.start()
    try:
        refused(path, *words)
        assert tracemalloc.get_traced_memory()[1] < 16e6
    finally:
        tracemalloc.stop()
