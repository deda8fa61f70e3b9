"""A small experiment as one plain script: what `premed run` computes, and nothing of what it records.

    python -m premed.benchmarks.plain experiment.yaml folder [workers]

Prepares the images, pre-trains, fine-tunes, keeps the weights that are best on val and scores them on test, without
Ray, MLflow, checkpoints, pictures, locks and digests. Prints the test score and the pre-training's last loss on val.
With workers it fine-tunes from random weights in Ray Train's TorchTrainer, says when the first step is done, and ends.
"""

import json
import sys
import threading
import time
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from premed.config.compose import load
from premed.contracts import Objective
from premed.data.datamodule import Tasks
from premed.distributed import rank_and_world
from premed.training.device import keep_freed_memory, precision_of
from premed.training.evaluate import evaluate
from premed.training.fit import distributed, fit
from premed.training.optimizer import make_optimizer
from premed.training.setup import StageJob, TrainingSetup, make_objective, prepared, set_up
from premed.training.source import source_of

STEPPED = "stepped"  # a file
Weights = dict[str, dict[str, Tensor]]


def main(yaml: str, folder: Path) -> dict[str, float]:
    """Returns the test score of the experiment, and the pre-training's last loss on val."""
    keep_freed_memory()
    experiment, tasks, weights, loss = load([yaml]), Tasks(), {}, float("nan")
    for stage in experiment.stages(lambda kind: ""):
        job = StageJob(stage, None, experiment.train, str(folder), folder / "cache")
        if stage.kind != "test":
            weights, summary = train(job, set_up(job, tasks), weights)
            loss = summary["loss"] if stage.kind == "pretrain" else loss
            continue
        task = tasks(stage.task)
        samples = prepared(job, task, task.split("test"))
        objective, _ = make_objective(job, set_up(job, tasks).data_sets)
        load_parts(objective, weights)
        score = task.summary(evaluate(objective, samples, precision_of(job.train)))[task.score]
        return {"score": score, "loss": loss}
    raise ValueError(f"{yaml}: has no test")


def train(job: StageJob, setup: TrainingSetup, weights: Weights) -> tuple[Weights, dict[str, float]]:
    """Pre-trains or fine-tunes, from the encoder of `weights` where there is one. Returns the best weights, and what
    the last validation measured.
    """
    settings: Any = job.stage.training
    objective, plan = setup.objective, setup.plan
    best: dict[str, Any] = {"value": -float("inf")}
    load_parts(objective, {name: part for name, part in weights.items() if name == "encoder"})
    objective.on_start(setup.train)
    every, score = plan.num_steps // settings.validations, setup.task.score if job.stage.kind == "finetune" else None

    def validate(step: int, loss: Tensor, metrics: Any) -> None:
        if step % every:
            return
        best["last"] = summary = objective.summary(evaluate(objective, setup.val, setup.precision))
        value = summary.get(score, -float("inf")) if score else float(step)
        if value > best["value"] or best["value"] == -float("inf"):
            parts = {name: deepcopy(part.state_dict()) for name, part in objective.parts.items()}
            best.update(value=value, parts=parts)

    optimizer, source = make_optimizer(objective, settings.betas), source_of(job, setup, print)
    how = {"clip": settings.clip, "precision": setup.precision}
    fit(objective, source, plan, setup.schedule, optimizer, validate, **how)
    return best["parts"], best["last"]


def load_parts(objective: Objective, weights: Weights) -> None:
    for name, part in weights.items():
        objective.parts[name].load_state_dict(part)


def first_step_on_ray(yaml: str, folder: Path, workers: int) -> None:
    """Does one step of fine-tuning on so many workers of Ray Train."""
    import_module("premed.execution.runner")  # what `premed run` imports, MLflow with it
    import_module("mlflow.store.tracking.sqlalchemy_store")
    ray, train = import_module("ray"), import_module("ray.train")
    torch_trainer = import_module("ray.train.torch").TorchTrainer
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    trainer = torch_trainer(
        first_step,
        train_loop_config={"yaml": yaml, "folder": str(folder)},
        scaling_config=train.ScalingConfig(num_workers=workers),
        run_config=train.RunConfig(storage_path=str(folder / "ray")),
    )
    watching = threading.Thread(target=report, args=(folder / STEPPED,), daemon=True)
    watching.start()
    trainer.fit()
    watching.join()
    ray.shutdown()


def report(file: Path) -> None:
    """Waits for the workers' file, and prints that they have done a step."""
    while not file.exists():
        time.sleep(0.02)
    file.unlink()
    print("fine-tuning: 1/8 loss ", file=sys.stderr, flush=True)


def first_step(config: dict[str, str]) -> None:
    """What a worker does."""
    folder = Path(config["folder"])
    experiment, tasks = load([config["yaml"]], ["pretext=none"]), Tasks()
    stage = next(experiment.stages(lambda kind: ""))
    job = StageJob(stage, None, experiment.train, str(folder), folder / "cache")
    setup = set_up(job, tasks)
    settings: Any = stage.training

    def end(step: int, loss: Tensor, metrics: Any) -> bool:
        if rank_and_world()[0] == 0:
            (folder / STEPPED).write_text(f"{float(loss)}")
        return True

    optimizer, source = make_optimizer(setup.objective, settings.betas), source_of(job, setup, print)
    fit(distributed(setup.objective), source, setup.plan, setup.schedule, optimizer, end, precision=setup.precision)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        first_step_on_ray(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    else:
        print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
