"""Evaluation: rows of scores from all ranks, bootstrap intervals, and the gate and collapse of a pre-training."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from premed.config.settings import GATE_SHARE
from premed.contracts import Objective, Row, Sample
from premed.distributed import all_gather, rank_and_world
from premed.rng import fold, key, uniform

COUNTS = 1 << 22
"""Numbers of rows times resamples that are held at once: 32 MB an array."""
UNIFORM_ENTROPY, SAME_OUTPUT = 0.98, 0.95
"""A teacher has collapsed if its outputs have more than this share of the largest entropy, or if more than this share
of the images get the same output."""


@torch.no_grad()
def evaluate(objective: Objective, samples: Sequence[Sample], precision: torch.dtype) -> list[Row]:
    """Returns `objective.measure` of all samples, in their order, on every rank. Each rank measures its share."""
    rank, world = rank_and_world()
    training = objective.training
    objective.eval()
    device, mine = next(objective.parameters()).device, samples[rank::world]
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        measured = objective.measure(mine) if len(mine) else []
    objective.train(training)
    rows: list[Row] = [{}] * len(samples)
    for first, share in enumerate(all_gather(measured)):  # by index: two data sets may have cases of the same name
        rows[first::world] = share
    return rows


def bootstrap_interval(
    rows: Sequence[Row],
    resampled: Callable[[Sequence[Row], np.ndarray], np.ndarray],
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap percentile interval of a score of `rows`: resamples patients (`row["patient"]`), not images.

    resampled: see `Task.resampled`. It is NaN where undefined: such resamples are skipped, and if they are more than
    half, or if there are fewer than two patients, the interval is (NaN, NaN). The order of `rows` does not matter.
    """
    names, patient_of = np.unique([str(row["patient"]) for row in rows], return_inverse=True)
    if len(names) < 2:  # one patient says nothing of others
        return float("nan"), float("nan")
    keys = fold(np.full(resamples, key(seed, "bootstrap"), np.int64), np.arange(resamples))
    values = np.empty(resamples)
    at_once = max(1, COUNTS // len(rows))
    for some in (slice(first, first + at_once) for first in range(0, resamples, at_once)):
        draws = np.array([uniform(each, len(names)) for each in keys[some]], np.float64)
        picks = (draws * len(names)).astype(np.intp)
        patients = np.array([np.bincount(each, minlength=len(names)) for each in picks])
        values[some] = resampled(rows, patients[:, patient_of])
    values = values[~np.isnan(values)]
    if 2 * len(values) < resamples:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def passed_gate(summary: dict[str, float]) -> dict[str, Any] | None:
    """Returns a pre-training's loss, its gate (the loss of a predictor without a network), and whether it passed.

    `below`: how far the loss is below the gate, as a share of it. None for stages without a gate.
    """
    if "gate" not in summary:
        return None
    # a gate of 0: the predictor without a network is perfect, and nothing is left to learn
    share = summary["loss"] / summary["gate"] if summary["gate"] > 0 else 1.0
    return {"loss": summary["loss"], "gate": summary["gate"], "below": 1 - share, "passed": share < GATE_SHARE}


def collapsed(summary: dict[str, float]) -> dict[str, Any] | None:
    """Returns how a self-distillation collapsed: to `uniform` outputs, or to `one` for all images; None if it did not.

    summary: `entropy` of the outputs as a share of the largest possible; `same`: the share of images with the most
    frequent output.
    """
    if "entropy" not in summary or "same" not in summary:
        return None
    into = "uniform" if summary["entropy"] > UNIFORM_ENTROPY else "one" if summary["same"] > SAME_OUTPUT else None
    return into and {"into": into, "entropy": summary["entropy"], "same": summary["same"]}
