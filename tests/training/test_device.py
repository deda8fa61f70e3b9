"""training/device.py: the precision of a training, and how it uses memory."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.tasks import ask_for_too_much_memory, refused

from premed.config.settings import Train
from premed.execution.connection import MALLOC
from premed.training.device import (
    explain_out_of_memory,
    forget_peak_memory,
    keep_freed_memory,
    peak_memory_mb,
    precision_of,
)

BLOCK = 2**24  # float32: 64 MiB


def page_faults(times: int) -> int:
    """How many pages the kernel hands out while so many blocks are made and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.zeros(BLOCK).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.parametrize(
    ("amx", "avx512", "fastest"),
    [(False, False, torch.float32), (False, True, torch.bfloat16), (True, False, torch.bfloat16)],
)
def test_auto_is_bf16_on_a_cpu_that_multiplies_in_it(monkeypatch, amx, avx512, fastest):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert precision_of(Train()) == fastest
    assert precision_of(Train(precision="fp32")) == torch.float32
    assert precision_of(Train(precision="bf16")) == torch.bfloat16


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has these settings")
def test_a_training_s_steps_take_their_memory_once_and_a_new_stage_begins_with_none_of_it():
    keep_freed_memory()
    # 131,072 otherwise, 16,384 for each block; a small array between two blocks may cost one its place
    assert min(page_faults(8) for _ in range(4)) < 40_000
    peak = peak_memory_mb(torch.device("cpu"))
    forget_peak_memory()
    assert peak_memory_mb(torch.device("cpu")) < peak - 50  # the block's 64, which were kept until now


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HELD = """
import sys, threading, torch, resource
from premed.training.device import keep_freed_memory
keep_freed_memory()
def work():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.zeros(2**24) for _ in range(4)]
        rollup = open("/proc/self/smaps_rollup").read()
        del blocks
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, rollup.split("AnonHugePages:")[1].split()[0])
if "thread" in sys.argv:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
else:
    work()
"""


@pytest.mark.skipif(not HUGE.exists() or "[never]" in HUGE.read_text(), reason="this kernel makes no huge pages")
@pytest.mark.parametrize(("where", "env"), [("main", {}), ("thread", MALLOC)])
def test_what_a_step_takes_is_in_huge_pages_and_is_kept_in_a_worker_s_thread_too(where, env):
    command = [sys.executable, "-c", HELD, where]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=True)
    faults, kilobytes = map(int, done.stdout.split())
    assert faults < 8_000 and kilobytes > 128 * 1024  # of 65,536 pages, and of 256 MB


def too_large(sizes, couples_batch=False, error=None):
    """A step of micro-batches of these sizes that asks for more than any machine has, or raises `error`."""
    with explain_out_of_memory(torch.device("cpu"), sizes, couples_batch):
        if error is not None:
            raise error
        ask_for_too_much_memory()


def test_a_step_that_does_not_fit_in_memory_is_told_with_what_to_set():
    refused(lambda: too_large([64]), "train.accumulate", "a step of 64 images", "set train.accumulate=2,")
    refused(lambda: too_large([16, 16, 15, 15]), "a step of 16 images", "set train.accumulate=8,")
    refused(lambda: too_large([1, 1]), "a step of 1 image at a time", "set a smaller roi or a smaller network")
    refused(lambda: too_large([64], couples_batch=True), "couples them", "set a smaller batch or roi")
    refused(lambda: too_large([2], error=torch.OutOfMemoryError("CUDA out of memory")), "set train.accumulate=2,")
    with pytest.raises(RuntimeError, match="shapes"):
        too_large([2], error=RuntimeError("shapes do not match"))
