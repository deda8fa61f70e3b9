"""What a plan takes from a comparison: of an arm and its baseline the groups of seeds, and what their stages took."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from premed.reporting.comparison.costs import cost, stage_cost
from premed.reporting.comparison.effects import one_pretraining
from premed.reporting.comparison.grouping import Arm
from premed.reporting.comparison.interim import Pairs
from premed.reporting.comparison.result import StageCost
from premed.reporting.comparison.scores import ScoreTable
from premed.reporting.comparison.selection import ExperimentRun
from premed.reporting.sample_size.components import Group
from premed.reporting.sample_size.needs import Prices

Tables = Mapping[str, ScoreTable]
"""By run."""


def groups_of(pairs: Pairs, tables: Tables, score: str) -> list[Group]:
    """The seeds whose scores are defined, of those that `premed compare` takes: one group of differences, or two."""
    arm, baseline, pairing, ours, theirs, _ = pairs
    one, two = runs_by_seed(arm, ours), runs_by_seed(baseline, theirs)
    pretrained, shared = (any(map(each, (arm, baseline))) for each in (is_pretrained, one_pretraining))
    if pairing == "unpaired" or len(one) != len(two):
        arms = ((arm, one, 1.0), (baseline, two, -1.0))
        found = [
            Group(defined([pseudo(runs, tables, score) for runs in some]), is_pretrained(of), one_pretraining(of))
            for of, some, _ in arms
        ]
        return found if all(group.runs for group in found) else []
    runs = defined([differences(a, b, tables, score) for a, b in zip(one, two, strict=True)])
    return [Group(runs, pretrained, shared)] if runs else []


def runs_by_seed(arm: Arm, which: Sequence[int]) -> list[list[ExperimentRun]]:
    by_seed = list(arm.by_seed.values())
    return [by_seed[i] for i in which]


def is_pretrained(arm: Arm) -> bool:
    """Whether it has pre-trainings with seeds; given weights are no draw."""
    return any(run.pretrain_seed is not None for run in arm.runs)


def pseudo(runs: Sequence[ExperimentRun], tables: Tables, score: str) -> np.ndarray:
    """The pseudo-values [J, P] of one seed's runs."""
    return np.stack([tables[run.run.run_id].scores[score].pseudo[:, 0] for run in runs])


def differences(
    ours: Sequence[ExperimentRun], theirs: Sequence[ExperimentRun], tables: Tables, score: str
) -> np.ndarray:
    """The differences [J, P] of one seed, by run where both have the same fine-tunings, else of means [1, P]."""
    one, two = pseudo(ours, tables, score), pseudo(theirs, tables, score)
    if [run.seed for run in ours] == [run.seed for run in theirs]:
        return one - two
    return one.mean(axis=0, keepdims=True) - two.mean(axis=0, keepdims=True)


def defined(runs: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [each for each in runs if np.isfinite(each).all()]


def prices(arm: Arm, part: str) -> Prices:
    """What each of its stages took, in device hours, and how many there are. part: that was scored.

    Of a cross-validation a stage is that of all folds; one pre-training, on other data, may serve them all.
    """
    spent, num_folds = cost(arm), len(arm.runs[0].experiments)
    tests = [run.stages["test"] for run in arm.experiments if "test" in run.stages] if part == "test" else []
    test = num_folds * hours(stage_cost(tests)) if tests else 0.0  # val is scored within the fine-tuning
    with_seed = is_pretrained(arm)
    trained = Counter(run.pretrain_seed for run in arm.runs)
    pretraining = spent.pretrain.device_hours / len(trained) if spent.pretrain else np.nan
    devices = {stage.device for stage in spent.stages.values()}
    device = " and ".join(sorted(devices))
    finetuning = num_folds * hours(spent.finetune)
    return Prices(pretraining, finetuning, test, device, tuple(trained.values()), with_seed, num_folds)


def hours(stage: StageCost) -> float:
    return stage.device_hours / stage.runs
