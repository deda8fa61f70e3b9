"""Row memory: a step that does not fit is told with the mend, and the mend mends it."""

import gc
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from premed.benchmarks import steps
from premed.benchmarks.gpu.context import Context
from premed.benchmarks.gpu.trainings import InMemory, full, train
from premed.errors import UserError
from premed.training.device import forget_peak_memory
from premed.training.optimizer import make_optimizer

PARTS = 16  # micro-batches that fit where the whole step does not
CLOSE = 1e-4  # of the loss, between a step and the same one in parts
IMAGES = 64  # of a step on a GPU: enough to see it, and soon done
IMAGES_ON_CPU = 128  # what malloc keeps of freed memory is there for a step, beyond the limit: up to 100 MB were seen


def memory(context: Context) -> None:
    """The memory is limited to what a step in parts takes and a little more, which the whole step goes beyond."""
    training = full(context)[0].of_batch(IMAGES if context.on_gpu else IMAGES_ON_CPU)
    of = f"{training.name}, fp32, {training.batch} images a step"
    objective, source = training.build(context.device), InMemory(training, training.batch, context.device)
    optimizer = make_optimizer(objective, steps.BETAS)
    before = {name: each.clone() for name, each in objective.state_dict().items()}

    def step(accumulate: int) -> float:
        objective.load_state_dict(before)
        options: Any = {"optimizer": optimizer, "accumulate": accumulate}
        (loss,) = train(objective, source, training.batch, num_steps=1, **options)
        return loss

    step(PARTS)  # the optimizer's states come with it
    own = own_memory(context, lambda: step(PARTS))
    told = refused(context, own, lambda: step(1))
    if told is None:
        context.line(of, "failed", f"a step in one part ran in the {own / 2**30:.2f} GiB of one in {PARTS}")
        return
    with limited(context, own):
        mended = step(PARTS)
    off = abs(step(1) - mended) / abs(mended)
    context.line(
        of,
        "passed" if "set train.accumulate=2" in told and off <= CLOSE else "failed",
        f"with {own / 2**30:.2f} GiB to spare beside {PARTS} parts: {told}. In {PARTS} parts it trained in them, "
        f"the loss that of the whole step (apart by {off:.0e})",
        parts_gib=own / 2**30,
    )


def own_memory(context: Context, work: Callable[[], Any]) -> float:
    """Bytes that `work` takes at most beyond those that are held before it."""
    forget_peak_memory()
    if not context.on_gpu:
        before = status("VmRSS")
        work()
        return status("VmHWM") - before
    before = torch.cuda.memory_allocated(context.device)
    work()
    context.settings.finish()
    return torch.cuda.max_memory_allocated(context.device) - before


def refused(context: Context, more: float, work: Callable[[], Any]) -> str | None:
    """What is told where `work` does not fit within the limit; None if it fits."""
    try:
        with limited(context, more):
            work()
    except UserError as error:
        return str(error)
    finally:
        gc.collect()  # what the failed step held
    return None


@contextmanager
def limited(context: Context, more: float) -> Iterator[None]:
    """A context in which this process gets at most so many bytes more than it had at most until now.

    Of the GPU, or of data (Linux' RLIMIT_DATA) without one, where freed memory counts as the process's.
    """
    if context.on_gpu:
        most = torch.cuda.max_memory_reserved(context.device) + more
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(context.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(most / total, 1.0), context.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, context.device)
        return
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(status("VmData") + more), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


def status(name: str) -> float:
    """Bytes of this process, by Linux's name of them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])
