"""SweepContext: a sweep's name, digest, folder, metrics and task; makes the sweep's result from its study."""

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

import yaml

from premed.config.experiment import Experiment
from premed.config.settings import Pretrain, Train
from premed.config.spec import Spec, canonical
from premed.contracts import Task
from premed.errors import UserError
from premed.execution.preflight import Resolved, resolve
from premed.execution.session import Session
from premed.paths import ensure_home, home, sqlite_url, writing
from premed.reporting.formatting import LOWER_IS_BETTER
from premed.reporting.sweep import page, terminal
from premed.reporting.sweep.result import StageResult, SweepResult, TrialResult
from premed.training.privacy import Privacy
from premed.tuning.search import COSTS, Mode
from premed.tuning.space import MAX_CHECKED, Choice, Range, Setting
from premed.tuning.study import Study, TrialRecord
from premed.tuning.sweep_file import Sweep
from premed.tuning.trial import BEHIND

MEND = "make room there, or fix its permissions"


class SweepContext:
    """What a sweep's file determines: the base experiment and its task, metrics and modes, digest, name, folder."""

    def __init__(self, sweep: Sweep):
        if sweep.base.finetune is None:
            raise UserError("finetune: is missing in the sweep's base; a sweep scores fine-tunings, on val")
        (self.resolved,) = resolve([sweep.base])
        self.sweep, self.base, self.task = sweep, self.resolved.experiment, self.resolved.task
        self.metrics = sweep.search.metric or (f"val/{self.task.score}",)
        refuse_unknown_metrics(self.task, self.metrics, sweep.search.scheduler is not None)
        self.modes = sweep.search.mode or tuple(map(default_mode, self.metrics))
        defining = [sweep.search, self.base, self.metrics, self.modes]
        if moving := {name: digest for name, digest in self.encoders().items() if "@" in name}:  # of an alias
            defining.append(moving)
        if others := other_settings(sweep):
            defining.append(others)
        self.digest = hashlib.sha256(canonical(defining).encode()).hexdigest()
        self.name = sweep.search.name
        self.where = home() / "sweeps" / f"{self.name}-{self.digest[:8]}"

    def experiments(self, setting: Setting) -> list[Resolved]:
        """The experiments of a trial, one for each seed. Raises UserError if the setting is invalid."""
        label = {"name": self.sweep.label(setting)}
        return resolve([each.model_copy(update=label) for each in self.sweep.experiments(setting)], self.resolved)

    def encoders(self) -> dict[str, str]:
        """The digests of the finished pre-trainings that the space names, which are all looked up before it starts."""
        if not any(path.split(".")[0] in ("pretrain", "pretext") for path in self.sweep.search.space):
            return {}
        named = [each.pretrained.encoder for each in variants(self.sweep, "pretrain", "pretext") if each.pretrained]
        return {name: self.resolved.pretrainings(name).digest for name in dict.fromkeys(named)}

    def fingerprints(self, session: Session) -> tuple[str, str]:
        """Those of the images, and of the images of `pretrain.sources`, empty without them."""
        trainings = (each.pretrain for each in (self.base, *variants(self.sweep, "pretrain", "pretext")))
        sources = next((each.sources for each in trainings if isinstance(each, Pretrain) and each.sources), ())
        others = [session.fingerprint(each.task, "pretrain") for each in sources]
        return session.fingerprint(self.base.task, "finetune"), " ".join(others)

    def study(self, must_exist: bool = False) -> Study:
        """Opens the sweep's study, or creates it unless `must_exist`; see `Study`."""
        directions = [f"{mode}imize" for mode in self.modes]
        url = self.sweep.search.study or sqlite_url(ensure_home() / "sweeps.db")
        return Study(self.sweep, f"{self.name} {self.digest[:16]}", url, directions, must_exist)

    @cached_property
    def num_validations(self) -> int:
        """The number of validations of a fine-tuning."""
        assert self.base.finetune is not None
        return self.base.finetune.validations

    def result(self, study: Study) -> SweepResult:
        """The sweep's result so far."""
        search, front, trials = self.sweep.search, study.front(), study.trials()
        return SweepResult(
            name=self.name,
            task=self.task.name,
            strategy=self.base.strategy,
            score=self.task.score,
            search=search.search,
            scheduler=search.scheduler and search.scheduler.name,
            metrics=list(self.metrics),
            modes=list(self.modes),
            space={path: as_written(values) for path, values in search.space.items()},
            seeds=list(search.all_seeds),
            num_trials=max(self.sweep.num_trials, len(trials)),  # `trials` may have been lowered
            where=str(self.where),
            run_id=study.note("run_id"),
            trials=[trial_result(trial) for trial in trials],
            best=front[0] if len(self.metrics) == 1 and front else None,
            front=front,
            importances=study.importances(),
        )

    def write(self, result: SweepResult) -> list[Path]:
        """Writes report.html, trials.csv and best.yaml (the best trial's experiment with its test); returns the paths.

        `premed run best.yaml` reuses the trial's stages and tests the first seed's fine-tuning.
        """
        with writing(self.where, MEND):
            self.where.mkdir(parents=True, exist_ok=True)
        files = [self.where / name for name in ("report.html", "trials.csv")]
        page.write(result, files[0])
        terminal.write_csv(result, files[1])
        if result.best is not None:
            setting = next(trial.setting for trial in result.trials if trial.number == result.best)
            experiment = self.resolved.pretrainings.pinned(self.sweep.experiments_with_test(dict(setting))[0])
            header = f"# trial {result.best} of {self.name}: {self.sweep.label(dict(setting))}\n"
            fields = experiment.model_dump(mode="json")
            shown = Privacy.of(experiment.tracking).without_names(fields)
            if shown != fields:
                header += "# tracking.hash_ids: nothing that names cases or files; premed run YOURS.yaml best.yaml\n"
            files.append(self.where / "best.yaml")
            with writing(files[-1], MEND):
                files[-1].write_text(header + yaml.safe_dump(shown, sort_keys=False), encoding="utf-8")
        return files


def as_written(values: Choice | Range) -> Any:
    """A field's values as the sweep's file writes them: a list, or {"uniform": (low, high)}."""
    return list(values.choice) if isinstance(values, Choice) else values.model_dump(exclude_none=True)


def trial_result(trial: TrialRecord) -> TrialResult:
    """The result of a trial, from its record in the study."""
    return TrialResult(
        number=trial.number,
        setting=trial.setting,
        state=trial.state,
        values=trial.values,
        by_seed=trial.notes.get("by_seed", {}),
        curve=trial.curve,
        stages=[StageResult(**stage) for stage in trial.notes.get("stages", [])],
        failure=trial.notes.get("failure"),
        run_id=trial.notes.get("run_id"),
        behind=trial.notes.get(BEHIND),
    )


def train_settings(sweep: Sweep) -> list[Train]:
    """The distinct `train` settings of all trials, to refuse those that no node can run before anything starts."""
    return list(dict.fromkeys([sweep.base.train, *(each.train for each in variants(sweep, "train"))]))


def variants(sweep: Sweep, *names: str) -> Iterator[Experiment]:
    """Yields an experiment for each combination of the space's values of these fields and fields below them."""
    first = next(sweep.combinations())
    space = {path: values for path, values in sweep.search.space.items() if path.split(".")[0] in names}
    for values in islice(product(*(each.grid_values for each in space.values())), MAX_CHECKED):
        with suppress(UserError):  # values that do not fit together fail their trial, not the sweep
            yield sweep.experiments(first | dict(zip(space, values, strict=True)))[0]


def other_settings(sweep: Sweep) -> dict[str, list[Any]]:
    """What trials take from the sweep's base and the experiment of the first combination does not show, by the trial's
    setting: with space.pretext [none, mae] the settings of the pre-training, which `none` has none of.

    Empty for most sweeps.
    """
    shown, first = dict(stated_fields(sweep.base)), next(sweep.combinations())
    words = {path: each.choice for path, each in sweep.search.space.items() if isinstance(each, Choice) and each.words}
    alone = [{**first, path: value} for path, values in words.items() for value in values]
    together = ({**first, **dict(zip(words, values, strict=True))} for values in product(*words.values()))
    found: dict[str, list[Any]] = {}
    for setting in chain(alone, islice(together, MAX_CHECKED)):
        with suppress(UserError):  # values that do not fit together fail their trial, not the sweep
            stated = stated_fields(sweep.first_experiment(setting))
            hidden = [[path, value] for path, value in stated if path not in setting and shown.get(path) != value]
            if hidden:
                found[canonical(setting)] = hidden
    return found


def stated_fields(spec: Spec, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields path and canonical value of each field below `spec` that changes a result and is not at its default."""
    unused = spec.unused_fields()
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        if name in unused or value == field.default or (field.json_schema_extra or {}).get("digest") is False:  # type: ignore[union-attr]
            continue
        if isinstance(value, Spec):
            yield from stated_fields(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", canonical(value)


def refuse_other_val(context: SweepContext) -> None:
    """Raises UserError if trials would be scored on different images, labels or classes of val: their scores cannot be
    compared."""
    paths = [path for path in context.sweep.search.space if path.split(".")[0] == "task"]

    def val(task: Task) -> list[Any]:
        cases = task.split("val")
        return [task.classes, *(str((case.name, () if isinstance(case.label, Path) else case.label)) for case in cases)]

    for experiment in variants(context.sweep, "task") if paths else ():
        try:
            differs = val(context.resolved.tasks(experiment.task)) != val(context.task)
        except UserError:  # values that do not fit fail their trial
            continue
        if differs:
            what = "trials would be scored on other images of val, or other labels, and cannot be compared"
            raise UserError(f"space.{', space.'.join(paths)}: {what}; make a sweep of each")


def default_mode(metric: str) -> Mode:
    """min for a cost, a distance (`val/hd95`, `val/hd95/liver`) or a count of failures (`val/n_missed`); else max."""
    score = metric.removeprefix("val/").partition("/")[0]
    return "min" if metric in COSTS or score in LOWER_IS_BETTER or score.startswith("n_") else "max"


def refuse_unknown_metrics(task: Any, metrics: Sequence[str], by_step: bool) -> None:
    """Raises UserError for a metric that no validation of the task has, or none that a scheduler can follow.

    by_step: a scheduler compares it at each validation, where scores of single classes are not logged.
    """
    if not hasattr(task, "example_rows"):  # a task of its own: the first trial finds out
        return
    known = sorted(f"val/{name}" for name in task.summary(task.example_rows()))
    for metric in metrics:
        if metric not in (*known, *COSTS):
            close = difflib.get_close_matches(metric, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(f"metric: {task.name} has no {metric}; {hint}there are {', '.join(known)}")
        if by_step and "/" in metric.removeprefix("val/"):
            raise UserError(f"scheduler: {metric} is not compared while a trial runs; name its mean, or no scheduler")
