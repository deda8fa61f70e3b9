"""`seeds: auto`: trains seeds up to the next look, compares, and stops once every strategy is decided.

Nothing but what MLflow and storage hold decides: a command that was killed and started again finds the same stages
finished, takes the same looks, and goes on from there. docs/seeds-auto.md has the test, and what it costs.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any, Literal

from premed.config.decide import Decide
from premed.config.experiment import Experiment
from premed.errors import StageFailed, UserError
from premed.events import EventHandler, ExperimentsStarted, LookTaken, WarningIssued
from premed.execution.preflight import Resolved, resolve, validate
from premed.execution.run_summary import arm_digest
from premed.execution.runner import ExperimentBatch
from premed.execution.session import Session, open_session
from premed.reporting.comparison.compare import compare
from premed.reporting.comparison.costs import stage_cost
from premed.reporting.comparison.interim import design_tags, is_decided
from premed.reporting.comparison.result import ArmResult, TaskResult, looks_of
from premed.reporting.formatting import NAMES, counted, percent, signed, span
from premed.tracking.run_store import open_store
from premed.tracking.tracker import PATIENCE

Reason = Literal["decided", "max_seeds", "hours", "failed"]
WHY: dict[Reason, str] = {
    "decided": "decided",
    "max_seeds": "not decided with the last seed (decide.max_seeds)",
    "hours": "stopped before the hours end (decide.hours)",
    "failed": "an experiment failed; the same command goes on from what is finished",
}


@dataclass(frozen=True)
class Look:
    """A strategy's difference to the baseline at one look."""

    arm: str
    """`arm_digest` of its experiments."""
    label: str
    label_fraction: float
    num_seeds: int
    difference: float
    interval: tuple[float, float]
    """Allowing for all looks."""
    p: float
    """Likewise, and corrected by Holm for the comparisons of this command."""
    verdict: str
    is_decided: bool

    def __str__(self) -> str:
        known = self.verdict if self.is_decided else "not decided"
        size = f"{signed(self.difference)} {span(self.interval, signed)}"
        return f"{self.label} {percent(self.label_fraction)} {size}, {known}"


def run_until_decided(experiments: Sequence[Experiment], decide: Decide, show: EventHandler) -> dict[str, Any]:
    """Runs experiments, all that there may be, until each strategy is decided; returns `outcomes` and `decision`.

    experiments: those of seeds 0 to `decide.max_seeds` - 1 of each strategy and share of the labels.
    """
    resolved = [replace(each, tags=design_tags(decide)) for each in resolve(experiments)]
    validate(resolved)
    with open_session([each.experiment.train for each in resolved], resolved[0].tasks, show) as session:
        for each in resolved:
            session.refuse_leaks(each)
        return SequentialRun(resolved, decide, session).run()


class SequentialRun:
    """The experiments of one command whose seeds are added until it is decided."""

    def __init__(self, experiments: Sequence[Resolved], decide: Decide, session: Session):
        self.experiments, self.decide, self.session = experiments, decide, session
        self.arms = [arm_digest(each.experiment, "") for each in experiments]
        self.outcomes: dict[int, dict[str, Any]] = {}
        """By the index of the experiment."""
        self.closed: set[str] = set()
        """Arms that get no more seeds."""
        self.looks: list[list[Look]] = []
        self.warned: set[str] = set()
        """Arms whose looks were changed."""
        self.costs: dict[str, float] = {}
        """Device hours by the run of a stage."""
        self.device, self.part, self.score = "", "", ""

    def run(self) -> dict[str, Any]:
        """Takes looks until there is a reason to stop."""
        planned, reason = self.decide.planned, "max_seeds"
        for number, num_seeds in enumerate(planned):
            batch = self.batch(num_seeds)
            if number and self.decide.hours is not None and self.spent + self.cost(batch) > self.decide.hours:
                reason = "hours"
                break
            if not self.train(batch):
                reason = "failed"
                break
            self.take_look()
            if all(each.is_decided for each in self.latest.values()):
                reason = "decided"
            following = [] if reason == "decided" or num_seeds == planned[-1] else self.batch(planned[number + 1])
            self.tell(number, num_seeds, following)
            if reason == "decided":
                break
        return {"outcomes": [self.outcomes[i] for i in sorted(self.outcomes)], "decision": self.decision(reason)}

    # ---- training

    def batch(self, num_seeds: int) -> list[int]:
        """The experiments without an outcome that bring every open arm, and its baseline, to so many seeds."""
        numbers = range(len(self.experiments))
        compared = {fraction_of(self.experiments[i]) for i in numbers if self.is_open(i)}
        return [
            i
            for i in numbers
            if i not in self.outcomes and seed_of(self.experiments[i]) < num_seeds
            and (self.is_open(i) or self.is_baseline(i) and fraction_of(self.experiments[i]) in compared)
        ]  # fmt: skip

    def is_baseline(self, index: int) -> bool:
        return self.experiments[index].experiment.strategy == self.decide.baseline

    def is_open(self, index: int) -> bool:
        """Whether it is of an arm that is compared and not decided."""
        return not self.is_baseline(index) and self.arms[index] not in self.closed

    def train(self, batch: Sequence[int]) -> bool:
        """Runs these experiments; whether none failed."""
        self.session.show(ExperimentsStarted(len(batch)))
        running = ExperimentBatch([self.experiments[i] for i in batch], self.session)
        outcomes = running.at_once() if self.session.concurrent else running.one_by_one()
        self.outcomes |= dict(zip(batch, outcomes, strict=True))
        return not any("failure" in outcome for outcome in outcomes)

    # ---- looking

    def take_look(self) -> None:
        """Compares what is trained, as `premed compare` does with the same runs; closes the arms that are decided."""
        self.wait_delivered()
        store = open_store()
        index = {outcome["run_id"]: i for i, outcome in self.outcomes.items()}
        part = "test" if self.experiments[0].experiment.tested else "val"
        found = self.session.tracker.retry(
            lambda: compare(store, baseline=self.decide.baseline, part=part, run_ids=index.keys()).tasks
        )
        for outcome in self.outcomes.values():
            for stage in outcome["stages"]:
                if (run_id := stage["run_id"]) not in self.costs:
                    cost = stage_cost([self.session.tracker.retry(store.get, run_id)])
                    self.costs[run_id], self.device = cost.device_hours, cost.device
        self.looks.append([])
        for task in found:
            self.part, self.score = task.part, NAMES.get(task.score, task.score)
            if task.num_patients < 2:
                raise UserError(
                    f"seeds: auto decides by intervals, and the {part} part has one patient; list the seeds"
                )
            for arm in (arm for block in task.blocks for arm in block.rows):
                self.note(task, arm, self.arms[index[arm.runs[0].run_id]])

    def note(self, task: TaskResult, arm: ArmResult, digest: str) -> None:
        """Notes an arm's difference to the baseline, if it is not the baseline's own row."""
        if (difference := arm.scores[task.score].difference) is None:
            return
        if (looks := looks_of(difference)) and looks.is_changed and arm.label not in self.warned:
            self.warned.add(arm.label)
            text = (
                "decide: the seeds of {} were looked at before at other numbers (decide.max_seeds or decide.looks was "
            )
            self.session.show(WarningIssued(f"{text.format(arm.label)}changed): the interval may be too narrow"))
        done = is_decided(difference)
        about = digest, arm.label, arm.label_fraction, difference.num_seeds, difference.value
        self.looks[-1].append(Look(*about, difference.interval, difference.p_holm, difference.verdict, done))
        if done:
            self.closed.add(digest)

    @property
    def latest(self) -> dict[str, Look]:
        """By arm."""
        return {look.arm: look for looks in self.looks for look in looks}

    def wait_delivered(self) -> None:
        """Waits until MLflow has all results, by which it is decided."""
        waited = 0.0
        for outcome in self.outcomes.values():
            for run_id in (outcome["run_id"], *(stage["run_id"] for stage in outcome["stages"])):
                while not self.session.tracker.wait_delivered(run_id, 1.0):
                    self.session.pause(0)
                    if (waited := waited + 1.0) > PATIENCE:
                        raise StageFailed("MLflow has not taken all results; run the same command again to go on")

    def tell(self, number: int, num_seeds: int, following: Sequence[int]) -> None:
        """Shows what the look found and what is next."""
        looks = "; ".join(map(str, self.looks[-1]))
        words = (
            f"look {number + 1} of {len(self.decide.planned)} at {num_seeds} seeds, {self.part} part, {self.score}: "
        )
        words += f"{looks}; {self.hours(self.spent)} spent"
        if following:
            words += f"; next: {counted(len(following), 'experiment')}, about {self.hours(self.cost(following))}"
        self.session.show(LookTaken(words))

    # ---- costs

    def hours(self, number: float) -> str:
        return f"{number:.2g} {self.device or 'device'}-h"

    @property
    def spent(self) -> float:
        """Device hours of all stages so far, each once."""
        return sum(hours for hours in self.costs.values() if isfinite(hours))

    def cost(self, batch: Sequence[int]) -> float:
        """Device hours that these experiments will probably take: as much as the seeds of their arm so far."""
        seeds = defaultdict[str, set[int]](set)  # by the run of a stage, the seeds that use it
        users = defaultdict[str, int](int)
        for i, outcome in self.outcomes.items():
            for stage in outcome["stages"]:
                seeds[stage["run_id"]].add(seed_of(self.experiments[i]))
                users[stage["run_id"]] += 1
        by_arm = defaultdict[str, list[float]](list)
        for i, outcome in self.outcomes.items():
            own = [stage["run_id"] for stage in outcome["stages"] if len(seeds[stage["run_id"]]) == 1]
            by_arm[self.arms[i]].append(sum(self.costs.get(run_id, 0.0) / users[run_id] for run_id in own))
        return sum(sum(known) / len(known) for i in batch if (known := by_arm.get(self.arms[i])))

    def decision(self, reason: Reason) -> dict[str, Any]:
        """What was found, why it ended, and what was spent and saved against all seeds."""
        left = [i for i in range(len(self.experiments)) if i not in self.outcomes]
        spent, saved = self.spent, self.cost(left)
        trained = f"{len(self.outcomes)} of {len(self.experiments)} experiments, {self.hours(spent)} spent"
        rest = f"; about {self.hours(saved)} less than all {self.decide.max_seeds} seeds" if left else ""
        found = "".join(
            f"; {look.label} {percent(look.label_fraction)}: {look.verdict}" for look in self.latest.values()
        )
        return {
            "reason": reason,
            "baseline": self.decide.baseline,
            "part": self.part,
            "looks_planned": list(self.decide.planned),
            "looks": [[asdict(look) for look in looks] for looks in self.looks],
            "experiments": len(self.outcomes),
            "experiments_of_all_seeds": len(self.experiments),
            "hours_spent": spent,
            "hours_saved": saved,
            "device": self.device,
            "words": f"{WHY[reason]}{found}; {trained}{rest}",
        }


def seed_of(resolved: Resolved) -> int:
    finetune = resolved.experiment.finetune
    assert finetune is not None  # `seeds: auto` is refused without one
    return finetune.seed


def fraction_of(resolved: Resolved) -> float:
    finetune = resolved.experiment.finetune
    assert finetune is not None
    return finetune.label_fraction
