"""`premed sweep`: trials of a base experiment over a space, chosen by a search, scored on val, gone on with if stopped.

Two things are its memory: the study (what was tried, and what came of it) and the stages that are there. Started again,
it tries what the study has not seen the end of, and every stage that is finished is found.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import pstdev
from typing import Any

from premed.errors import CalledOff, StageFailed, UserError, first_line
from premed.events import Event, EventHandler, MetricsLogged, SweepStarted, TrialEnded, TrialStarted, WarningIssued
from premed.execution.preflight import resolve, validate
from premed.execution.recorder import row
from premed.execution.session import Session, session
from premed.reporting.sweep.result import SweepResult
from premed.tuning.context import SweepContext, as_written, trains_of
from premed.tuning.space import Sweep
from premed.tuning.study import State, Study, TrialRecord
from premed.tuning.trial import Trial, Validations
from premed.tuning.tune import conduct, rungs, scheduler_of

WAIT = 0.5  # seconds between two looks at whether all trials are through


def run(sweep: Sweep, show: EventHandler) -> SweepResult:
    """Runs what is not there yet, writes the report and returns the result.

    Raises UserError, before anything starts, if the sweep cannot run.
    """
    sweep.look()
    plan, trains = SweepContext(sweep), trains_of(sweep)
    if any(train.workers == 0 for train in trains):
        raise UserError("train.workers: a sweep runs on Ray; set 1 or more")
    validate([plan.resolved])
    study = plan.study()
    hearing = Hearing(show)
    with session(trains, plan.resolved.tasks, hearing) as here:
        running = Running(plan, study, here, hearing)
        with running.alone():
            running.run()
    return plan.result(study)


def report(sweep: Sweep) -> SweepResult:
    """Writes the report of a sweep that runs, was stopped or is over; returns its result so far.

    Raises UserError if the sweep never began.
    """
    sweep.look()
    plan = SweepContext(sweep)
    result = plan.result(plan.study(begun=True))
    plan.write(result)
    return result


class Hearing:
    """A session's events on their way to who shows them; the rows of a trial's first seed are its validations."""

    def __init__(self, show: EventHandler):
        self.show = show
        self.ears: dict[str, Validations] = {}

    def __call__(self, event: Event) -> None:
        self.show(event)
        ear = self.ears.get(event.experiment)
        if ear and isinstance(event, MetricsLogged) and event.kind == "finetune":
            ear(event)


class Running:
    """A sweep under way: `tuning.Work`, done by a thread for each trial."""

    def __init__(self, plan: SweepContext, study: Study, here: Session, hearing: Hearing):
        self.plan, self.study, self.here, self.hearing = plan, study, here, hearing
        self.sweep, self.search = plan.sweep, plan.sweep.search
        self.rungs = rungs(self.search.scheduler, plan.validations)
        self.trials: dict[int, Trial] = {}
        self.threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []
        self.news: Any = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other command runs this sweep."""
        waiting = False
        while not self.here.tracker.acquire(self.plan.digest):
            if not waiting:
                self.here.show(WarningIssued("another command runs this sweep; waiting for its end"))
            waiting = True
            self.here.pause(1.0)
        try:
            yield
        finally:
            self.here.tracker.release(self.plan.digest)

    def run(self) -> None:
        """All trials; the last of them is through when this is back."""
        self.study.begin(self.here.fingerprint(self.plan.base.task, "finetune"))
        self.open()
        ended = [told for told in self.study.trials() if told.state in ("done", "stopped")]
        scheduler = scheduler_of(self.search.scheduler, self.plan.modes[0], self.plan.validations, ended)
        left = self.sweep.num_trials - sum(told.state in ("done", "stopped", "failed") for told in self.study.trials())
        self.here.show(SweepStarted(self.sweep.num_trials, left, self.plan.modes))
        folder = self.plan.where / "tune"
        tune = threading.Thread(
            target=self.guarded,
            args=(conduct, self, self.heed, scheduler, self.search.concurrency, folder),
            daemon=True,
        )
        tune.start()
        try:
            while tune.is_alive() or any(thread.is_alive() for thread in self.threads):
                self.here.pause(WAIT)
                if self.errors:
                    raise self.errors[0]
        except BaseException:
            self.here.stopped.set()
            self.close()
            tune.join()
            raise
        self.end()

    def guarded(self, work: Callable, *args: Any) -> None:
        """What goes wrong in a thread ends the sweep."""
        try:
            work(*args)
        except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt, too: the command was stopped
            self.errors.append(error)

    def heed(self, news: Any) -> None:
        self.news = news
        if self.errors or self.here.stopped.is_set():
            self.close()

    def close(self) -> None:
        """Nothing more begins; Tune's processes end."""
        if self.news is not None:
            self.news.close.remote()
        for thread in self.threads:
            thread.join()

    # ---- tuning.Work

    def next(self) -> TrialRecord | None:
        if self.here.stopped.is_set():
            return None
        return self.study.next()

    def begin(self, number: int) -> None:
        if number in self.trials:  # Tune's process was started again
            return
        told = self.study.told(number)
        named = {"name": self.sweep.label(told.setting)}
        validations = None
        if self.search.scheduler:
            known = {int(at): value for at, value in told.curve.items()}
            asked = self.plan.metrics[0], self.plan.modes[0], self.plan.validations
            validations = Validations(*asked, known, partial(self.heard, number), partial(self.rule, number))
        self.trials[number] = trial = Trial(
            number=number,
            seeds=self.search.seeds,
            experiments=lambda: resolve(
                [each.model_copy(update=named) for each in self.sweep.experiments(told.setting)],
                self.plan.resolved.tasks,
            ),
            here=self.here,
            metrics=self.plan.metrics,
            show=self.hearing,
            validations=validations,
        )
        if validations is not None:
            self.hearing.ears[trial.who(0)] = validations
            for validation, value in told.curve.items():  # of an earlier start
                self.tell(number, validation, value, 0)
        thread = threading.Thread(target=self.guarded, args=(self.work, trial, told), name=f"premed {trial.who(0)}")
        self.threads.append(thread)
        thread.start()
        trial.begun.wait()

    def heard(self, number: int, validation: int, value: float, step: int) -> None:
        """A trial's validation is in the study before its training goes on."""
        self.study.heard(number, validation, value)
        if validation in self.rungs:
            self.tell(number, validation, value, step)  # Tune's answer is `rule` or `stop`
        else:
            self.rule(number, step)

    def tell(self, number: int, validation: int, value: float, step: int) -> None:
        if validation in self.rungs:
            self.news.tell.remote(number, {"validation": validation, "value": value, "step": step})

    def rule(self, number: int, step: int) -> None:
        self.trials[number].rule(step)

    def stop(self, number: int, failure: str = "") -> None:
        """Tune is through with it: early, where it is still at work (and the sweep is), or because of a `failure`."""
        trial = self.trials[number]
        if failure:
            self.here.ensure_alive()
        notes = trial.notes | ({"failure": failure} if failure else {})
        if not self.here.stopped.is_set() and self.study.end(number, "failed" if failure else "stopped", None, notes):
            trial.failure = failure
            trial.called_off.set()

    # ---- a trial

    def work(self, trial: Trial, told: TrialRecord) -> None:
        """A trial's thread, from its start to its record."""
        label = self.sweep.label(told.setting)
        self.here.show(TrialStarted(trial.number, label))
        trial.run_id = self.open_trial(told, label)
        state: State = "done"
        values, failure = None, ""
        try:
            values = trial.run(self.search.retries)
        except CalledOff:
            pass
        except KeyboardInterrupt:
            self.close_run(trial.run_id, "KILLED")
            raise
        except (UserError, StageFailed) as error:
            self.here.ensure_alive()
            state, failure = "failed", first_line(error)
        notes = trial.notes | ({"failure": failure} if failure else {})
        if trial.called_off.is_set() or not self.study.end(trial.number, state, values, notes):  # `stop` was first
            state, values, failure = "failed" if trial.failure else "stopped", None, trial.failure
        self.record(trial, state, values, failure)
        self.news.end.remote(trial.number)
        self.here.show(TrialEnded(trial.number, label, state, self.plan.metrics, values, failure))

    # ---- MLflow: a run for the sweep, one for each trial below it

    def open(self) -> None:
        about = {"sweep": self.plan.name, "search": self.search.search, "trials": str(self.sweep.num_trials)}
        tags = {"task": self.plan.task.name, "strategy": self.plan.base.strategy, "stage": "sweep"} | about
        params = {path: str(as_written(values)) for path, values in self.search.space.items()}
        named = self.plan.task.name, self.plan.digest, "sweep"
        found = self.here.tracker.newest_run(*named)
        if found is None:
            opened = self.plan.name, self.plan.digest, "sweep", None, tags, params
            found = self.here.tracker.open_run(self.plan.task.name, *opened)
        else:
            self.here.tracker.reopen_run(found)
        self.run_id = found
        self.study.set_note("run_id", found)

    def open_trial(self, told: TrialRecord, label: str) -> str:
        digest = hashlib.sha256(f"{self.plan.digest} {told.number}".encode()).hexdigest()
        tags = {"task": self.plan.task.name, "strategy": self.plan.base.strategy, "stage": "trial"}
        tags |= {"sweep": self.plan.name, "trial": str(told.number)}
        opened = f"trial {told.number} {label}", digest, "trial", self.run_id, tags, told.setting
        return self.here.tracker.open_run(self.plan.task.name, *opened)

    def record(self, trial: Trial, state: State, values: list[float] | None, failure: str) -> None:
        tracker, by_seed = self.here.tracker, list(trial.by_seed.values())
        numbers: dict[str, float] = {}
        for place, (metric, value) in enumerate(zip(self.plan.metrics, values or (), strict=False)):
            numbers[metric] = value
            if len(by_seed) > 1:
                numbers[f"{metric}_std"] = pstdev([each[place] for each in by_seed])
        ours = [stage for stage in trial.stages if not stage["reused"]]
        numbers["seconds"] = sum(stage["seconds"] for stage in ours)
        tracker.log_rows(trial.run_id, [row(0, numbers)])
        runs = [pipeline.recorder.run_id for pipeline in trial.pipelines]
        for run_id in [*runs, *(stage["run_id"] for stage in ours)]:
            tracker.set_tags(run_id, {"sweep": self.plan.name, "trial": str(trial.number)})
        tags = {"state": state} | ({"premed.failure": failure} if failure else {})
        tags |= {"experiment_run": runs[0]} if runs else {}
        tracker.set_tags(trial.run_id, tags)
        self.close_run(trial.run_id, "FAILED" if state == "failed" else "FINISHED")

    def close_run(self, run_id: str, status: str) -> None:
        self.here.tracker.finish(run_id, status)

    def end(self) -> None:
        """The sweep's run: its best values, and the best trial's YAML."""
        result, tracker = self.plan.result(self.study), self.here.tracker
        for place, metric in enumerate(self.plan.metrics):
            values = [trial.values[place] for trial in result.trials if trial.number in result.front and trial.values]
            if values:
                best = max if self.plan.modes[place] == "max" else min
                tracker.log_rows(self.run_id, [row(self.sweep.num_trials, {metric: best(values)})])
        for file in self.plan.write(result):
            tracker.log_files(self.run_id, str(file))
        self.close_run(self.run_id, "FINISHED")
