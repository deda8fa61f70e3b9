"""The calibration of a comparison's arms, from the probabilities that their runs stored."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from premed.reporting.calibration import Error, calibration_errors, reliability
from premed.reporting.comparison.grouping import Arm, Block
from premed.reporting.comparison.result import (
    ArmResult,
    BlockResult,
    CalibrationError,
    CalibrationResult,
    ReliabilityPoint,
)
from premed.reporting.comparison.scores import ScoreTable

KINDS = {True: "likeliest class", False: "each class"}


def with_calibration(result: BlockResult, block: Block, tables: Mapping[str, ScoreTable]) -> BlockResult:
    """The block with the calibration of each of its arms."""
    arms = {(arm.label, arm.fraction): arm for arm in block.arms}
    rows = [calibrated(row, arms[row.label, row.label_fraction], tables) for row in result.rows]
    return replace(result, rows=rows)


def calibrated(row: ArmResult, arm: Arm, tables: Mapping[str, ScoreTable]) -> ArmResult:
    """An arm's row with its calibration: the mean over seeds, each the mean of its runs."""
    found = [[tables[run.run.run_id] for run in runs] for runs in arm.by_seed.values()]
    runs = [table for some in found for table in some]
    answers = [table.answers for table in runs if table.answers is not None]
    if len(answers) < len(runs):
        return row
    weights = [1 / len(some) / len(found) for some in found for _ in some]
    patients, is_exclusive = runs[0].patients, "accuracy" in row.scores
    whole, each, by_run = calibration_errors(answers, weights, patients)
    seeds = [value.mean() for value in np.split(by_run, np.cumsum([len(some) for some in found])[:-1])]
    names = [] if is_exclusive else list(row.scores[runs[0].main].classes)
    return replace(
        row,
        calibration=CalibrationResult(
            **vars(as_result(whole)),
            kind=KINDS[is_exclusive],
            std=float(np.std(seeds, ddof=1)) if len(seeds) > 1 else np.nan,
            classes={name: as_result(error) for name, error in zip(names, each, strict=False)},
            curve=as_points(reliability(answers, patients)),
            class_curves={name: as_points(reliability(answers, patients, k)) for k, name in enumerate(names)},
        ),
    )


def as_result(error: Error) -> CalibrationError:
    return CalibrationError(error.measured, error.value, (error.low, error.high))


def as_points(points: Sequence) -> list[ReliabilityPoint]:
    return [ReliabilityPoint(p.predicted, p.observed, (p.low, p.high), p.num_images) for p in points]
