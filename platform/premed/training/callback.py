"""Training callback: logs metrics, validates, keeps the best weights, saves checkpoints, stops on a non-finite loss.

It logs and validates after the same steps for any number of workers and after any restart, so that a resumed run has
the same curve. Only the steps of checkpoints depend on the clock, and on when the command is stopped: then it saves
one after the step under way, whichever that is.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW

from premed.contracts import BatchIndices, BatchSampler, Objective, Row, Sample
from premed.distributed import SharedLook, rank_and_world
from premed.errors import Stopped
from premed.events import (
    CheckpointSaved,
    EventHandler,
    MetricsLogged,
    TrainingEndedEarly,
    TrainingResumed,
    WarningIssued,
)
from premed.training.artifacts import SNAPSHOTS
from premed.training.checkpoint import KEPT, CheckpointManager
from premed.training.evaluate import evaluate
from premed.training.stopping import interruptible
from premed.training.storage import StageStorage
from premed.training.throughput import SETTLING, Throughput

SHOWN = 20  # names of samples in an error message


class NotFinite(Exception):
    """The loss or the weights are not finite; the message names the step, its samples and the newest checkpoint."""

    def __init__(self, message: str, step: int, samples: Sequence[str]):
        super().__init__(message)
        self.step, self.samples = step, list(samples)


class TrainingCallback:
    """Called by `fit` after every step, on every rank; see `fit.StepCallback`.

    sample_names: the case names of a step's samples. score: the validation metric that selects the weights to keep,
    higher is better (None: the last ones are kept). measures: called at each validation on every rank; their numbers
    are scores of val, too. patience: the number of validations without a better score after which the training ends
    (None: it does not). on_event: does nothing except on the first rank (`run_stage`). report: called with the metrics
    of each validation, on every rank. spread_over: the number of steps over which the validations are spread, if `plan`
    ends earlier. throughput: None if there is no gradient descent to measure.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: AdamW,
        plan: BatchSampler,
        storage: StageStorage,
        val: Sequence[Sample],
        *,
        validations: int,
        score: str | None,
        log_steps: int,
        save_minutes: float,
        precision: torch.dtype,
        sample_names: Callable[[BatchIndices], Sequence[str]],
        on_event: EventHandler,
        report: Callable[[dict[str, float]], None],
        spread_over: int | None = None,
        throughput: Throughput | None = None,
        measures: Sequence[Callable[[], dict[str, float]]] = (),
        patience: int | None = None,
    ):
        self.objective, self.optimizer, self.plan, self.storage, self.val = objective, optimizer, plan, storage, val
        self.score, self.log_steps, self.save_minutes, self.precision = score, log_steps, save_minutes, precision
        self.sample_names, self.on_event, self.report = sample_names, on_event, report
        self.throughput, self.measures, self.patience = throughput, measures, patience
        self.stopping: Callable[[], bool] = lambda: False
        """Whether the command was stopped; asked on the first rank, with several ranks about twice a second."""
        self.checkpoints = CheckpointManager(storage)
        spread = {math.ceil((spread_over or plan.num_steps) * i / validations) for i in range(1, validations + 1)}
        self.validation_steps = {step for step in spread if step <= plan.num_steps} | {plan.num_steps}
        steps = sorted(self.validation_steps)
        self.snapshot_steps = {steps[math.ceil(len(steps) * i / SNAPSHOTS) - 1] for i in range(1, SNAPSHOTS + 1)}
        self.rank, self.world = rank_and_world()
        self.device = next(objective.parameters()).device
        self.look = SharedLook(self.device)
        self.curve: list[dict[str, Any]] = []  # rows of curve.jsonl: step, time in ms, metrics
        self.rows: list[Row] = []  # the scores of val at the best step
        self.best: dict[str, Any] = {}  # step, value, summary
        self.seconds = 0.0  # before the last restart
        self.began = time.monotonic()
        self.measured, self.settling = 0, True  # the throughput is measured since this step; no point had its own yet
        self.unvalidated: int | None = None  # the step of a checkpoint whose validation is still to be done
        self.worse = 0  # validations in a row without a better score
        self.ended: int | None = None  # the step at which the training ended early
        self.reset()

    def reset(self) -> None:
        """Forgets what is summed up since the last point of the curve."""
        self.total, self.count = torch.zeros((), dtype=torch.float64, device=self.device), 0
        self.not_finite = torch.full((), math.inf, dtype=torch.float64, device=self.device)  # first such step

    def __call__(self, step: int, loss: Tensor, metrics: dict[str, Tensor | float]) -> bool:
        self.total += loss
        self.count += 1
        # no value is read here: on a GPU that would wait for the step
        self.not_finite = torch.where(loss.isfinite(), self.not_finite, self.not_finite.clamp(max=step))
        last = step == self.plan.num_steps
        if step % self.log_steps == 0 or last or step in self.validation_steps:
            self.log_training(step, metrics)
        validates = step in self.validation_steps
        if self.stop_asked(step, validates):
            self.stop(step, validated=not validates)
        if validates:
            self.validate(step)
        if self.ended is not None:
            return True
        if step % self.log_steps == 0 and not last and self.checkpoints.due(self.save_minutes, self.device):
            self.save(step)
        if validates and self.stop_asked(step, validates):
            self.stop(step)
        if self.throughput and (self.count == 0 or (self.settling and self.count == SETTLING)):
            self.measured = step
            self.throughput.start()
        return False

    # ---- the curve

    def log_training(self, step: int, metrics: dict[str, Tensor | float]) -> None:
        """Logs the mean loss of the steps since the last point, and the metrics of this one."""
        loss = self.total_loss(step) / self.world / self.count
        if self.world > 1:
            metrics = self.mean_over_ranks(metrics)
        training = {"train/loss": loss} | {f"train/{name}": float(value) for name, value in metrics.items()}
        self.log(step, training, self.measure_throughput(step))
        self.reset()

    def total_loss(self, step: int) -> float:
        """The sum of the losses since the last point, over all ranks. Raises NotFinite for losses and weights."""
        if self.world > 1:
            dist.all_reduce(self.total)
            dist.all_reduce(self.not_finite, op=dist.ReduceOp.MIN)
        if math.isfinite(first := float(self.not_finite)):
            self.raise_not_finite(int(first), "the loss is not finite")
        # a finite loss can have a non-finite gradient: weights that it changed must never become a checkpoint
        if not nn.utils.get_total_norm(list(self.objective.parameters())).isfinite():
            self.raise_not_finite(step, "the weights are not finite")
        return float(self.total)

    def mean_over_ranks(self, metrics: dict[str, Tensor | float]) -> dict[str, Tensor | float]:
        """Averages tensors over the step's samples on all ranks; keeps plain numbers, which are equal on all ranks."""
        tensors = {name: value for name, value in metrics.items() if isinstance(value, Tensor)}
        if not tensors:
            return metrics
        stacked = torch.stack([value.detach().to(self.device, torch.float64) for value in tensors.values()])
        dist.all_reduce(stacked)
        return metrics | dict(zip(tensors, stacked / self.world, strict=True))

    def measure_throughput(self, step: int) -> dict[str, float]:
        """Returns speed and memory since the last point. Emits an event, once, if data loading is the bottleneck."""
        if self.throughput is None:
            return {}
        steps, self.measured, self.settling = range(self.measured, step), step, False
        numbers = self.throughput.stop(sum(len(self.plan.at(done).samples) for done in steps))
        if bottleneck := self.throughput.bottleneck():
            self.on_event(bottleneck)
        return numbers

    def raise_not_finite(self, step: int, what: str) -> None:
        names = self.sample_names(self.plan.at(step - 1))
        shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        steps = self.checkpoints.steps()
        good = f"the last good checkpoint is that of step {steps[-1]}" if steps else "there is no checkpoint yet"
        remedy = "look at these images, or lower lr or set clip"
        raise NotFinite(f"{what} at step {step} (samples {shown}); {good}: {remedy}", step, names)

    def log(self, step: int, metrics: dict[str, float], throughput: dict[str, float] | None = None) -> None:
        """Adds a point to the curve. throughput: logged with it, but not part of the curve."""
        if self.rank == 0:
            row = {"step": step, "time": int(time.time() * 1000), "metrics": metrics}
            self.curve.append(row)
            self.on_event(MetricsLogged(num_steps=self.plan.num_steps, throughput=throughput or {}, **row))

    # ---- validation

    def validate(self, step: int) -> None:
        """Scores val; keeps the weights if they are the best so far; ends the training if its patience is at an end."""
        try:
            with interruptible():
                rows, began, more = evaluate(self.objective, self.val, self.precision), time.monotonic(), {}
                for measure in self.measures:
                    more |= measure()
        except KeyboardInterrupt:
            self.stop(step, validated=False)
        summary = self.objective.summary(rows) | more
        pace = {"pace/probe_seconds": time.monotonic() - began} if self.measures else {}
        self.log(step, {f"val/{name}": value for name, value in summary.items() if "/" not in name}, pace)
        # without a score (or with one that is undefined on val) the last weights are the best
        value = summary.get(self.score, -math.inf) if self.score else -math.inf
        better = not self.best or value > self.best["value"]
        self.worse = 0 if better or value == -math.inf else self.worse + 1
        if better or self.best["value"] == -math.inf:
            self.best, self.rows = {"step": step, "value": value, "summary": summary}, rows
            if self.rank == 0 and (self.score or step == self.plan.num_steps):
                self.checkpoints.save_best(self.best, self.objective)
        if self.score and self.best["value"] == -math.inf and step == self.plan.num_steps:
            text = "val had no score at any validation (premed data check says of which classes), so it could not pick"
            self.on_event(WarningIssued(f"{text} the best weights: the last ones are kept"))
        if step in self.snapshot_steps and self.rank == 0:
            self.snapshot(step)
        self.report({"step": step, **summary})
        if self.patience is not None and self.worse >= self.patience and step < self.plan.num_steps:
            self.end_early(step)

    def end_early(self, step: int) -> None:
        """Ends the training: a checkpoint says so, so that one that is killed now goes on to the same end."""
        self.ended = step
        self.save(step)
        assert self.score is not None and self.patience is not None
        best = {"best_step": self.best["step"], "best": self.best["value"]}
        self.on_event(TrainingEndedEarly(step, self.plan.num_steps, self.score, self.patience, **best))

    def snapshot(self, step: int) -> None:
        """Saves the outputs for fixed cases; the step is in the file name, so that a resumed run has each once."""
        with torch.no_grad():
            self.objective.eval()
            tensors = self.objective.snapshot(self.val)
            self.objective.train()
        if tensors:
            self.storage.put_weights(f"snapshots/{step:09d}.safetensors", tensors)

    # ---- checkpoints

    def save(self, step: int, kept: int = KEPT, more: dict[str, Any] | None = None) -> None:
        """Saves a checkpoint of objective, optimizer, curve and best scores; the `kept` newest stay.

        more: further notes.
        """
        notes = {"curve": self.curve, "best": self.best, "rows": self.rows, "seconds": self.elapsed()}
        notes |= {"worse": self.worse, "ended": self.ended} if self.patience is not None else {}
        notes |= more or {}
        self.checkpoints.save(step, self.objective, self.optimizer, notes, kept)
        if self.rank == 0:
            self.on_event(CheckpointSaved(step))

    def stop_asked(self, step: int, validates: bool) -> bool:
        """Whether the command was stopped: the same answer on all ranks."""
        return self.stopping() if self.world == 1 else self.look(step, self.stopping, always=validates)

    def stop(self, step: int, validated: bool = True) -> NoReturn:
        """Saves a checkpoint, with what is summed up since the last point of the curve, and raises Stopped.

        validated: False where the validation of this step is left to the training that goes on.
        """
        sums = {"loss": self.total_loss(step), "steps": self.count, "ranks": self.world}
        self.save(step, more={"sums": sums} | ({} if validated else {"validated": False}))
        raise Stopped(f"stopped at step {step}")

    def resume(self, trunk: StageStorage | None = None) -> int:
        """Loads the newest undamaged checkpoint, if any; returns the number of steps done.

        trunk: the segment that this stage continues, as if both were one training; used while the stage has no
            checkpoint of its own.
        """
        checkpoint = self.checkpoints.restore(self.objective, self.optimizer, trunk)
        for text in self.checkpoints.unusable_words(checkpoint.step if checkpoint else 0):
            self.on_event(WarningIssued(text))
        if checkpoint is None:
            return 0
        notes, self.measured = checkpoint.notes, checkpoint.step
        self.curve = notes["curve"]
        if checkpoint.own:
            self.best, self.rows, self.seconds = notes["best"], notes["rows"], notes["seconds"]
            self.unvalidated = None if notes.get("validated", True) else checkpoint.step
            self.worse, self.ended = notes.get("worse", 0), notes.get("ended")
            if sums := notes.get("sums"):  # it was saved between two points of the curve
                self.count = sums["steps"]
                self.total.fill_(sums["loss"] * (self.world / sums["ranks"]) if self.rank == 0 else 0.0)
            self.on_event(TrainingResumed(checkpoint.step, num_steps=self.plan.num_steps))
        elif trunk and self.rank == 0:
            for name in trunk.names():
                if name.startswith("snapshots/") and (content := trunk.get(name)):
                    self.storage.put(name, content)
        return checkpoint.step

    def catch_up(self) -> None:
        """Validates if the training was stopped before the validation of the step at which it goes on."""
        if self.unvalidated is not None:
            self.validate(self.unvalidated)

    def elapsed(self) -> float:
        """Seconds of training so far, over all restarts."""
        return self.seconds + time.monotonic() - self.began
