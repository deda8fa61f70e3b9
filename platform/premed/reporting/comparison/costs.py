"""What the arms of a comparison cost: device hours of their stages, each once, and notes on what several share."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from premed.config.settings import TRUNK
from premed.reporting.comparison.grouping import Arm, Block
from premed.reporting.comparison.result import Cost, StageCost
from premed.reporting.formatting import counted, listed
from premed.tracking.run_store import Run


def cost(arm: Arm) -> Cost:
    """The cost of what went before fine-tuning, each run once, and of the fine-tunings.

    A pre-training costs what it took to get there: given weights, the segments of the trunk on its path, the cool-down.
    """
    runs = arm.experiments
    before = {stage.run_id: stage for run in runs for stage in run.pretraining.values()}
    complete = {
        stage.run_id
        for run in runs
        for kind, stage in run.pretraining.items()
        if not kind.startswith(TRUNK) and (kind != "import" or len(run.pretraining) == 1)
    }
    return Cost(
        pretrain=replace(stage_cost([*before.values()]), runs=len(complete)) if before else None,
        finetune=stage_cost([run.stages["finetune"] for run in runs]),
    )


def stage_cost(runs: Sequence[Run]) -> StageCost:
    seconds = [run.metrics.get("seconds", np.nan) for run in runs]
    devices = [run.tags.get("compute", "1 CPU").split(" ") for run in runs]
    kinds = {kind for _, kind in devices}
    return StageCost(
        runs=len(runs),
        seconds=float(np.sum(seconds)),
        device=" and ".join(sorted(kinds)),
        device_hours=float(
            sum(float(number) * each for (number, _), each in zip(devices, seconds, strict=True)) / 3600
        ),
        peak_memory_mb=float(np.max([run.metrics.get("peak_memory_mb", np.nan) for run in runs])),
    )


def finished_before(blocks: list[Block]) -> list[str]:
    """Notes on arms that took a finished pre-training by its name: its cost is theirs all the same."""
    taken: dict[str, set[str]] = {}
    for arm in (arm for block in blocks for arm in block.arms):
        for run in arm.experiments:
            if name := run.run.tags.get("pretrain_encoder"):
                taken.setdefault(arm.label, set()).add(name)
    return [
        f"{label}: fine-tuned from {listed(names)}, which was pre-trained before; that pre-training is in its cost"
        for label, names in taken.items()
    ]


def shared_costs(arms: list[Arm]) -> list[str]:
    """Notes on the pre-trainings that are in the cost of several arms."""
    users: dict[str, set[tuple[str, float]]] = {}
    for arm in arms:
        for run in arm.experiments:
            for kind, stage in run.pretraining.items():
                users.setdefault(f"{kind} {stage.run_id}", set()).add((arm.label, arm.fraction))
    several = [stage for stage, some in users.items() if len(some) > 1]
    segments = [stage for stage in several if stage.startswith(TRUNK)]
    numbers = {"pre-training": len(several) - len(segments), "trunk segment": len(segments)}
    counts = [counted(number, word) for word, number in numbers.items() if number]
    return [f"shared by several rows and included in the cost of each: {each}" for each in counts]
