"""Rows of the device: what it reaches, whether a step waits for it, what determinism and `train.compile` change."""

import time
import warnings
from pathlib import Path

import torch

from premed.benchmarks import steps
from premed.benchmarks.floors import copy_rate, matmul_rate
from premed.benchmarks.gpu.context import Context, sheet_rate, tf32
from premed.benchmarks.gpu.resume import deterministic, no_algorithm
from premed.benchmarks.gpu.throughput import PRECISION, Running, largest
from premed.benchmarks.gpu.trainings import PRECISIONS, full, small
from premed.data.samplers import EpochSampler
from premed.training.compiling import compiling

STEPS = 3


def rates(context: Context) -> None:
    """Matrix products and copies, of which the shares of other rows are."""
    settings = context.settings
    for precision in (torch.bfloat16, torch.float32):
        reached, sheet = context.rate(precision), None
        sheet = sheet_rate(context.report.machine.get("gpu", "")) if precision == torch.bfloat16 else None
        of_sheet = f"; its data sheet says {sheet / 1e12:.0f}" if sheet else ""
        found = f"{reached / 1e12:.4g} TFLOP/s{of_sheet}"
        context.line(f"{PRECISIONS[precision]} products", "measured", found, tflops=reached / 1e12)
    if context.on_gpu:
        with tf32(True):
            reached = matmul_rate(settings, torch.float32)
        context.line("TF32 products", "measured", f"{reached / 1e12:.4g} TFLOP/s", tflops=reached / 1e12)
    copied = copy_rate(settings)
    context.line("copies", "measured", f"{copied / 1e9:.4g} GB/s, read and written", gb_per_second=copied / 1e9)


def syncs(context: Context) -> None:
    """Whether premed's loop waits for the GPU within a step: the CPU should be steps ahead."""
    for training in small():
        of = f"{training.name}, {PRECISIONS[PRECISION]}"
        if not context.on_gpu:
            context.line(of, "not measured", "torch tells such waits for CUDA alone")
            continue
        with context.guarded(of):
            places = waits(largest(context, training))
            found = f"waits in {', '.join(sorted(places))}" if places else f"{STEPS} steps without one"
            context.line(of, "failed" if places else "passed", found)


def waits(running: Running) -> set[str]:
    """The lines of code at which the loop waits for the GPU."""
    plan = EpochSampler(running.training.batch, running.training.batch, STEPS, 0, "bench")
    running.context.settings.finish()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            running.fit(running.source, plan, steps.ignore)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {f"{Path(each.filename).name}:{each.lineno}" for each in told if "synchroniz" in str(each.message)}


def deterministic_cost(context: Context) -> None:
    """Milliseconds of a step with deterministic algorithms beside those with the ones that premed uses."""
    for training in full(context):
        of = f"{training.name}, {PRECISIONS[PRECISION]}"
        with context.guarded(of):
            running = largest(context, training)
            usual = milliseconds(running)
            try:
                with deterministic():
                    exact = milliseconds(running)
            except RuntimeError as error:
                found = f"{usual:.3g} ms a step; impossible with deterministic algorithms: {no_algorithm(error)}"
                context.line(of, "measured", found, step_ms=usual)
            else:
                found = f"{exact:.3g} ms a step with deterministic algorithms, {usual:.3g} ms with the usual ones"
                context.line(of, "measured", found, step_ms=usual, deterministic_ms=exact)
            del running


def compiled(context: Context) -> None:
    """The step of each network as it is, and with its blocks compiled, as `train.compile` does it."""
    if not context.on_gpu:
        context.line("", "not measured", "it is about GPUs; on a CPU it takes minutes")
        return
    for training in full(context):
        of = f"{training.name}, {PRECISIONS[PRECISION]}"
        with context.guarded(of):
            running = largest(context, training)
            usual, began = milliseconds(running), time.perf_counter()
            with compiling(running.objective, True):
                running.steps(STEPS)
                took = time.perf_counter() - began
                faster = milliseconds(running)
            found = f"{faster:.3g} ms a step compiled, {usual:.3g} ms as it is; to compile took {took:.0f} s"
            context.line(of, "measured", found, step_ms=usual, compiled_ms=faster, compile_seconds=took)
            del running


def milliseconds(running: Running) -> float:
    """Of a step, over some after some others."""
    running.steps(STEPS)
    return 1000 * running.steps(2 * STEPS) / (2 * STEPS)
