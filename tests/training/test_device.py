"""training/device.py: how a training uses memory."""

import resource
import sys

import pytest
import torch

from premed.training.device import forget_peak_memory, keep_freed_memory, peak_memory_mb

BLOCK = 2**24  # float32: 64 MiB


def page_faults(times: int) -> int:
    """How many pages the kernel hands out while so many blocks are made and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.zeros(BLOCK).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has these settings")
def test_a_training_s_steps_take_their_memory_once_and_a_new_stage_begins_with_none_of_it():
    keep_freed_memory()
    # 131,072 otherwise, 16,384 for each block; a small array between two blocks may cost one its place
    assert min(page_faults(8) for _ in range(4)) < 40_000
    peak = peak_memory_mb(torch.device("cpu"))
    forget_peak_memory()
    assert peak_memory_mb(torch.device("cpu")) < peak - 50  # the block's 64, which were kept until now
