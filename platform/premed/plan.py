"""What follows from a sweep's file: names, places, what its trials are scored by, and its outcome as a whole."""

import hashlib
from contextlib import suppress
from functools import cached_property
from itertools import islice, product
from pathlib import Path
from typing import Any

import yaml

from premed import sweep_board, sweep_page
from premed.config.settings import Train
from premed.config.spec import canonical
from premed.errors import UserError
from premed.paths import home, settled_in
from premed.preflight import resolve
from premed.space import COSTS, MOST, Choice, Sweep
from premed.study import Study, Told


class Plan:
    """What follows from a sweep file: names, places, what its trials are scored by."""

    def __init__(self, sweep: Sweep):
        (self.resolved,) = resolve([sweep.base])
        self.sweep, self.base, self.task = sweep, self.resolved.experiment, self.resolved.task
        self.metrics = sweep.search.metric or (f"val/{self.task.score}",)
        self.modes = sweep.search.mode or tuple("min" if name in COSTS else "max" for name in self.metrics)
        told = canonical([sweep.search, self.base, self.metrics, self.modes])
        self.digest = hashlib.sha256(told.encode()).hexdigest()
        self.name = sweep.search.name
        self.where = home() / "sweeps" / f"{self.name}-{self.digest[:8]}"

    def study(self, begun: bool = False) -> Study:
        directions = [f"{mode}imize" for mode in self.modes]
        url = self.sweep.search.study or f"sqlite:///{settled_in() / 'sweeps.db'}"
        return Study(self.sweep, f"{self.name} {self.digest[:16]}", url, directions, begun)

    @cached_property
    def validations(self) -> int:
        """How often a fine-tuning is scored on val."""
        return self.base.finetune.validations

    def outcome(self, study: Study) -> dict[str, Any]:
        """All that a report is made of."""
        search, trials = self.sweep.search, study.trials()
        front = study.front()
        best = front[0] if len(self.metrics) == 1 and front else None
        return {
            "name": self.name,
            "task": self.task.name,
            "strategy": self.base.strategy,
            "score": self.task.score,
            "search": search.search,
            "scheduler": search.scheduler and search.scheduler.name,
            "metrics": list(self.metrics),
            "modes": list(self.modes),
            "space": {path: said(values) for path, values in search.space.items()},
            "seeds": list(search.seeds),
            "num_trials": self.sweep.num_trials,
            "where": str(self.where),
            "run_id": study.note("run_id"),
            "trials": [told_of(told) for told in trials],
            "best": best,
            "front": front,
            "importances": study.importances(),
        }

    def write(self, outcome: dict[str, Any]) -> list[Path]:
        """The report as a page and a CSV; the best trial's experiment, of its first seed, which `premed run` tests."""
        self.where.mkdir(parents=True, exist_ok=True)
        files = [self.where / name for name in ("report.html", "trials.csv")]
        sweep_page.write(outcome, files[0])
        sweep_board.write_csv(outcome, files[1])
        if outcome["best"] is not None:
            setting = next(trial["setting"] for trial in outcome["trials"] if trial["number"] == outcome["best"])
            text = yaml.safe_dump(self.sweep.whole(setting)[0].model_dump(mode="json"), sort_keys=False)
            head = f"# trial {outcome['best']} of {self.name}: {self.sweep.label(setting)}\n"
            files.append(self.where / "best.yaml")
            files[-1].write_text(head + text, encoding="utf-8")
        return files


def said(values: Any) -> Any:
    """A field's values as the file has them."""
    return list(values.choice) if isinstance(values, Choice) else values.model_dump(exclude_none=True)


def told_of(told: Told) -> dict[str, Any]:
    return {
        "number": told.number,
        "setting": told.setting,
        "state": told.state,
        "values": told.values and list(told.values),
        "by_seed": told.notes.get("by_seed", {}),
        "curve": {str(number): value for number, value in told.curve.items()},
        "stages": told.notes.get("stages", []),
        "failure": told.notes.get("failure"),
        "run_id": told.notes.get("run_id"),
    }


def trains_of(sweep: Sweep) -> list[Train]:
    """All ways that the trials may run: what can never be placed is refused before anything starts."""
    first = next(sweep.combinations())
    space = {path: values for path, values in sweep.search.space.items() if path.startswith("train.")}
    trains = [sweep.base.train]
    for values in islice(product(*(each.corners for each in space.values())), MOST):
        with suppress(UserError):  # values that do not fit each other are a trial's failure
            trains.append(sweep.experiments(first | dict(zip(space, values, strict=True)))[0].train)
    return list(dict.fromkeys(trains))
