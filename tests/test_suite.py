"""What the suite promises of itself: make test is short, and what is made for all tests is made once."""

import conftest
import pytest
from conftest import PATIENCE, WORK, refuse_long


def too_long(work, clock):
    with pytest.raises(pytest.fail.Exception, match="make it shorter or mark it slow"):
        refuse_long(work, clock)


def test_a_test_that_takes_long_must_be_marked_as_slow():
    too_long(WORK + 1, WORK + 1)
    too_long(1, PATIENCE + 1)
    refuse_long(WORK - 1, PATIENCE - 1)  # on a busy machine


def test_what_a_test_took_is_measured_in_seconds_of_cpu(monkeypatch):
    before = conftest.spent()
    sum(i * i for i in range(10**6))
    with monkeypatch.context() as patch, pytest.raises(pytest.fail.Exception):
        patch.setattr(conftest, "WORK", 1e-4)
        refuse_long(*(now - then for now, then in zip(conftest.spent(), before, strict=True)))


def test_a_shared_folder_is_filled_once_and_again_where_that_failed(shared, request):
    filled = []

    def fill(folder):
        filled.append(folder)
        (folder / "a").write_text("1")
        if len(filled) == 1:
            raise OSError("full")

    name = f"of {request.node.name}"
    with pytest.raises(OSError, match="full"):
        shared(name, fill)
    assert [(shared(name, fill) / "a").read_text() for _ in range(2)] == ["1", "1"] and len(filled) == 2
