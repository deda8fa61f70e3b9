"""Runs one stage, on each Ray worker or in this process: trains, tests or imports, and writes its results.

No MLflow here.
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import AdamW

from premed.config.settings import Finetune, Pretrain
from premed.contracts import DataSet
from premed.data.datamodule import Tasks, absent_classes, stage_data_sets, universal_classes
from premed.distributed import RaisedOnAllRanks, raise_on_all_ranks, rank_and_world
from premed.errors import UserError
from premed.events import EvaluationStarted, EventHandler, TrainingStarted, WarningIssued
from premed.training.artifacts import card, origin_of, save_pictures
from premed.training.callback import NotFinite, TrainingCallback
from premed.training.closed_form import solve
from premed.training.compiling import blocks_of, compiling
from premed.training.device import device_of, forget_peak_memory, keep_freed_memory, peak_memory_mb, precision_of
from premed.training.evaluate import bootstrap_interval, collapsed, evaluate, passed_gate
from premed.training.fit import distributed, fit
from premed.training.import_weights import bring
from premed.training.online_probe import NO_MEASURES, Measures, measures_of
from premed.training.optimizer import make_optimizer
from premed.training.policy import merge, trained_words
from premed.training.results import put_result
from premed.training.schedule import doubtful_warmup
from premed.training.setup import (
    StageJob,
    TaskOf,
    TrainingSetup,
    make_objective,
    prepared,
    refuse_changed,
    set_up,
)
from premed.training.source import naming_resident, source_of
from premed.training.stopping import deferred
from premed.training.supervised import Supervised
from premed.training.throughput import Throughput
from premed.training.watchdog import Watchdog, stuck_workers

Report = Callable[[dict[str, float]], None]
"""Called with the metrics of a validation; what it raises ends the stage."""


def run_stage(
    job: StageJob,
    on_event: EventHandler,
    report: Report,
    tasks: TaskOf | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Runs the stage and writes `result.json` last, or `failure.json` if a retry would fail in the same way.

    on_event: called on the first rank only. report: called with the metrics of each validation, on every rank.
    tasks: returns tasks that are built already, or builds them (None: `Tasks()`). stopping: asked on the first rank
    after steps (`TrainingCallback.stopping`); once it returns True, the training saves a checkpoint and raises Stopped
    on every rank.
    """
    tasks, (rank, world) = tasks or Tasks(), rank_and_world()
    on_event = on_event if rank == 0 else lambda event: None
    storage = job.stage_storage
    if any(storage.get(name) for name in ("result.json", "failure.json")):
        return  # Ray restarted all ranks because one of them died after the result, or failed alone
    forget_peak_memory()
    if not job.train.gpu:
        keep_freed_memory()
    for line in stuck_workers(storage) if rank == 0 else ():
        on_event(WarningIssued(line))
    try:
        if job.stage.kind == "import":
            bring(job.stage, storage, on_event, tasks)
        elif job.stage.kind == "test":
            test_stage(job, on_event, tasks)
        else:
            train_stage(job, on_event, report, tasks, stopping)
    except (NotFinite, UserError) as error:
        on_all_ranks = isinstance(error, (NotFinite, RaisedOnAllRanks))
        if rank == 0 or not on_all_ranks:
            kind = "NotFinite" if isinstance(error, NotFinite) else "UserError"
            storage.put_json("failure.json", {"kind": kind, "message": str(error), **vars(error)})
        if world > 1 and not on_all_ranks:
            raise  # Ray then ends the others, which wait for this rank


def train_stage(
    job: StageJob, on_event: EventHandler, report: Report, tasks: TaskOf, stopping: Callable[[], bool]
) -> None:
    """Pre-training or fine-tuning."""
    stage, settings, how = job.stage, job.stage.training, job.train
    assert isinstance(settings, (Pretrain, Finetune))
    setup = set_up(job, tasks)
    objective, train, precision = setup.objective, setup.train, setup.precision
    optimizer, throughput = make_optimizer(objective, settings.betas), Throughput(setup.device, how.loaders)
    watchdog = watchdog_of(job)
    measures = measures_of(job, setup, tasks, on_event)
    callback = make_callback(job, setup, optimizer, throughput, on_event, watchdog.pausing(report), measures)
    if (start := callback.resume(job.trunk_storage)) == 0:
        objective.on_start(train)
    shown = {"absent_classes": absent_classes, "universal_classes": universal_classes}
    workers = rank_and_world()[1] if how.elastic else None
    about: dict[str, Any] = {"workers": workers, "probe": measures.probe}
    if stage.kind == "finetune":
        about |= {name: classes(setup.task, train) for name, classes in shown.items()}
    if not objective.num_solutions:
        about |= {"batch": settings.batch, "lr": setup.schedule.lr, "warmup": setup.schedule.warmup_steps}
        if wrong := doubtful_warmup(stage.kind, settings, setup.schedule):
            on_event(WarningIssued(wrong))
        if isinstance(objective, Supervised):
            about["trained"] = trained_words(objective.policy, objective.network, setup.plan.num_steps)
    on_event(TrainingStarted(start, len(train), len(setup.val), setup.plan.num_steps, **about))
    if objective.num_solutions:
        assert isinstance(objective, Supervised)
        with watchdog.watching(objective.parts["encoder"]):
            solve(objective, train, callback, start=start, precision=precision, on_event=on_event)
        save_stage(job, setup, callback)
        return
    source = source_of(job, setup, lambda text: on_event(WarningIssued(text)))
    if how.compile and not blocks_of(objective):
        on_event(WarningIssued("train.compile: this network has no blocks that are compiled; it trains without"))
    with deferred() as interrupted, naming_resident(source):
        callback.stopping = lambda: interrupted() or stopping()
        trained = distributed(objective)  # before the watch: it imports for seconds, and gives up by itself
        with watchdog.watching(objective.parts["encoder"]):
            callback.catch_up()
            if callback.ended is None:
                with compiling(objective, how.compile) as plainly:
                    fit(
                        trained,
                        throughput.timed(source),
                        setup.plan,
                        setup.schedule,
                        optimizer,
                        plainly(callback),
                        start=start,
                        accumulate=setup.accumulate,
                        clip=settings.clip,
                        precision=precision,
                    )
            save_stage(job, setup, callback)


def watchdog_of(job: StageJob) -> Watchdog:
    """What ends this worker where it is stuck. Without Ray it ends nothing: nobody would restart it."""
    seconds = job.train.hang_timeout if job.train.workers else None
    return Watchdog(job.stage_storage, rank_and_world()[0], seconds)


def make_callback(
    job: StageJob,
    setup: TrainingSetup,
    optimizer: AdamW,
    throughput: Throughput,
    on_event: EventHandler,
    report: Report,
    measures: Measures = NO_MEASURES,
) -> TrainingCallback:
    """The callback of a stage's training."""
    settings, how, train = job.stage.training, job.train, setup.train
    assert isinstance(settings, (Pretrain, Finetune))
    score = setup.task.score if job.stage.kind == "finetune" else None
    stop = settings.stop if isinstance(settings, Pretrain) else None
    return TrainingCallback(
        setup.objective,
        optimizer,
        setup.plan,
        job.stage_storage,
        setup.val,
        validations=setup.objective.num_solutions or settings.validations,
        score=measures.score if stop else score,
        log_steps=how.log_steps,
        save_minutes=how.save_minutes,
        precision=setup.precision,
        sample_names=lambda indices: [train[i].case.name for i in indices.samples],
        on_event=on_event,
        report=report,
        spread_over=setup.schedule.num_steps,
        throughput=None if setup.objective.num_solutions else throughput,
        measures=measures.functions,
        patience=stop and stop.probe_patience,
    )


def save_stage(job: StageJob, setup: TrainingSetup, callback: TrainingCallback) -> None:
    """Saves what a training ends with."""
    if job.stage.kind == "trunk":
        save_trunk_segment(job, callback, num_cases=len(setup.train))
    elif rank_and_world()[0] == 0:
        save_results(job, setup.data_sets, callback, setup.loaded, num_cases=len(setup.train))


def save_results(
    job: StageJob, data_sets: Sequence[DataSet], callback: TrainingCallback, loaded: dict[str, Any], num_cases: int
) -> None:
    """Saves the best weights as parts, pictures, scores and, last of all, the result; removes checkpoints."""
    stage, storage, objective, best = job.stage, job.stage_storage, callback.objective, callback.best
    hashes = {}
    merge(objective)  # the weights that validation picked are those of the plain network
    for name, part in objective.parts.items():
        weights = callback.checkpoints.best_weights(best, name)
        part.load_state_dict(weights)
        hashes[name] = storage.put_weights(f"parts/{name}.safetensors", weights)
    save_pictures(storage, objective, callback.val, job.privacy)
    gate, weights = passed_gate(best["summary"]), origin_of(job.parent_storage, stage, data_sets[0].task.name)
    storage.put_json("parts/card.json", card(stage, data_sets, objective.parts, gate, hashes, weights))
    storage.put_json("scores.json", job.privacy.rows(callback.rows))
    more = {"gate": gate, "collapse": collapsed(best["summary"]), "loaded": loaded}
    write_result(job, callback, num_cases, more)
    storage.clear("checkpoints")  # a finished stage is not resumed
    storage.clear("snapshots")


def save_trunk_segment(job: StageJob, callback: TrainingCallback, num_cases: int) -> None:
    """Saves the state at the end of a trunk segment, which the next stages continue.

    There are no parts: the learning rate has not been cooled down yet.
    """
    callback.best.pop("hashes", None)  # the best weights go with the result, and this state stays
    callback.save(callback.plan.num_steps, kept=1)
    if rank_and_world()[0] == 0:
        weights = origin_of(job.parent_storage, job.stage, job.stage.task.name)  # type: ignore[attr-defined]
        more: dict[str, Any] = {"weights": weights} if weights else {}
        write_result(job, callback, num_cases, more | {"epochs": job.stage.training.epochs})  # type: ignore[union-attr]


def write_result(job: StageJob, callback: TrainingCallback, num_cases: int, more: dict[str, Any]) -> None:
    """Writes the curve and, last of all, the result."""
    storage = job.stage_storage
    storage.put("curve.jsonl", "\n".join(map(json.dumps, callback.curve)).encode())
    result = {
        "kind": job.stage.kind,
        "digest": job.stage.digest(),
        "summary": {f"val/{name}": value for name, value in callback.best["summary"].items()},
        "best_step": callback.best["step"],
        "num_steps": callback.ended or callback.plan.num_steps,
        "num_cases": num_cases,
        "precision": str(callback.precision).removeprefix("torch."),
        "seconds": callback.elapsed(),
        "peak_memory_mb": peak_memory_mb(callback.device),
    }
    if not callback.objective.num_solutions:
        result["compiled"] = job.train.compile
    if callback.patience is not None:
        more = more | {"selected_by": callback.score}  # labels had a part in it
    if callback.ended is not None:
        more = more | {"stopped": {"step": callback.ended, "of": callback.plan.num_steps, "by": callback.score}}
    put_result(storage, result | more)
    storage.clear("best")


def test_stage(job: StageJob, on_event: EventHandler, tasks: TaskOf) -> None:
    """Scores the test part once, with the weights that validation selected."""
    began = time.monotonic()
    with raise_on_all_ranks():
        data_sets = stage_data_sets(job.stage, tasks)
        task = data_sets[0].task
        known = {}
        samples = prepared(job, task, task.split("test"), known=known)
        refuse_changed(job, data_sets, known)
        objective, loaded = make_objective(job, data_sets)
        objective.to(device_of(job.train))
    on_event(EvaluationStarted(num_images=len(samples)))
    with watchdog_of(job).watching(objective.parts["encoder"]):
        rows = evaluate(objective, samples, precision_of(job.train))
    if rank_and_world()[0] != 0:
        return
    constant = task.constant_baseline(prepared(job, task, task.split("train")), samples)
    storage, summary = job.stage_storage, task.summary(rows)
    save_pictures(storage, objective, samples, job.privacy)
    storage.put_json("scores.json", job.privacy.rows(rows))
    storage.put_json("constant.json", job.privacy.rows(constant))
    result = {
        "kind": "test",
        "digest": job.stage.digest(),
        "summary": {f"test/{name}": value for name, value in summary.items()},
        "undefined": [name for name in task.classes if "n_undefined" in summary and f"auc/{name}" not in summary],
        "score": task.score,
        "value": summary.get(task.score),
        "interval": bootstrap_interval(rows, task.resampled),
        "constant": task.summary(constant).get(task.score, 0.5),
        "num_cases": len(samples),
        "num_patients": len({row["patient"] for row in rows}),
        "loaded": loaded,
        "seconds": time.monotonic() - began,
        "peak_memory_mb": peak_memory_mb(device_of(job.train)),
    }
    put_result(storage, result)
