"""Evaluation of a network: rows of scores over all ranks, a bootstrap interval, and what a pre-training came to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from premed.contracts import Objective, Row, Sample
from premed.distributed import all_gather, rank_and_world
from premed.rng import fold, key, uniform

GATE_SHARE = 0.95
"""A pre-training passes its gate when its validation loss is below this share of it."""
UNIFORM_ENTROPY, SAME_ANSWER = 0.98, 0.95
"""A teacher has collapsed when its answers have this share of the largest entropy, or this share of images has one."""
AnyRow = TypeVar("AnyRow", bound=Mapping[str, Any])


@torch.no_grad()
def evaluate(objective: Objective, samples: Sequence[Sample], precision: torch.dtype) -> list[Row]:
    """`objective.measure` of all samples: one row each, in their order, on every rank. Each rank measures its share."""
    rank, world = rank_and_world()
    training = objective.training
    objective.eval()
    device, mine = next(objective.parameters()).device, samples[rank::world]
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        measured = objective.measure(mine) if len(mine) else []
    objective.train(training)
    rows: list[Row] = [{}] * len(samples)
    for first, share in enumerate(all_gather(measured)):  # by place: two data sets may have cases of one name
        rows[first::world] = share
    return rows


def bootstrap_interval(
    rows: Sequence[AnyRow],
    statistic: Callable[[list[AnyRow]], float],
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of `statistic(rows)` when patients (`row["patient"]`) are drawn with replacement, not images.

    `statistic` returns NaN where it is undefined: such resamples are skipped, and if they are more than half, or there
    are no rows, the interval is (NaN, NaN). The order of `rows` does not matter.
    """
    patients: dict[str, list[AnyRow]] = {}
    for row in rows:
        patients.setdefault(str(row["patient"]), []).append(row)
    groups = [patients[name] for name in sorted(patients)]
    keys = fold(np.full(resamples, key(seed, "bootstrap"), np.int64), np.arange(resamples))
    values = np.full(resamples, np.nan)
    for number in range(resamples if groups else 0):
        indices = (uniform(keys[number], len(groups)).astype(np.float64) * len(groups)).astype(np.intp)
        values[number] = statistic([row for pick in indices for row in groups[pick]])
    values = values[~np.isnan(values)]
    if 2 * len(values) < resamples:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def passed_gate(summary: dict[str, float]) -> dict[str, Any] | None:
    """A pre-training's loss, its gate (the loss of a predictor without a network), and whether it passed.

    `below`: by which share of the gate. None for stages without a gate.
    """
    if "gate" not in summary:
        return None
    # a gate of 0: all images are alike, and there is nothing to learn beyond it
    share = summary["loss"] / summary["gate"] if summary["gate"] > 0 else 1.0
    return {"loss": summary["loss"], "gate": summary["gate"], "below": 1 - share, "passed": share < GATE_SHARE}


def collapsed(summary: dict[str, float]) -> dict[str, Any] | None:
    """How a self-distillation collapsed: into `uniform` answers, or into `one` for all images; None if it did not.

    summary: `entropy` of the answers as a share of the largest possible, `same`: the share of images with the most
    frequent answer.
    """
    if "entropy" not in summary or "same" not in summary:
        return None
    into = "uniform" if summary["entropy"] > UNIFORM_ENTROPY else "one" if summary["same"] > SAME_ANSWER else None
    return into and {"into": into, "entropy": summary["entropy"], "same": summary["same"]}
