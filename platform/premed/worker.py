"""What runs on each Ray worker (or in this process): a Stage to data, objective, checkpoint, `fit`, result. Never MLflow."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from premed.cache import Cache
from premed.contracts import Case, Encoder, Objective, Row, Sample, Task
from premed.experiment import Finetune, Pretrain, Stage, Train, plugin
from premed.fit import EpochPlan, Schedule, fit, make_optimizer, team
from premed.measure import bootstrap_interval
from premed.randomness import key, permutation
from premed.sources import Mapped
from premed.spec import UserError
from premed.supervised import Network, Supervised
from premed.vault import Vault
from premed.watch import NotFinite, Watch, measured, peak_memory_mb

PAST = 0.95
"""A pre-training is past its gate when its validation loss is below this share of it ("clearly below", SIGNAL.md)."""


@dataclass(frozen=True)
class Job:
    """A stage and where to run it. Travels to the workers."""

    stage: Stage
    parent: Stage | None  # the stage whose parts it starts from
    train: Train
    storage: str
    cache: Path

    @property
    def vault(self) -> Vault:
        return Vault(self.storage, self.stage.folder)


def run_stage(job: Job, emit: Callable[[dict[str, Any]], None], report: Callable[[dict[str, float]], None]) -> None:
    """Trains (or tests) what `job` says and writes `result.json` last; a failure that a retry cannot mend into `failure.json`."""
    rank, _ = team()
    emit = emit if rank == 0 else lambda event: None
    try:
        test(job, emit) if job.stage.kind == "test" else learn(job, emit, report)
    except (NotFinite, UserError) as error:
        if rank == 0:
            job.vault.put_json("failure.json", {"kind": type(error).__name__, "message": str(error)})


def learn(job: Job, emit: Callable, report: Callable) -> None:
    """Pre-training or fine-tuning."""
    stage, settings = job.stage, job.stage.training
    assert isinstance(settings, (Pretrain, Finetune))
    task = plugin("tasks", stage.task).build(stage.task)
    train, val = cases(stage, task)
    train, val = prepared(job, task, train), prepared(job, task, val)
    device, precision = device_of(job.train), precision_of(job.train)
    objective, loaded = make_objective(job, task)
    objective.to(device)
    if job.stage.kind == "pretrain":
        objective.begin(train)

    num_steps = settings.epochs * ceil(len(train) / settings.batch)
    num_steps = min(num_steps, settings.max_steps or num_steps)
    warmup = settings.warmup_epochs * ceil(len(train) / settings.batch)
    schedule = Schedule(num_steps, min(warmup, num_steps), settings.lr * settings.batch / 256)
    plan = EpochPlan(len(train), settings.batch, num_steps, settings.seed, stage.kind)
    source = Mapped(
        task, train, settings.augment, seed=settings.seed, stage=stage.kind, device=device, num_loaders=job.train.loaders
    )
    optimizer = make_optimizer(objective, settings.betas)
    watch = Watch(
        objective,
        optimizer,
        plan,
        job.vault,
        val,
        validations=settings.validations,
        score=task.score if stage.kind == "finetune" else None,
        log_steps=job.train.log_steps,
        save_minutes=job.train.save_minutes,
        precision=precision,
        names=lambda picks: [train[i].case.name for i in picks.samples],
        emit=emit,
        report=report,
    )
    start = watch.resume()
    emit({"event": "training", "num_images": len(train), "num_val": len(val), "num_steps": num_steps, "start": start})
    wrapped = distributed(objective)
    fit(
        wrapped,
        [source],
        plan,
        schedule,
        optimizer,
        watch,
        start=start,
        accumulate=job.train.accumulate,
        precision=precision,
    )
    if team()[0] == 0:
        finish(job, task, watch, val, loaded, num_cases=len(train))


def finish(job: Job, task: Task, watch: Watch, val: Sequence[Sample], loaded: dict[str, Any], num_cases: int) -> None:
    """Parts, pictures, scores and, last of all, the result."""
    stage, vault, objective = job.stage, job.vault, watch.objective
    for name, part in objective.parts.items():
        weights = vault.get_weights(f"best/{name}.safetensors")
        assert weights is not None, "the last step is always validated"
        part.load_state_dict(weights)
    objective.eval()
    draw_pictures(vault, objective, val)
    summary = watch.best["summary"]
    gate = passed_gate(summary)
    for name in objective.parts:
        weights = vault.get(f"best/{name}.safetensors")
        assert weights is not None
        vault.put(f"parts/{name}.safetensors", weights)
    vault.put_json("parts/card.json", card(stage, task, objective, gate))
    vault.put("curve.jsonl", "\n".join(map(to_json, watch.curve)).encode())
    vault.put_json("scores.json", watch.rows)
    result = {
        "kind": stage.kind,
        "digest": stage.digest(),
        "summary": {f"val/{name}": value for name, value in summary.items()},
        "best_step": watch.best["step"],
        "num_steps": watch.plan.num_steps,
        "num_cases": num_cases,
        "gate": gate,
        "loaded": loaded,
        "seconds": watch.elapsed(),
        "peak_memory_mb": peak_memory_mb(watch.device),
    }
    vault.put_json("result.json", result)
    vault.drop_checkpoints()


def test(job: Job, emit: Callable) -> None:
    """Scores the test part once, with the weights that val picked."""
    began = time.monotonic()
    task = plugin("tasks", job.stage.task).build(job.stage.task)
    samples = prepared(job, task, task.split("test"))
    objective, loaded = make_objective(job, task)
    objective.to(device_of(job.train))
    emit({"event": "testing", "num_images": len(samples)})
    rows = measured(objective, samples, precision_of(job.train))
    if team()[0] != 0:
        return
    constant = task.constant(prepared(job, task, task.split("train")), samples)
    vault, summary = job.vault, task.summary(rows)
    draw_pictures(vault, objective, samples)
    vault.put_json("scores.json", rows)
    result = {
        "kind": "test",
        "digest": job.stage.digest(),
        "summary": {f"test/{name}": value for name, value in summary.items()},
        "score": task.score,
        "value": summary.get(task.score),
        "interval": bootstrap_interval(rows, lambda some: task.summary(some).get(task.score, float("nan"))),
        "constant": task.summary(constant).get(task.score, 0.5),
        "num_cases": len(samples),
        "num_patients": len({row["patient"] for row in rows}),
        "loaded": loaded,
        "seconds": time.monotonic() - began,
        "peak_memory_mb": peak_memory_mb(device_of(job.train)),
    }
    vault.put_json("result.json", result)


def cases(stage: Stage, task: Task) -> tuple[list[Case], list[Case]]:
    """What the stage trains on and what it is validated on. A pre-training's have no labels."""
    if stage.kind == "pretrain":
        return task.images(), [Case(case.name, case.patient, case.image) for case in task.split("val")]
    assert isinstance(stage.training, Finetune)
    return fraction(task.split("train"), stage.training.label_fraction, stage.training.seed), task.split("val")


def fraction(labelled: list[Case], share: float, seed: int) -> list[Case]:
    """The cases of the first `share` of the patients, in an order drawn by `seed`: 5 % are part of 10 %."""
    patients = sorted({case.patient for case in labelled})
    order = permutation(key(seed, "label fraction"), len(patients))
    chosen = {patients[i] for i in order[: max(1, round(share * len(patients)))]}
    return [case for case in labelled if case.patient in chosen]


def prepared(job: Job, task: Task, wanted: Sequence[Case]) -> list[Sample]:
    """The cases with their prepared copies; made here where this machine has none yet."""
    return [Sample(case, entry) for case, entry in zip(wanted, Cache(job.cache).prepare(wanted, task.recipe), strict=True)]


def make_objective(job: Job, task: Task) -> tuple[Objective, dict[str, Any]]:
    """What the stage minimises, its weights drawn or loaded; and what was loaded."""
    stage, settings = job.stage, job.stage.training
    if isinstance(settings, Pretrain):
        with drawn(settings.seed, "encoder"):
            encoder = plugin("encoders", stage.encoder).build(stage.encoder, task.channels, task.roi)
        with drawn(settings.seed, "pretext"):
            assert stage.pretext is not None
            return plugin("pretext", stage.pretext).build(stage.pretext, encoder, task, settings.weight_decay), {}
    assert isinstance(settings, Finetune)
    with drawn(settings.seed, "encoder"):
        encoder = plugin("encoders", stage.encoder).build(stage.encoder, task.channels, task.roi)
    with drawn(settings.seed, "head"):
        head = plugin("heads", settings.head).build(settings.head, encoder, task)
    loaded = {}
    if job.parent is not None:
        vault = Vault(job.storage, job.parent.folder)
        loaded["encoder"] = load_encoder(encoder, vault)
        for part in ("head",) if stage.kind == "test" else head.loads:
            loaded[part] = load_strictly(head if part == "head" else head.get_submodule(part), weights_of(vault, part), part)
    network = Network(encoder, head)
    objective = Supervised(
        network,
        task,
        weight_decay=settings.weight_decay,
        layer_decay=settings.layer_decay,
        drop_path=settings.drop_path,
    )
    return objective, loaded


class drawn:  # noqa: N801 (a context, used like a function)
    """Initial weights from a seed and a name; torch's own generator is left as it was."""

    def __init__(self, seed: int, name: str):
        self.fork, self.key = torch.random.fork_rng(devices=[]), key(seed, "init", name)

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.key)

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)


def load_encoder(encoder: Encoder, vault: Vault) -> dict[str, Any]:
    about = vault.get_json("parts/card.json")
    assert about is not None, f"{vault.where} has no card"
    state, resized = encoder.fit_state(weights_of(vault, "encoder"), tuple(about["grid"]))
    return load_strictly(encoder, state, "encoder") | {"resized": resized}


def weights_of(vault: Vault, part: str) -> dict[str, torch.Tensor]:
    weights = vault.get_weights(f"parts/{part}.safetensors")
    if weights is None:
        raise UserError(f"{vault.where}/parts/{part}.safetensors is missing: remove that folder and pre-train again")
    return weights


def load_strictly(module: nn.Module, state: dict[str, torch.Tensor], part: str) -> dict[str, Any]:
    """Loads all of `state` into all of `module`, or names what does not fit."""
    own = module.state_dict()
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    if (missing := sorted(set(own) - set(state))) or (extra := sorted(set(state) - set(own))) or wrong:
        said = f"missing {missing[:3]}" if missing else f"not wanted {extra[:3]}" if extra else f"other shapes {wrong[:3]}"
        raise UserError(f"{part}: the saved weights do not fit the network ({said}); encoder and head must be those of the YAML")
    module.load_state_dict(state)
    return {"loaded": len(own), "missing": []}


def passed_gate(summary: dict[str, float]) -> dict[str, Any] | None:
    """How a pre-training stands to its network-free predictor; None for other stages."""
    if "gate" not in summary:
        return None
    share = summary["loss"] / summary["gate"]
    return {"loss": summary["loss"], "gate": summary["gate"], "below": 1 - share, "passed": share < PAST}


def card(stage: Stage, task: Task, objective: Objective, gate: dict[str, Any] | None) -> dict[str, Any]:
    """What somebody needs to use the parts elsewhere."""
    encoder = objective.parts["encoder"]
    assert isinstance(encoder, Encoder)
    return {
        "digest": stage.digest(),
        "parts": sorted(objective.parts),
        "encoder": stage.encoder.model_dump(mode="json"),
        "grid": encoder.grid,
        "patch": encoder.patch,
        "width": encoder.width,
        "channels": task.channels,
        "classes": task.classes,
        "roi": task.roi,
        "preprocessing": task.recipe.model_dump(mode="json"),
        "gate": gate,
    }


def draw_pictures(vault: Vault, objective: Objective, samples: Sequence[Sample]) -> None:
    with TemporaryDirectory() as folder:
        for path in objective.eval().pictures(samples, Path(folder)):
            vault.put(f"pictures/{path.name}", path.read_bytes())


def distributed(objective: Objective) -> nn.Module:
    """DDP where there are several ranks. The same buckets at every step keep a resumed run's sums in their order."""
    if team()[1] == 1:
        return objective
    return nn.parallel.DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=True)


def device_of(train: Train) -> torch.device:
    if not train.gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("train.gpu: this machine has no usable GPU; set train.gpu=false")
    return torch.device("cuda", torch.cuda.current_device())


def precision_of(train: Train) -> torch.dtype:
    """bf16 where the hardware multiplies it: GPUs, and CPUs with AMX tiles."""
    if train.precision == "auto":
        fast = train.gpu or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if train.precision == "bf16" else torch.float32


def to_json(row: Row) -> str:
    import json

    return json.dumps(row)


def train_loop(config: dict[str, Any]) -> None:
    """What Ray Train calls on every worker: `config` has the job, the ledger's handle and the run's id."""
    import ray.train

    ledger, run_id = config["ledger"], config["run_id"]
    run_stage(
        config["job"],
        emit=lambda event: ledger.event.remote(run_id, event),
        report=lambda numbers: ray.train.report(numbers),
    )
