"""What an experiment's own run says in MLflow: the few parameters that tell arms apart, and its numbers in one place.

Its stages' runs have all parameters (`stage.…`) and all numbers. MLflow's plots take every parameter of the runs that
are compared: a whole YAML of them would be unreadable there.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from premed.config.expand import percent, policy_words
from premed.config.experiment import Experiment
from premed.config.settings import PRETRAINING, Pretrain, Pretrained, Training

ABSENT = "none"
"""The value of a parameter that an arm does not have: MLflow's plots would draw a missing one as a number."""


def summary_params(experiment: Experiment) -> dict[str, Any]:
    """The arm in words, and its strategy, networks, share of labels, seeds and lengths, as far as there are any.

    MLflow's page of compared runs has axes for the first three, by name, that differ.
    """
    pretrain, finetune = used_pretraining(experiment), experiment.finetune
    name = experiment.name or experiment.strategy
    params: dict[str, Any] = {"arm": name, "strategy": experiment.strategy, "encoder": experiment.encoder.name}
    params |= {"mask_ratio": getattr(experiment.pretext, "mask_ratio", None) or ABSENT}
    if (fold := getattr(experiment.task, "fold", None)) is not None:
        params["fold"] = fold
    if isinstance(pretrain, Pretrain):
        params |= length("pretrain", pretrain) | {"pretrain_seed": pretrain.seed}
    elif pretrain is not None:  # one that is finished; what the YAML says of it was compared
        stated = {name: pretrain.stated.get(name) for name in ("epochs", "steps", "seed")}
        params |= {f"pretrain_{name}": value for name, value in stated.items() if value is not None}
    else:
        params |= {"pretrain_epochs": ABSENT, "pretrain_seed": ABSENT}
    if finetune is not None:
        arm = f"{name}{policy_words(experiment)} {percent(finetune.label_fraction)}"
        params |= {"arm": arm, "head": finetune.head.name, "policy": finetune.policy.name}
        params |= {"label_fraction": finetune.label_fraction, "seed": finetune.seed}
        params |= length("finetune", finetune) | {"layer_decay": finetune.layer_decay}
    return params


def used_pretraining(experiment: Experiment) -> Pretrain | Pretrained | None:
    """The settings under `pretrain`, where the strategy has a pre-training."""
    trains = any(kind in PRETRAINING for kind in experiment.kinds)
    return experiment.pretrain if trains or experiment.pretrained else None


def length(stage: str, training: Training) -> dict[str, int]:
    """How long a stage trains; with `steps`, its `epochs` say nothing."""
    if training.steps is not None:
        return {f"{stage}_steps": training.steps}
    return {f"{stage}_epochs": training.epochs}


def arm_digest(experiment: Experiment, data: str) -> str:
    """What experiments that differ in seeds alone have in common; eight hexadecimal digits. data: its fingerprints."""
    pretrain, finetune = used_pretraining(experiment), experiment.finetune
    update = {
        "pretrain": pretrain and pretrain.model_copy(update={"seed": 0}),
        "finetune": finetune and finetune.model_copy(update={"seed": 0}),
    }
    digest = experiment.model_copy(update=update).digest()
    return hashlib.sha256(f"{digest} {data}".encode()).hexdigest()[:8]


def totals(stages: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The scores and seconds of all stages, and how far the pre-training is below its gate; those of the test first.

    MLflow's page of compared runs has an axis for the first that all have.
    """
    scores: dict[str, float] = {}
    numbers = {"seconds": sum(result["seconds"] for result in stages)}
    for result in stages:
        name = "pretrain" if result["kind"] in PRETRAINING else result["kind"]
        prefix = "pretrain_" if name == "pretrain" else ""
        of_stage = {f"{prefix}{score}": value for score, value in result["summary"].items() if score.count("/") == 1}
        scores = of_stage | scores
        numbers[f"{name}_seconds"] = numbers.get(f"{name}_seconds", 0.0) + result["seconds"]
        if gate := result.get("gate"):  # a share of the gate; negative above it. Of a trunk the last one counts
            numbers["below_gate"] = gate["below"]
    return scores | numbers


def row(step: int, metrics: dict[str, float]) -> dict[str, Any]:
    return {"step": step, "time": int(time.time() * 1000), "metrics": metrics}


def numbers_of(result: dict[str, Any]) -> dict[str, float]:
    """The metrics of a stage's result; those of each class are in its files only."""
    numbers = {name: value for name, value in result["summary"].items() if name.count("/") == 1}
    numbers |= {"seconds": result["seconds"], "peak_memory_mb": result["peak_memory_mb"]}
    if result["kind"] == "test":
        numbers |= {"test/low": result["interval"][0], "test/high": result["interval"][1]}
        numbers |= {"test/constant": result["constant"]}
    # the curve has a point at the last step already: the summary of the best weights goes by other names
    return {(f"best/{name}" if name.startswith("val/") else name): value for name, value in numbers.items()}
