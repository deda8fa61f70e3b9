"""Study: a sweep's trials (settings, states, values) in an Optuna database, from which a stopped sweep resumes.

The values drawn for a trial are a function of the search's seed, the trial's number and the trials before it.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from premed.config.spec import canonical
from premed.errors import StageFailed, UserError, first_line
from premed.paths import sqlite_file
from premed.reporting.sweep.result import State
from premed.rng import key
from premed.tracking.client import masked, with_driver
from premed.tracking.database import is_whole
from premed.tuning.space import Choice, Range, Setting, decode, encode
from premed.tuning.study_database import open_database
from premed.tuning.sweep_file import Sweep
from premed.tuning.trial import BEHIND

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.trial import FrozenTrial

STOPPED = re.compile(r"(outbox|spool) is closed|Ray has not been (started|initialized)")
"""Failures that stopping a command caused where it was recorded as a trial's own."""


@dataclass(frozen=True)
class TrialRecord:
    """A trial in the study."""

    number: int
    setting: Setting
    state: State
    values: tuple[float, ...] | None
    """By metric; None unless the trial is done."""
    curve: dict[int, float]
    """The best value so far after each validation of the first seed."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Stages and their costs, values by seed, why it failed."""


class Study:
    """One sweep's trials. One command at a time writes (it holds a lease); any number may read."""

    def __init__(self, sweep: Sweep, name: str, url: str, directions: Sequence[Any], must_exist: bool = False):
        """Opens the study `name`; creates it if it is missing, unless `must_exist`.

        Raises UserError if no database answers at `url`, or if the study is missing and must exist.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        self.sweep, self.url = sweep, (url := with_driver(url, "study: "))
        try:
            storage = open_database(url)
            if must_exist:
                self.study = optuna.load_study(study_name=name, storage=storage)
            else:
                self.study = optuna.create_study(
                    storage=storage, study_name=name, directions=list(directions), load_if_exists=True
                )
            self.study.get_trials(deepcopy=False)  # reads all, so that a damaged database is told here
        except KeyError:
            raise UserError(
                f"{sweep.search.name}: this sweep was never started; leave out --report to run it"
            ) from None
        except Exception as error:  # SQLAlchemy's, its driver's, or a missing driver's
            reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
            if (file := sqlite_file(url)) and file.is_file() and not is_whole(file):
                remedy = "move it away, and the same command searches anew and uses every finished stage"
                raise UserError(f"study: {file} is damaged ({reason}): {remedy}") from None
            raise UserError(masked(f"study: {url} does not answer ({reason}); name a database URL")) from None
        self.running: dict[int, Trial] = {}
        self.lock = threading.Lock()  # a trial ends once, and nothing is reported after its end
        self.interrupted: list[FrozenTrial] = []  # trials that an earlier command left running

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Raises StageFailed if the database does not take what is written: its disk is full, say."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (StorageInternalError, SQLAlchemyError) as error:  # Optuna's own text names another cause
            reason = masked(first_line(error.__cause__ or error))
            remedy = "free space, or repair its database, and run the same command again"
            raise StageFailed(f"study: {masked(self.url)} cannot be written ({reason}); {remedy}") from error

    def start(self, data: str, sources: str = "") -> None:
        """Prepares the study for `ask`; the caller must hold the sweep's lease. A grid's combinations are enqueued.

        data, sources: the fingerprints of the images, and of those of `pretrain.sources`. Raises UserError if one
        differs from that of an earlier start.
        """
        import optuna

        for name, now in (("data", data), ("sources", sources)):
            if self.note(name) not in (None, now):
                what = f"the {name} have changed since this sweep started; set another name:"
                raise UserError(f"{self.sweep.search.name}: {what}")
            self.set_note(name, now)
        self.reopen_stopped()
        self.set_note("optuna", sorted({optuna.__version__, *(self.note("optuna") or ())}))
        self.interrupted = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name == "RUNNING"]
        if self.sweep.search.search == "grid":
            known = {canonical(trial.setting) for trial in self.trials()}
            for setting in self.sweep.combinations():
                if canonical(setting) not in known:
                    with self.recording():
                        self.study.enqueue_trial({path: encode(value) for path, value in setting.items()})

    def reopen_stopped(self) -> None:
        """Sets trials to running that ended only because the command was stopped, and failed ones that were tried less
        often than `retries` now allows: `ask` then returns them.

        Earlier versions recorded the former as failed, or, in a sweep without a scheduler, as stopped. Optuna has no
        way to open an ended trial again, so its tables are changed.
        """
        import optuna
        import sqlalchemy as sql

        trials = self.study.get_trials(deepcopy=False)
        ended = [trial._trial_id for trial in trials if self.ended_by_stop(trial) or self.may_be_retried(trial)]
        if not ended:
            return
        storage = open_database(self.url)
        tables = sql.MetaData()
        states, notes = (
            sql.Table(name, tables, autoload_with=storage.engine) for name in ("trials", "trial_user_attributes")
        )
        with self.recording(), storage.engine.begin() as connection:
            opened = {"state": "RUNNING", "datetime_complete": None}
            connection.execute(sql.update(states).where(states.c.trial_id.in_(ended)).values(opened))
            of_them = notes.c.trial_id.in_(ended) & (notes.c.key == "failure")
            connection.execute(sql.delete(notes).where(of_them))
        # a new storage: the first one keeps ended trials in memory
        self.study = optuna.load_study(study_name=self.study.study_name, storage=storage)

    def ended_by_stop(self, trial: "FrozenTrial") -> bool:
        failed = trial.state.name == "FAIL" and STOPPED.search(str(trial.user_attrs.get("failure")))
        nobody = self.sweep.search.scheduler is None and BEHIND not in trial.user_attrs  # that would have stopped it
        return bool(failed) or (trial.state.name == "PRUNED" and nobody)

    def may_be_retried(self, trial: "FrozenTrial") -> bool:
        """Whether a trial failed, of a disk that was full, say, and `retries` allows more tries than it had."""
        return trial.state.name == "FAIL" and trial.user_attrs.get("tries", 1) <= self.sweep.search.retries

    # ---- ask

    def ask(self) -> TrialRecord | None:
        """Returns the next trial to run: an interrupted one, else a new one; None when there are enough."""
        from optuna import Trial

        if self.interrupted:
            frozen = self.interrupted.pop(0)
            trial = Trial(self.study, frozen._trial_id)
        else:
            trials = self.study.get_trials(deepcopy=False)
            num_started = sum(trial.state.name != "WAITING" for trial in trials)
            if num_started >= self.sweep.num_trials:
                return None
            self.study.sampler = self.sampler(num_started)
            with self.recording():
                trial = self.study.ask(self.distributions())
        self.running[trial.number] = trial
        return self.trial(trial.number)

    def sampler(self, number: int) -> Any:
        """Optuna's sampler for trial `number`, seeded by the number: a resumed sweep draws the same values."""
        from optuna.samplers import RandomSampler, TPESampler

        seed = key(self.sweep.search.seed, "sweep", number) % 2**32
        if self.sweep.search.search == "optuna":
            return TPESampler(
                seed=seed,
                n_startup_trials=10,  # named, though they are Optuna 5's defaults: these change between versions
                n_ei_candidates=24,
                multivariate=len(self.study.directions) == 1,
                group=False,
                constant_liar=self.sweep.search.concurrency > 1,
            )
        return RandomSampler(seed=seed)

    def distributions(self) -> dict[str, Any]:
        """The space as Optuna's distributions, by path."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        def distribution(values: Choice | Range) -> Any:
            if isinstance(values, Choice):
                return CategoricalDistribution([encode(value) for value in values.choice])
            if values.int:
                return IntDistribution(values.low, values.high)
            return FloatDistribution(values.low, values.high, log=values.loguniform is not None)

        return {path: distribution(values) for path, values in self.sweep.search.space.items()}

    # ---- tell

    def report_intermediate(self, number: int, validation: int, value: float) -> None:
        """Records a running trial's best value so far after a validation; ignored once the trial has ended."""
        with self.lock, self.recording():
            if number in self.running:
                self.running[number].report(value, validation)

    def tell(self, number: int, state: State, values: Sequence[float] | None, notes: dict[str, Any]) -> bool:
        """Records that a trial is done (with its values), stopped or failed. Returns False if it had ended before."""
        from optuna.trial import TrialState

        states = {"done": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
        with self.lock, self.recording():
            if (trial := self.running.pop(number, None)) is None:
                return False
            if "tries" in notes:  # those of earlier starts count, too
                notes = notes | {"tries": notes["tries"] + trial.user_attrs.get("tries", 0)}
            for name, value in notes.items():
                trial.set_user_attr(name, value)
            self.study.tell(trial, None if values is None else list(values), states[state])
        return True

    def note(self, name: str) -> Any:
        """A note on the sweep itself; None if there is none of that name."""
        return self.study.user_attrs.get(name)

    def set_note(self, name: str, value: Any) -> None:
        with self.recording():
            self.study.set_user_attr(name, value)

    # ---- reading

    def trial(self, number: int) -> TrialRecord:
        return next(trial for trial in self.trials() if trial.number == number)

    def trials(self) -> list[TrialRecord]:
        """All trials, by number."""
        return [self._record(trial) for trial in self.study.get_trials(deepcopy=False)]

    def _record(self, trial: "FrozenTrial") -> TrialRecord:
        states: dict[str, State] = {"WAITING": "waiting", "RUNNING": "running", "COMPLETE": "done", "PRUNED": "stopped"}
        space = self.sweep.search.space
        params = trial.params or trial.system_attrs.get("fixed_params", {})
        return TrialRecord(
            number=trial.number,
            setting={path: decode(values, params[path]) for path, values in space.items() if path in params},
            state=states.get(trial.state.name, "failed"),
            values=tuple(trial.values) if trial.values and trial.state.name == "COMPLETE" else None,
            curve=dict(sorted(trial.intermediate_values.items())),
            notes=dict(trial.user_attrs),
        )

    def best(self) -> TrialRecord | None:
        """The best of the trials that are done, by the first metric; None if none is."""
        done = [trial for trial in self.trials() if trial.state == "done" and trial.values]
        sign = -1 if self.study.directions[0].name == "MAXIMIZE" else 1
        return min(done, key=lambda trial: sign * trial.values[0] if trial.values else 0.0, default=None)

    def front(self) -> list[int]:
        """The numbers of the trials on the Pareto front; with one metric, the best trial alone."""
        if not any(trial.state == "done" for trial in self.trials()):
            return []
        best = sorted(trial.number for trial in self.study.best_trials)
        return best if len(self.study.directions) > 1 else best[:1]

    def importances(self) -> dict[str, float] | None:
        """Optuna's importances by PED-ANOVA, largest first: how much each field tells of whether a trial is among the
        best tenth, as shares of 1.

        None if there are too few trials.
        """
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
        from optuna.trial import TrialState

        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        varied = {path for path in self.sweep.search.space if len({str(t.params.get(path)) for t in done}) > 1}
        if len({trial.values[0] for trial in done}) < 2 or len(done) < 4 or not varied:
            return None
        evaluator = PedAnovaImportanceEvaluator(target_quantile=0.1, region_quantile=1.0, evaluate_on_local=True)
        importances = get_param_importances(self.study, evaluator=evaluator, target=self._first_metric())
        return {path: float(share) for path, share in importances.items()}

    def _first_metric(self) -> "Callable[[FrozenTrial], float] | None":
        """The target of importances; None if there is one metric. Optuna takes lower values of a target as better."""
        from optuna.study import StudyDirection

        if len(self.study.directions) == 1:
            return None
        sign = -1 if self.study.directions[0] == StudyDirection.MAXIMIZE else 1
        return lambda trial: sign * trial.values[0]
