"""Stages of training on made-up chests, run in processes of their own that can be killed at a chosen point."""

import json
import multiprocessing.connection
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from support.experiments import bare
from support.forks import fork


def tree(root: Path, **changes: Any) -> dict[str, Any]:
    """A tiny experiment as a YAML would hold it; `changes` by section, as in `finetune={"lr": 1}`."""
    from premed.config.compose import merge

    steps = {"epochs": 3, "batch": 8, "lr": 0.03, "validations": 4, "augment": {"flip": 0.5, "scale": [0.5, 1]}}
    whole: dict[str, Any] = {
        "task": {"name": "chestxray14", "root": str(root), "size": 32, "stored": 32},
        "encoder": {"name": "vit", "width": 24, "depth": 2, "heads": 2, "patch": 8},
        "pretext": {"name": "mae", "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
        "pretrain": {**steps, "steps": 10, "warmup_epochs": 1, "probe": None},
        "finetune": {
            **steps,
            "steps": 10,
            "head": {"name": "linear", "pool": "mean"},
            "drop_path": 0.3,
            "layer_decay": 0.75,
        },
        "train": {"workers": 0, "log_steps": 2, "save_minutes": 0, "precision": "fp32"},
    }
    return merge(whole, changes)


def jobs(root: Path, home: Path, **changes: Any) -> dict[str, Any]:
    """The stages of a tiny experiment, by kind, as jobs that share `home`."""
    from premed.config.compose import validate_experiment
    from premed.training.setup import StageJob

    experiment, found, before = validate_experiment(tree(root, **changes)), {}, None
    for stage in experiment.stages(lambda kind: "data"):
        found[stage.kind] = StageJob(stage, before, experiment.train, str(home / "checkpoints"), root.parent / "cache")
        before = stage
    return found


def run(job: Any, world: int = 1, kill: str = "", poison: str = "", stop: int = 0) -> list[int]:
    """Runs a stage on `world` ranks; returns their exit codes.

    stop: the command was stopped when it is asked for that time, which is after each step and each validation.

    kill: `row 5`, `saved 4` (when rank 0 tells so), `before NAME` or `during NAME` (when it writes that file).
    poison: the case whose views are NaN.
    """
    return on_ranks(world, stage_main, job, kill, poison, stop)


def on_ranks(world: int, function: Callable[..., None], *args: Any) -> list[int]:
    """Calls `function(*args)` on each of `world` ranks, a process each; if one dies the others are killed."""
    with TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        ranks = [fork.Process(target=rank_main, args=(rank, world, meeting, function, args)) for rank in range(world)]
        for process in ranks:
            process.start()
        left = list(ranks)
        while left:
            multiprocessing.connection.wait([process.sentinel for process in left])
            if any(process.exitcode for process in ranks):
                for process in left:
                    process.kill()
            left = [process for process in left if process.exitcode is None]
        for process in ranks:
            process.join()
    return [process.exitcode or 0 for process in ranks]


def rank_main(rank: int, world: int, meeting: str, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if world > 1:
        patience = timedelta(seconds=60)
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=patience)
        dist.barrier()  # a rank that has nothing to do must not leave while another still connects
    function(*args)
    if world > 1:
        dist.destroy_process_group()


def stage_main(job: Any, kill: str, poison: str, stop: int) -> None:
    from premed.distributed import rank_and_world
    from premed.errors import Stopped
    from premed.events import CheckpointSaved, MetricsLogged
    from premed.training.stage import run_stage

    bare(pytest.MonkeyPatch())
    if rank_and_world()[0] == 0:
        killed_while_writing(kill)
    if poison:
        poisoned(poison)

    moments = {MetricsLogged: "row", CheckpointSaved: "saved"}

    def emit(event: Any) -> None:
        if type(event) in moments and f"{moments[type(event)]} {event.step}" == kill:
            die()

    asked = count(1)
    with suppress(Stopped):
        run_stage(job, emit, lambda numbers: None, stopping=lambda: next(asked) == stop)


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_while_writing(kill: str) -> None:
    from premed.training import storage

    put = storage.StageStorage.put

    def put_or_die(self: Any, name: str, content: bytes) -> None:
        if kill == f"before {name}":
            die()
        if kill == f"during {name}":
            os.fsync = die
        put(self, name, content)

    storage.StageStorage.put = put_or_die


def poisoned(name: str) -> None:
    from premed.tasks.chestxray14 import ChestXray14

    view = ChestXray14.view

    def bad(self: Any, sample: Any, augment: Any, draw: Any) -> Any:
        image, label = view(self, sample, augment, draw)
        return image * (float("nan") if sample.case.name == name else 1), label

    ChestXray14.view = bad


def outcome(job: Any) -> dict[str, Any]:
    """What a finished stage left, without times: the parts' bytes, the curve, the scores."""
    assert job.stage_storage.get_json("failure.json") is None, job.stage_storage.get_json("failure.json")
    curve = [json.loads(line) for line in job.stage_storage.get("curve.jsonl").splitlines()]
    parts = {name: job.stage_storage.get(name) for name in job.stage_storage.names() if name.endswith(".safetensors")}
    summary = job.stage_storage.get_json("result.json")["summary"]
    return {"curve": [(row["step"], row["metrics"]) for row in curve], "summary": summary, **parts}


def train_names(job: Any) -> list[str]:
    """The names of its training cases."""
    from premed.config.plugins import plugin
    from premed.data.datamodule import stage_cases

    task = plugin("tasks", job.stage.task).build(job.stage.task)
    return [case.name for case in stage_cases(job.stage, task)[0]]
