"""`premed sweep`: Ray Tune and Optuna over the fields of a base experiment, scored on val; a stopped sweep resumes.

A sweep resumes from two things: the study (the trials so far and their values) and the finished stages. Started again,
it runs the trials that have not ended in the study, and reuses every finished stage.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import stdev
from typing import Any

from premed.errors import CalledOff, StageFailed, UserError, first_line
from premed.events import EventHandler, SweepStarted, TrialEnded, TrialStarted, WarningIssued
from premed.execution.preflight import validate
from premed.execution.recorder import row
from premed.execution.session import Session, open_session
from premed.reporting.sweep.result import State, SweepResult
from premed.tuning.context import SweepContext, as_written, refuse_other_val, train_settings
from premed.tuning.schedulers import TIME, VALUE, make_scheduler, rungs
from premed.tuning.seeds import find_behind
from premed.tuning.study import Study, TrialRecord
from premed.tuning.sweep_file import Sweep
from premed.tuning.trial import EventRouter, Trial, Validations

POLL = 0.5  # seconds between two checks whether all trials have ended


def run(sweep: Sweep, show: EventHandler) -> SweepResult:
    """Runs the trials that have not ended yet, writes the report and returns the result.

    Raises UserError, before anything starts, if the sweep cannot run.
    """
    sweep.validate()
    context, trains = SweepContext(sweep), train_settings(sweep)
    if any(train.workers == 0 for train in trains):
        raise UserError("train.workers: a sweep runs on Ray; set 1 or more")
    validate([context.resolved])
    refuse_other_val(context)
    study, router = context.study(), EventRouter(show)
    with open_session(trains, context.resolved.tasks, router) as session:
        runner = SweepRunner(context, study, session, router)
        with runner.exclusive():
            runner.run()
    return context.result(study)


def report(sweep: Sweep) -> SweepResult:
    """Writes the report of a sweep that runs, was stopped or is over; returns its result so far.

    Raises UserError if the sweep was never started.
    """
    sweep.validate()
    context = SweepContext(sweep)
    result = context.result(context.study(must_exist=True))
    context.write(result)
    return result


class SweepRunner:
    """Runs a sweep: implements `tune.TrialRunner` with a thread for each trial."""

    def __init__(self, context: SweepContext, study: Study, session: Session, router: EventRouter):
        self.context, self.study, self.session, self.router = context, study, session, router
        self.sweep, self.search, self.tracker = context.sweep, context.sweep.search, session.tracker
        self.rungs = rungs(self.search.scheduler, context.num_validations)
        self.trials: dict[int, Trial] = {}
        self.threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []
        self.reports: Any = None  # the TrialReports actor
        self.run_id = ""  # the sweep's run in MLflow

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Holds the lease of the sweep, so that no other command runs it; waits for it."""
        waiting = False
        while not self.tracker.acquire(self.context.digest):
            if not waiting:
                self.session.show(WarningIssued("another command runs this sweep; waiting for its end"))
            waiting = True
            self.session.pause(1.0)
        try:
            yield
        finally:
            self.tracker.release(self.context.digest)

    def run(self) -> None:
        """Runs all trials; returns when the last has ended. Raises the first exception of a thread."""
        from premed.tuning.tune import run_tune  # imports Ray

        self.session.refuse_leaks(self.context.resolved)
        self.study.start(*self.context.fingerprints(self.session))
        self.open_sweep_run()
        trials = self.study.trials()
        scored = [trial for trial in trials if trial.state in ("done", "stopped")]
        num_ended = len(scored) + sum(trial.state == "failed" for trial in trials)
        scheduler = make_scheduler(self.search.scheduler, self.context.modes[0], self.context.num_validations, scored)
        num_trials = max(self.sweep.num_trials, num_ended)
        self.session.show(SweepStarted(num_trials, num_trials - num_ended, self.context.modes))
        folder = self.context.where / "tune"
        tune = threading.Thread(
            target=self.collect_errors,
            args=(run_tune, self, self.set_reports, scheduler, self.search.concurrency, folder),
            daemon=True,
        )
        try:
            tune.start()
            while tune.is_alive() or any(thread.is_alive() for thread in self.threads):
                self.session.pause(POLL)
                if self.errors:
                    raise self.errors[0]
        except BaseException:
            self.session.stopped.set()
            self.close(tune)
            raise
        self.close_sweep_run()

    def collect_errors(self, function: Callable, *args: Any) -> None:
        """The target of threads: calls `function`. `run` re-raises its exception, which ends the sweep."""
        try:
            function(*args)
        except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt, too: the command was stopped
            self.errors.append(error)

    def set_reports(self, reports: Any) -> None:
        """Stores the TrialReports actor; closes it at once if the sweep was stopped before."""
        self.reports = reports
        if self.errors or self.session.stopped.is_set():
            reports.close.remote()

    def close(self, tune: threading.Thread) -> None:
        """Ends Tune's trial processes, and waits for Tune's thread, which starts trials, and for the trials'."""
        if self.reports is not None:
            self.reports.close.remote()
        if tune.ident is not None:  # else the command was stopped before it began
            tune.join()
        for thread in self.threads:
            thread.join()

    # ---- tune.TrialRunner

    def next_trial(self) -> TrialRecord | None:
        return None if self.session.stopped.is_set() else self.study.ask()

    def start_trial(self, number: int) -> None:
        if number in self.trials or self.session.stopped.is_set():  # Tune has restarted the trial's process; or no more
            return
        record, validations = self.study.trial(number), None
        if self.search.scheduler:
            validations = Validations(
                metric=self.context.metrics[0],
                mode=self.context.modes[0],
                total=self.context.num_validations,
                best={int(validation): value for validation, value in record.curve.items()},
                on_validation=partial(self.report_validation, number),
                on_skipped=partial(self.continue_trial, number),
            )
        self.trials[number] = trial = Trial(
            number=number,
            seeds=self.search.all_seeds,
            experiments=partial(self.context.experiments, record.setting),
            session=self.session,
            metrics=self.context.metrics,
            show=self.router,
            validations=validations,
            looks=self.search.looks,
            find_behind=partial(find_behind, self.context, self.study, self.session.show, number),
        )
        name = trial.experiment_name(0)
        if validations is not None:
            self.router.validations[name] = validations
            for validation, value in record.curve.items():  # of an earlier start
                self.report_to_tune(number, validation, value, 0)
        arguments = self.run_trial, trial, record
        thread = threading.Thread(target=self.collect_errors, args=arguments, name=f"premed {name}")
        self.threads.append(thread)
        thread.start()
        trial.queued.wait()

    def continue_trial(self, number: int, step: int) -> None:
        if number in self.trials:
            self.trials[number].allow(step)

    def stop_trial(self, number: int, failure: str = "") -> None:
        if self.session.stopped.is_set():  # Tune ends its trials because the command ends
            return
        trial = self.trials[number]
        if failure:
            self.session.ensure_alive()
        notes = trial.notes | ({"failure": failure} if failure else {})
        if self.study.tell(number, "failed" if failure else "stopped", None, notes):
            trial.failure = failure
            trial.cancelled.set()

    # ---- validations

    def report_validation(self, number: int, validation: int, value: float, step: int) -> None:
        """Reports a trial's validation to the study, then to Tune, which answers whether training continues."""
        self.study.report_intermediate(number, validation, value)
        if validation in self.rungs:
            self.report_to_tune(number, validation, value, step)  # Tune calls continue_trial or stop_trial
        else:
            self.continue_trial(number, step)

    def report_to_tune(self, number: int, validation: int, value: float, step: int) -> None:
        """Reports a validation to Tune if the scheduler decides at it."""
        if validation in self.rungs:
            self.reports.add.remote(number, {TIME: validation, VALUE: value, "step": step})

    # ---- a trial

    def run_trial(self, trial: Trial, record: TrialRecord) -> None:
        """Runs a trial in its thread and records its end, in the study and in MLflow."""
        try:
            self.run_and_record(trial, record)
        finally:
            trial.queued.set()  # `start_trial` waits for it

    def run_and_record(self, trial: Trial, record: TrialRecord) -> None:
        label = self.sweep.label(record.setting)
        self.session.show(TrialStarted(trial.number, label))
        trial.run_id = self.open_trial_run(record, label)
        state: State = "done"
        values, failure = None, ""
        try:
            values = trial.run(self.search.retries)
            state = "done" if values else "stopped"
        except CalledOff:
            pass
        except KeyboardInterrupt:
            self.tracker.finish(trial.run_id, "KILLED")
            raise
        except (UserError, StageFailed) as error:
            self.session.ensure_alive()
            state, failure = "failed", first_line(error)
        notes = trial.notes | ({"failure": failure} if failure else {})
        if trial.cancelled.is_set() or not self.study.tell(trial.number, state, values, notes):
            # stop_trial has recorded the end
            state, values, failure = "failed" if trial.failure else "stopped", None, trial.failure
        self.close_trial_run(trial, state, values, failure)
        self.reports.end.remote(trial.number)
        self.session.show(TrialEnded(trial.number, label, state, self.context.metrics, values, failure))

    # ---- MLflow: a run for the sweep, and a child run for each trial

    def open_sweep_run(self) -> None:
        """Starts the sweep's run, or reopens that of an earlier start."""
        context, kind = self.context, "sweep"
        tags = {"task": context.task.name, "strategy": context.base.strategy, "stage": kind}
        tags |= {"sweep": context.name, "search": self.search.search, "trials": str(self.sweep.num_trials)}
        params = {path: str(as_written(values)) for path, values in self.search.space.items()}
        run_id = self.tracker.newest_run(context.task.name, context.digest, kind)
        if run_id is None:
            run_id = self.tracker.open_run(context.task.name, context.name, context.digest, kind, None, tags, params)
        else:
            self.tracker.reopen_run(run_id, params)
        self.run_id = run_id
        self.study.set_note("run_id", run_id)

    def open_trial_run(self, record: TrialRecord, label: str) -> str:
        """Starts or reopens a trial's run, below the sweep's; returns its id."""
        context, name = self.context, f"trial {record.number} {label}"
        digest = hashlib.sha256(f"{context.digest} {record.number}".encode()).hexdigest()
        tags = {"task": context.task.name, "strategy": context.base.strategy, "stage": "trial"}
        tags |= {"sweep": context.name, "trial": str(record.number)}
        return self.tracker.open_run(context.task.name, name, digest, "trial", self.run_id, tags, record.setting)

    def close_trial_run(self, trial: Trial, state: State, values: list[float] | None, failure: str) -> None:
        """Logs a trial's values and costs, tags the runs of its experiments and stages, and ends its run."""
        tracker, by_seed = self.tracker, list(trial.by_seed.values())
        numbers: dict[str, float] = {}
        for i, (metric, value) in enumerate(zip(self.context.metrics, values or (), strict=False)):
            numbers[metric] = value
            if len(by_seed) > 1:
                numbers[f"{metric}_std"] = stdev([each[i] for each in by_seed])
        trained = [stage for stage in trial.stages if not stage["reused"]]
        numbers["trained_seconds"] = sum(stage["seconds"] for stage in trained)
        tracker.log_rows(trial.run_id, [row(0, numbers)])
        experiment_runs = [pipeline.recorder.run_id for pipeline in trial.pipelines]
        for run_id in [*experiment_runs, *(stage["run_id"] for stage in trained)]:
            tracker.set_tags(run_id, {"sweep": self.context.name, "trial": str(trial.number)})
        reasons = {"premed.failure": failure, "premed.behind": trial.behind}
        tags: dict[str, str] = {"state": state} | {name: why for name, why in reasons.items() if why}
        tags |= {"experiment_run": experiment_runs[0]} if experiment_runs else {}
        tracker.set_tags(trial.run_id, tags)
        tracker.finish(trial.run_id, "FAILED" if state == "failed" else "FINISHED")

    def close_sweep_run(self) -> None:
        """Logs the best values and the report's files, and ends the sweep's run."""
        result = self.context.result(self.study)
        for i, metric in enumerate(self.context.metrics):
            values = [trial.values[i] for trial in result.trials if trial.number in result.front and trial.values]
            if values:
                best = max if self.context.modes[i] == "max" else min
                self.tracker.log_rows(self.run_id, [row(self.sweep.num_trials, {metric: best(values)})])
        for file in self.context.write(result):
            self.tracker.log_files(self.run_id, str(file))
        self.tracker.finish(self.run_id, "FINISHED")
