"""What happens beside a training: the curve, validation, best weights, checkpoints, a stop where a loss is no number.

Everything here falls on steps that are the same for any number of workers and after any restart, so that a resumed run
draws the same curve.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW

from premed.contracts import Objective, Picks, Plan, Row, Sample
from premed.distributed import team
from premed.errors import UserError
from premed.events import CheckpointSaved, EventHandler, MetricsLogged, TrainingResumed
from premed.pace import Pace
from premed.vault import KEPT, Vault

SHOWN = 20  # names of samples in a message
SNAPSHOTS = 4  # of what a training makes of fixed cases: after a quarter, half, three quarters and all of it
PAST = 0.95
"""A pre-training is past its gate when its validation loss is below this share of it."""
UNIFORM, SAME = 0.98, 0.95
"""A teacher says nothing whose answers have this share of the entropy they can have, or are one for so many images."""


class NotFinite(Exception):
    """A loss was no number; the message names the step, the samples and the last good checkpoint."""

    def __init__(self, message: str, step: int, samples: Sequence[str]):
        super().__init__(message)
        self.step, self.samples = step, list(samples)


class Everywhere(UserError):
    """What every rank meets at once; none has to be torn from its wait for the others."""


class Watch:
    """Called by `fit` after every step; see `fit.Watch`.

    names: a step's Picks to case names. score: the number of a validation that picks the weights to keep, higher is
    better (None: the last ones are kept). report: called on every rank with a validation's numbers.
    whole: the steps that the validations are spread over, where the plan is a part of them.
    pace: of a descent; its numbers are told beside the curve's, and are no part of it.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: AdamW,
        plan: Plan,
        vault: Vault,
        val: Sequence[Sample],
        *,
        validations: int,
        score: str | None,
        log_steps: int,
        save_minutes: float,
        precision: torch.dtype,
        names: Callable[[Picks], Sequence[str]],
        emit: EventHandler,
        report: Callable[[dict[str, float]], None],
        whole: int | None = None,
        pace: Pace | None = None,
    ):
        self.objective, self.optimizer, self.plan, self.vault, self.val = objective, optimizer, plan, vault, val
        self.score, self.log_steps, self.save_minutes, self.precision = score, log_steps, save_minutes, precision
        self.names, self.emit, self.report, self.pace = names, emit, report, pace
        spread = {math.ceil((whole or plan.num_steps) * i / validations) for i in range(1, validations + 1)}
        self.validation_steps = {step for step in spread if step <= plan.num_steps} | {plan.num_steps}
        steps = sorted(self.validation_steps)
        self.snapshot_steps = {steps[math.ceil(len(steps) * i / SNAPSHOTS) - 1] for i in range(1, SNAPSHOTS + 1)}
        self.rank, self.world = team()
        self.device = next(objective.parameters()).device
        self.curve: list[dict[str, Any]] = []
        self.rows: list[Row] = []
        self.best: dict[str, Any] = {}
        self.seconds = 0.0
        self.began = self.saved = time.monotonic()
        self.clear()

    def clear(self) -> None:
        """Forgets the steps since the last point of the curve."""
        self.total, self.count = torch.zeros((), dtype=torch.float64, device=self.device), 0
        self.bad = torch.full((), math.inf, dtype=torch.float64, device=self.device)

    def __call__(self, step: int, loss: Tensor, numbers: dict[str, Tensor | float]) -> None:
        self.total += loss
        self.count += 1
        # no look at the value here: on a GPU that would wait for the step
        self.bad = torch.where(loss.isfinite(), self.bad, self.bad.clamp(max=step))
        last = step == self.plan.num_steps
        if step % self.log_steps == 0 or last or step in self.validation_steps:
            self.point(step, numbers)
        if step in self.validation_steps:
            self.validate(step)
        if step % self.log_steps == 0 and not last and self.due():
            self.save(step)
        if self.pace and self.count == 0:
            self.pace.begin()

    def point(self, step: int, numbers: dict[str, Tensor | float]) -> None:
        """One point of the training curve: the mean loss of the steps since the last point."""
        if self.world > 1:
            dist.all_reduce(self.total)
            dist.all_reduce(self.bad, op=dist.ReduceOp.MIN)
            numbers = self.everyones(numbers)
        if math.isfinite(bad := float(self.bad)):
            self.refuse(int(bad), "the loss is not a number")
        # a finite loss can have a gradient that is none: such weights must never become a checkpoint
        if not nn.utils.get_total_norm(list(self.objective.parameters())).isfinite():
            self.refuse(step, "the weights are no numbers")
        loss = float(self.total) / self.world / self.count
        told = {"train/loss": loss} | {f"train/{name}": float(value) for name, value in numbers.items()}
        self.add(step, told, self.paced(step))
        self.clear()

    def everyones(self, numbers: dict[str, Tensor | float]) -> dict[str, Tensor | float]:
        """Tensors as means over the step's samples, whichever rank had them; what all have alike stays."""
        parts = {name: value for name, value in numbers.items() if isinstance(value, Tensor)}
        if not parts:
            return numbers
        whole = torch.stack([value.detach().to(self.device, torch.float64) for value in parts.values()])
        dist.all_reduce(whole)
        return numbers | dict(zip(parts, whole / self.world, strict=True))

    def paced(self, step: int) -> dict[str, float]:
        """How the steps since the last point went; says, once, that they go too slow for want of images."""
        if self.pace is None:
            return {}
        numbers = self.pace.point(sum(len(self.plan.at(done).samples) for done in range(step - self.count, step)))
        if starving := self.pace.starving():
            self.emit(starving)
        return numbers

    def refuse(self, step: int, what: str) -> None:
        names = self.names(self.plan.at(step - 1))
        shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        steps = self.vault.checkpoint_steps()
        good = f"the last good checkpoint is that of step {steps[-1]}" if steps else "there is no checkpoint yet"
        mend = "look at these images, or lower lr or set clip"
        raise NotFinite(f"{what} at step {step} (samples {shown}); {good}: {mend}", step, names)

    def add(self, step: int, metrics: dict[str, float], beside: dict[str, float] | None = None) -> None:
        """A point of the curve. beside: numbers that are told with it and not kept."""
        if self.rank == 0:
            row = {"step": step, "time": int(time.time() * 1000), "metrics": metrics}
            self.curve.append(row)
            self.emit(MetricsLogged(num_steps=self.plan.num_steps, throughput=beside or {}, **row))

    def validate(self, step: int) -> None:
        """Scores val, all ranks sharing it; keeps the weights if they are the best so far."""
        rows = measured(self.objective, self.val, self.precision)
        summary = self.objective.summary(rows)
        self.add(step, {f"val/{name}": value for name, value in summary.items() if "/" not in name})
        # without a score (or with one that is undefined on val) later is better
        value = summary.get(self.score, -math.inf) if self.score else -math.inf
        if not self.best or value > self.best["value"] or self.best["value"] == -math.inf:
            self.best, self.rows = {"step": step, "value": value, "summary": summary}, rows
            if self.rank == 0 and (self.score or step == self.plan.num_steps):
                for name, part in self.objective.parts.items():
                    self.vault.put_weights(self.best_file(name), part.state_dict())
                self.forget()
        if step in self.snapshot_steps and self.rank == 0:
            self.snapshot(step)
        self.report({"step": step, **summary})

    def snapshot(self, step: int) -> None:
        """Keeps what the objective makes of fixed cases; the file is the step's, so a resumed run has each once."""
        with torch.no_grad():
            self.objective.eval()
            seen = self.objective.snapshot(self.val)
            self.objective.train()
        if seen:
            self.vault.put_weights(f"snapshots/{step:09d}.safetensors", seen)

    def best_file(self, part: str) -> str:
        """Where the best weights so far are; the step is in the name, for a resumed run may find another best."""
        return f"best/{self.best['step']:09d}/{part}.safetensors"

    def forget(self) -> None:
        """Removes weights that are neither the best so far nor were when a checkpoint was written."""
        then = [self.vault.manifest(step).get("notes", {}).get("best", {}) for step in self.vault.checkpoint_steps()]
        steps = {f"{best['step']:09d}" for best in [self.best, *then] if best}
        for name in self.vault.names():
            if name.startswith("best/") and name.split("/")[1] not in steps:
                self.vault.remove(name)

    def due(self) -> bool:
        """Rank 0's clock decides, for all."""
        due = torch.tensor(float(time.monotonic() - self.saved >= self.save_minutes * 60))
        if self.world > 1:
            due = due.to(self.device)
            dist.broadcast(due, 0)
        return bool(due)

    def save(self, step: int, kept: int = KEPT) -> None:
        if self.rank == 0:
            state = {"objective": self.objective.state_dict(), "optimizer": self.optimizer.state_dict()}
            notes = {"curve": self.curve, "best": self.best, "rows": self.rows, "seconds": self.elapsed()}
            self.vault.save_checkpoint(step, state, notes, kept)
            self.emit(CheckpointSaved(step))
        self.saved = time.monotonic()
        if self.world > 1:
            dist.barrier()

    def resume(self, origin: Vault | None = None) -> int:
        """Loads the newest good checkpoint, if any; returns the number of steps that are done.

        origin: of the stage that this one goes on from, as if they were one, where it has no checkpoint of its own yet.
        """
        if self.rank == 0:
            self.vault.sweep()
        own = self.vault.newest_checkpoint()
        found = own or (origin.newest_checkpoint() if origin else None)
        self.agree(found[0] if found else 0)
        if found is None and origin:
            raise Everywhere(f"{origin.where}: the state it ended with is damaged; remove that folder and run again")
        if found is None:
            return 0
        step, state, notes = found
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.curve = notes["curve"]
        if own:
            self.best, self.rows, self.seconds = notes["best"], notes["rows"], notes["seconds"]
            self.emit(TrainingResumed(step, num_steps=self.plan.num_steps))
        elif origin and self.rank == 0:
            for name in origin.names():
                if name.startswith("snapshots/") and (content := origin.get(name)):
                    self.vault.put(name, content)
        return step

    def agree(self, start: int) -> None:
        if self.world > 1:
            starts: list[Any] = [None] * self.world
            dist.all_gather_object(starts, start)
            if len(set(starts)) > 1:
                raise Everywhere(
                    f"train.storage: {self.vault.where} is another folder on each machine (their newest checkpoints "
                    f"are of steps {starts}); name one that all nodes reach"
                )

    def elapsed(self) -> float:
        """Seconds of training so far, over all restarts."""
        return self.seconds + time.monotonic() - self.began


@torch.no_grad()
def measured(objective: Objective, samples: Sequence[Sample], precision: torch.dtype) -> list[Row]:
    """The rows of all samples, in their order, on every rank; each rank measures its share."""
    rank, world = team()
    training = objective.training
    objective.eval()
    device = next(objective.parameters()).device
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        mine = objective.measure(samples[rank::world]) if len(samples[rank::world]) else []
    objective.train(training)
    if world == 1:
        return mine
    shares: list[Any] = [None] * world
    dist.all_gather_object(shares, mine)
    rows: list[Row] = [{}] * len(samples)
    for first, share in enumerate(shares):  # by place: two data sets may have cases of one name
        rows[first::world] = share
    return rows


def passed_gate(summary: dict[str, float]) -> dict[str, Any] | None:
    """How a pre-training stands to its network-free predictor; None for other stages."""
    if "gate" not in summary:
        return None
    # a gate of 0: all images are alike, and there is nothing to learn beyond it
    share = summary["loss"] / summary["gate"] if summary["gate"] > 0 else 1.0
    return {"loss": summary["loss"], "gate": summary["gate"], "below": 1 - share, "passed": share < PAST}


def collapsed(summary: dict[str, float]) -> dict[str, Any] | None:
    """Into what a self-distillation collapsed: `uniform` answers, or `one` for all images; None if it did not.

    Of `entropy`, the answers' as a share of what it can be, and `same`, the share of images with the most frequent one.
    """
    if "entropy" not in summary or "same" not in summary:
        return None
    into = "uniform" if summary["entropy"] > UNIFORM else "one" if summary["same"] > SAME else None
    return into and {"into": into, "entropy": summary["entropy"], "same": summary["same"]}
