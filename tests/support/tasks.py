"""What tests of tasks share."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from premed.contracts import Case, Sample
from premed.data.cache import Cache
from premed.errors import UserError

PARTS = ("train", "val", "test")


def names(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


def samples(task, cases: list[Case], cache: Path) -> list[Sample]:
    return [Sample(*pair) for pair in zip(cases, Cache(cache).prepare(cases, task.preprocessing), strict=True)]


def refused(call, *words: str) -> None:
    """One line that holds all of `words`."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def ask_for_too_much_memory() -> None:
    """Raises what torch raises of a CPU. In a thread, since malloc serves one that it refused something otherwise."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(torch.empty, 2**50).result()


def check_parts(task) -> None:
    """Disjoint by patient; pre-training sees no label, and nobody of val or test."""
    patients = {part: {case.patient for case in task.split(part)} for part in PARTS}
    assert all(patients.values())
    assert not patients["train"] & patients["val"]
    assert not patients["test"] & (patients["train"] | patients["val"])
    assert all(case.label is None for case in task.images())
    assert not {case.patient for case in task.images()} & (patients["val"] | patients["test"])
    assert set(names(task.split("train"))) <= set(names(task.images()))
