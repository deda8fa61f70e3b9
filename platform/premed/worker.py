"""What runs on each Ray worker (or in this process): a Stage to data, objective, checkpoint, fit, result. No MLflow."""

import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.distributed as dist

from premed.config.experiment import Stage
from premed.config.plugins import plugin
from premed.config.settings import Finetune, Pretrain, Train
from premed.config.spec import Spec
from premed.contracts import Case, Domain, Objective, Sample, Task
from premed.data.cache import Cache
from premed.data.datamodule import Tasks, absent_classes, cases, domains, refuse_unnamed
from premed.data.loader import Mapped
from premed.device import device_of, forget_peak_memory, peak_memory_mb, precision_of
from premed.distributed import team
from premed.errors import UserError
from premed.events import EvaluationStarted, EventHandler, TrainingStarted
from premed.fit import distributed, fit, make_optimizer
from premed.importing import bring
from premed.pace import Pace
from premed.parts import card, drawn, load_encoder, load_strictly, weights_of
from premed.planning import planned
from premed.solving import solve
from premed.supervised import Network, Supervised
from premed.tasks.common.metrics import bootstrap_interval, undefined_classes
from premed.vault import Vault
from premed.watch import SNAPSHOTS, Everywhere, NotFinite, Watch, collapsed, measured, passed_gate


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

    @property
    def origin(self) -> Vault | None:
        """Where the segment of a trunk lies that this stage goes on from."""
        on_trunk = self.parent is not None and self.parent.kind == "trunk"
        return Vault(self.storage, self.parent.folder) if self.parent is not None and on_trunk else None


def run_stage(
    job: Job,
    emit: EventHandler,
    report: Callable[[dict[str, float]], None],
    tasks: Callable[[Spec], Task] | None = None,
) -> None:
    """Trains what `job` says (or imports, or tests it) and writes `result.json` last; or, where no retry can mend what
    went wrong, `failure.json`.

    emit: takes events, on the first rank. report: takes each validation's numbers, on every rank. tasks: gives the
    task of a configuration, where some are built already.
    """
    tasks, (rank, world) = tasks or Tasks(), team()
    emit = emit if rank == 0 else lambda event: None
    if any(job.vault.get(name) for name in ("result.json", "failure.json")):
        return  # all were started again for the sake of one that ended after the result, or failed alone
    forget_peak_memory()
    try:
        if job.stage.kind == "import":
            bring(job.stage, job.vault, emit, tasks)
        elif job.stage.kind == "test":
            test(job, emit, tasks)
        else:
            learn(job, emit, report, tasks)
    except (NotFinite, UserError) as error:
        everywhere = isinstance(error, (NotFinite, Everywhere))
        if rank == 0 or not everywhere:
            kind = "NotFinite" if isinstance(error, NotFinite) else "UserError"
            job.vault.put_json("failure.json", {"kind": kind, "message": str(error), **vars(error)})
        if world > 1 and not everywhere:
            raise  # the others wait for this rank


@contextmanager
def agreed() -> Iterator[None]:
    """A rank that cannot go on takes the others along, which would wait for it in vain."""
    error = None
    try:
        yield
    except UserError as caught:
        error = str(caught)
    met: list[Any] = [(error, socket.gethostname())]
    if team()[1] > 1:
        met *= team()[1]
        dist.all_gather_object(met, met[0])
    if said := [(error, node) for error, node in met if error]:
        error, node = said[0]
        raise Everywhere(error if len(said) == len(met) else f"{error} (on node {node})")


def learn(job: Job, emit: EventHandler, report: Callable, tasks: Callable[[Spec], Task]) -> None:
    """Pre-training or fine-tuning."""
    stage, settings, how = job.stage, job.stage.training, job.train
    assert isinstance(settings, (Pretrain, Finetune))
    with agreed():
        seen = domains(stage, tasks)
        train, val = gathered(job, seen)
        device, precision, accumulate = device_of(how), precision_of(how), how.micro_batches(team()[1])
        objective, loaded = make_objective(job, seen)
        objective.to(device)
        if objective.whole_steps and accumulate > 1:
            raise UserError("train.accumulate: the loss is of all of a step's images together; set it to 1")
        sizes = [sum(sample.domain == number for sample in train) for number in range(len(seen))]
        plan, schedule = planned(stage, sizes, objective.num_solutions)

    source = Mapped(seen, train, seed=settings.seed, stage=stage.draws, device=device, num_loaders=how.loaders)
    optimizer, pace = make_optimizer(objective, settings.betas), Pace(device, how.loaders)
    watch = Watch(
        objective,
        optimizer,
        plan,
        job.vault,
        val,
        validations=objective.num_solutions or settings.validations,
        score=seen[0].task.score if stage.kind == "finetune" else None,
        log_steps=how.log_steps,
        save_minutes=how.save_minutes,
        precision=precision,
        names=lambda picks: [train[i].case.name for i in picks.samples],
        emit=emit,
        report=report,
        whole=schedule.num_steps,
        pace=None if objective.num_solutions else pace,
    )
    if (start := watch.resume(job.origin)) == 0:
        objective.begin(train)
    emit(
        TrainingStarted(
            start,
            num_images=len(train),
            num_val=len(val),
            num_steps=plan.num_steps,
            absent_classes=absent_classes(seen[0].task, train) if stage.kind == "finetune" else (),
            workers=team()[1] if how.elastic else None,
        )
    )
    if objective.num_solutions:
        assert isinstance(objective, Supervised)
        solve(objective, train, watch, start=start, precision=precision, emit=emit)
    else:
        fit(
            distributed(objective),
            pace.timed(source),
            plan,
            schedule,
            optimizer,
            watch,
            start=start,
            accumulate=accumulate,
            clip=settings.clip,
            precision=precision,
        )
    if stage.kind == "trunk":
        hand_on(job, watch, num_cases=len(train))
    elif team()[0] == 0:
        finish(job, seen, watch, val, loaded, num_cases=len(train))


def gathered(job: Job, seen: Sequence[Domain]) -> tuple[list[Sample], list[Sample]]:
    """What the stage trains on and what it is validated on, of one data set after the other."""
    train, val = list[Sample](), list[Sample]()
    for number, domain in enumerate(seen):
        for samples, found in zip((train, val), cases(job.stage, domain.task), strict=True):
            samples += prepared(job, domain.task, found, number)
    if not val:
        raise UserError(f"task: {seen[0].task.name} has no val images here; mend its split, or add a data set")
    return train, val


def finish(
    job: Job, seen: Sequence[Domain], watch: Watch, val: Sequence[Sample], loaded: dict[str, Any], num_cases: int
) -> None:
    """Parts, pictures, scores and, last of all, the result."""
    stage, vault, objective = job.stage, job.vault, watch.objective
    for name, part in objective.parts.items():
        weights = vault.get_weights(watch.best_file(name))
        assert weights is not None, "the last step is always validated"
        part.load_state_dict(weights)
        vault.put_weights(f"parts/{name}.safetensors", weights)
    draw_pictures(vault, objective, val)
    gate = passed_gate(watch.best["summary"])
    vault.put_json("parts/card.json", card(stage, seen, objective.parts, gate))
    vault.put_json("scores.json", watch.rows)
    conclude(job, watch, num_cases, {"gate": gate, "collapse": collapsed(watch.best["summary"]), "loaded": loaded})
    vault.clear("checkpoints")  # nothing is resumed any more
    vault.clear("snapshots")


def hand_on(job: Job, watch: Watch, num_cases: int) -> None:
    """A segment of a trunk, whose rate never fell, leaves no parts but the state that the next stages go on from."""
    watch.save(watch.plan.num_steps, kept=1)
    if team()[0] == 0:
        conclude(job, watch, num_cases, {"epochs": job.stage.training.epochs})  # type: ignore[union-attr]


def conclude(job: Job, watch: Watch, num_cases: int, more: dict[str, Any]) -> None:
    """The curve and, last of all, the result."""
    job.vault.put("curve.jsonl", "\n".join(map(json.dumps, watch.curve)).encode())
    result = {
        "kind": job.stage.kind,
        "digest": job.stage.digest(),
        "summary": {f"val/{name}": value for name, value in watch.best["summary"].items()},
        "best_step": watch.best["step"],
        "num_steps": watch.plan.num_steps,
        "num_cases": num_cases,
        "precision": str(watch.precision).removeprefix("torch."),
        "seconds": watch.elapsed(),
        "peak_memory_mb": peak_memory_mb(watch.device),
    }
    job.vault.put_json("result.json", result | more)
    job.vault.clear("best")


def test(job: Job, emit: EventHandler, tasks: Callable[[Spec], Task]) -> None:
    """Scores the test part once, with the weights that val picked."""
    began = time.monotonic()
    with agreed():
        seen = domains(job.stage, tasks)
        task = seen[0].task
        samples = prepared(job, task, task.split("test"))
        objective, loaded = make_objective(job, seen)
        objective.to(device_of(job.train))
    emit(EvaluationStarted(num_images=len(samples)))
    rows = measured(objective, samples, precision_of(job.train))
    if team()[0] != 0:
        return
    constant = task.constant_baseline(prepared(job, task, task.split("train")), samples)
    vault, summary = job.vault, task.summary(rows)
    draw_pictures(vault, objective, samples)
    vault.put_json("scores.json", rows)
    vault.put_json("constant.json", constant)
    result = {
        "kind": "test",
        "digest": job.stage.digest(),
        "summary": {f"test/{name}": value for name, value in summary.items()},
        "undefined": undefined_classes(rows, task.classes) if "n_undefined" in summary else [],
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


def prepared(job: Job, task: Task, wanted: Sequence[Case], domain: int = 0) -> list[Sample]:
    """The cases with their prepared copies; made here where this machine has none yet."""
    entries = Cache(job.cache).prepare(wanted, task.recipe)
    refuse_unnamed(wanted, entries, task.labels)
    return [Sample(case, entry, domain) for case, entry in zip(wanted, entries, strict=True)]


def make_objective(job: Job, seen: Sequence[Domain]) -> tuple[Objective, dict[str, Any]]:
    """What the stage minimises, its weights drawn or loaded; and what was loaded. seen: the stage's data sets."""
    stage, settings, task = job.stage, job.stage.training, seen[0].task
    assert isinstance(settings, (Pretrain, Finetune))
    first, *more = dict.fromkeys((domain.task.channels, tuple(domain.task.roi)) for domain in seen)
    with drawn(settings.seed, "encoder"):
        encoder = plugin("encoders", stage.encoder).build(stage.encoder, *first, *more)
    if isinstance(settings, Pretrain):
        with drawn(settings.seed, "pretext"):
            assert stage.pretext is not None
            return plugin("pretext", stage.pretext).build(stage.pretext, encoder, seen, settings.weight_decay), {}
    with drawn(settings.seed, "head"):
        head = plugin("heads", settings.head).build(settings.head, encoder, task)
    loaded = {}
    if job.parent is not None:
        vault = Vault(job.storage, job.parent.folder)
        loaded["encoder"] = load_encoder(encoder, vault)
        for part in ("head",) if stage.kind == "test" else head.loads:
            module = head if part == "head" else head.get_submodule(part)
            loaded[part] = load_strictly(module, weights_of(vault, part), part)
    rates = {name: getattr(settings, name) for name in ("weight_decay", "layer_decay", "drop_path")}
    return Supervised(Network(encoder, head), task, **rates), loaded


def draw_pictures(vault: Vault, objective: Objective, samples: Sequence[Sample]) -> None:
    files = {int(Path(name).stem): name for name in vault.names() if name.startswith("snapshots/")}
    if len(files) > SNAPSHOTS:  # a trunk's segments each left some
        wanted = [max(files) * i / SNAPSHOTS for i in range(1, SNAPSHOTS + 1)]
        files = {step: files[step] for step in (min(files, key=lambda step: abs(step - each)) for each in wanted)}
    snapshots = {step: vault.get_weights(name) or {} for step, name in files.items()}
    objective.eval()
    with TemporaryDirectory() as folder:
        paths = objective.pictures(samples, Path(folder))
        for path in paths + (objective.film(samples, snapshots, Path(folder)) if snapshots else []):
            vault.put(f"pictures/{path.name}", path.read_bytes())
