"""The history of a sweep, in a database by Optuna: which trials there are, what was asked of each, what came of it.

It is all that a sweep goes on from when it is started again. What is drawn for a trial is a function of the search's
seed, the trial's number and the history before it.
"""

import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from premed.config.spec import canonical
from premed.errors import UserError
from premed.rng import key
from premed.tracking.client import masked, with_driver
from premed.tuning.space import Choice, Range, Setting, Sweep

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.trial import FrozenTrial

State = Literal["waiting", "running", "done", "stopped", "failed"]


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the history has it."""

    number: int
    setting: Setting
    state: State
    values: tuple[float, ...] | None
    """By metric; None where it has not come to one."""
    curve: dict[int, float]
    """The best so far after each validation of the first seed."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What else is known: stages and their costs, values by seed, why it failed."""


class Study:
    """One sweep's trials. One command at a time holds it (by a lease); any number may read it."""

    def __init__(self, sweep: Sweep, name: str, url: str, directions: Sequence[Any], begun: bool = False):
        """UserError where no database answers at `url`; where `begun`, also if it was never begun."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        self.sweep, url = sweep, with_driver(url, "study: ")
        try:
            storage = optuna.storages.RDBStorage(url, engine_kwargs=engine_settings(url))
            if begun:
                self.study = optuna.load_study(study_name=name, storage=storage)
            else:
                self.study = optuna.create_study(
                    storage=storage, study_name=name, directions=list(directions), load_if_exists=True
                )
        except KeyError:
            raise UserError(f"{sweep.search.name}: this sweep was never begun; leave --report out to run it") from None
        except Exception as error:  # SQLAlchemy's, its driver's, or a missing driver's
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(masked(f"study: {url} does not answer ({said[0]}); name a database URL")) from None
        self.live: dict[int, Trial] = {}
        self.ending = threading.Lock()
        self.left: list[FrozenTrial] = []

    def begin(self, data: str) -> None:
        """Nobody else is at it now. data: fingerprint of what is trained on; UserError where it is not what it was."""
        if self.note("data") not in (None, data):
            raise UserError(
                f"{self.sweep.search.name}: the data have changed since this sweep began; set another name:"
            )
        self.set_note("data", data)
        self.left = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name == "RUNNING"]
        if self.sweep.search.search == "grid":
            known = {canonical(told.setting) for told in self.trials()}
            for setting in self.sweep.combinations():
                if canonical(setting) not in known:
                    self.study.enqueue_trial({path: written(value) for path, value in setting.items()})

    # ---- what is to be tried

    def next(self) -> TrialRecord | None:
        """The next trial: one that was left in the middle, or a new one; None when there are enough."""
        from optuna import Trial

        if self.left:
            frozen = self.left.pop(0)
            trial = Trial(self.study, frozen._trial_id)
        else:
            asked = [t for t in self.study.get_trials(deepcopy=False) if t.state.name != "WAITING"]
            if len(asked) >= self.sweep.num_trials:
                return None
            self.study.sampler = self.sampler(len(asked))
            trial = self.study.ask(self.distributions())
        self.live[trial.number] = trial
        return self.told(trial.number)

    def sampler(self, number: int) -> Any:
        from optuna.samplers import RandomSampler, TPESampler

        seed = key(self.sweep.search.seed, "sweep", number) % 2**32
        if self.sweep.search.search == "optuna":
            return TPESampler(seed=seed, constant_liar=self.sweep.search.concurrency > 1)
        return RandomSampler(seed=seed)

    def distributions(self) -> dict[str, Any]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        def of(values: Choice | Range) -> Any:
            if isinstance(values, Choice):
                return CategoricalDistribution([written(value) for value in values.choice])
            if values.int:
                return IntDistribution(values.low, values.high)
            return FloatDistribution(values.low, values.high, log=values.loguniform is not None)

        return {path: of(values) for path, values in self.sweep.search.space.items()}

    # ---- what came of it

    def heard(self, number: int, validation: int, value: float) -> None:
        """The best so far after a validation."""
        with self.ending:
            if number in self.live:
                self.live[number].report(value, validation)

    def end(self, number: int, state: State, values: Sequence[float] | None, notes: dict[str, Any]) -> bool:
        """The trial is done (with its values), stopped or failed. False: it had ended before."""
        from optuna.trial import TrialState

        states = {"done": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
        with self.ending:
            if (trial := self.live.pop(number, None)) is None:
                return False
            for name, value in notes.items():
                trial.set_user_attr(name, value)
            self.study.tell(trial, None if values is None else list(values), states[state])
        return True

    def note(self, name: str) -> Any:
        """What is known of the whole."""
        return self.study.user_attrs.get(name)

    def set_note(self, name: str, value: Any) -> None:
        self.study.set_user_attr(name, value)

    # ---- reading

    def told(self, number: int) -> TrialRecord:
        return next(told for told in self.trials() if told.number == number)

    def trials(self) -> list[TrialRecord]:
        """All there are, by number."""
        return [self._told(trial) for trial in self.study.get_trials(deepcopy=False)]

    def _told(self, trial: "FrozenTrial") -> TrialRecord:
        states: dict[str, State] = {"WAITING": "waiting", "RUNNING": "running", "COMPLETE": "done", "PRUNED": "stopped"}
        space = self.sweep.search.space
        said = trial.params or trial.system_attrs.get("fixed_params", {})
        return TrialRecord(
            number=trial.number,
            setting={path: read(values, said[path]) for path, values in space.items() if path in said},
            state=states.get(trial.state.name, "failed"),
            values=tuple(trial.values) if trial.values and trial.state.name == "COMPLETE" else None,
            curve=dict(sorted(trial.intermediate_values.items())),
            notes=dict(trial.user_attrs),
        )

    def front(self) -> list[int]:
        """The best trial; of several metrics, those of which no other is better in all."""
        if not any(told.state == "done" for told in self.trials()):
            return []
        best = sorted(trial.number for trial in self.study.best_trials)
        return best if len(self.study.directions) > 1 else best[:1]

    def importances(self) -> dict[str, float] | None:
        """How much of the first metric's spread each field explains, largest first; None where too few trials say."""
        from optuna.importance import get_param_importances
        from optuna.trial import TrialState

        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        varied = {path for path in self.sweep.search.space if len({str(t.params.get(path)) for t in done}) > 1}
        if len({trial.values[0] for trial in done}) < 2 or len(done) < 4 or not varied:
            return None
        importances = get_param_importances(self.study, target=self._first_metric())
        return {path: float(share) for path, share in importances.items()}

    def _first_metric(self) -> "Callable[[FrozenTrial], float] | None":
        """The target of importances; None where there is one metric. Optuna takes any target as lower is better."""
        from optuna.study import StudyDirection

        if len(self.study.directions) == 1:
            return None
        sign = -1 if self.study.directions[0] == StudyDirection.MAXIMIZE else 1
        return lambda trial: sign * trial.values[0]


def written(value: Any) -> Any:
    """A value as Optuna keeps it: a list or a mapping as JSON."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value)


def read(values: Choice | Range, said: Any) -> Any:
    """The value that was written so."""
    if isinstance(values, Choice):
        return next((value for value in values.choice if written(value) == said), said)
    return said


def engine_settings(url: str) -> dict[str, Any]:
    """Another command that reads must not end this one's writing: SQLite waits for its turn."""
    return {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
