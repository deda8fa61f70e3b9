"""Checkpoints of a training: the state to resume from, and the best weights so far.

In a stage's folder, `checkpoints/STEP.pt` holds the state (torch's own format, read with `weights_only=True`) and
`checkpoints/STEP.json` its manifest: notes, and the hash of state and notes. The manifest is written last, so that a
checkpoint counts only once it is complete. `best/STEP/PART.safetensors` are the weights that validation selected.

Written by premed itself rather than through Ray's checkpoint manager: a run resumes in the same way with and without
Ray, and from the previous checkpoint if the newest is damaged.
"""

import hashlib
import io
import json
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors.torch import load
from torch import Tensor
from torch.optim import AdamW

from premed.contracts import Objective
from premed.distributed import RaisedOnAllRanks, all_gather, rank_and_world
from premed.errors import UserError
from premed.training.policy import plain_state
from premed.training.storage import StageStorage, is_whole

KEPT = 2  # checkpoints: the newest may be damaged


class Checkpoint(NamedTuple):
    """The state after `step` steps."""

    step: int
    state: dict[str, Any]  # tensors and plain values
    notes: dict[str, Any]  # JSON
    own: bool = True  # False: the final state of the trunk segment that the stage continues


class CheckpointManager:
    """Writes, prunes and restores the checkpoints of one stage. Rank 0 writes, all ranks read."""

    def __init__(self, storage: StageStorage):
        self.storage = storage
        self.saved_at = time.monotonic()
        self.unusable: dict[int, str] = {}
        """Newer checkpoints that `newest` found unusable: step and reason."""

    # ---- files

    def steps(self) -> list[int]:
        """The steps after which there is a checkpoint, damaged or not, in ascending order."""
        return self._steps(".json")

    def _steps(self, *suffixes: str) -> list[int]:
        paths = [Path(name) for name in self.storage.names() if name.startswith("checkpoints/")]
        return sorted({int(path.stem) for path in paths if path.suffix in suffixes and path.stem.isdecimal()})

    def manifest(self, step: int) -> dict[str, Any]:
        """`hash` and `notes` of the checkpoint of a step; empty if it cannot be read."""
        try:  # all ranks read it, so that none puts it aside
            manifest = json.loads(self.storage.get(f"checkpoints/{step:09d}.json") or b"")
        except (ValueError, RecursionError):
            return {}
        return manifest if isinstance(manifest, dict) and isinstance(manifest.get("notes"), dict) else {}

    def newest(self) -> Checkpoint | None:
        """Returns the newest checkpoint that is complete and undamaged; None if there is none. Sets `unusable`."""
        self.unusable = {}
        for step in reversed(self._steps(".json", ".pt")):
            try:
                return self.read(step)
            except UserError as error:
                self.unusable[step] = str(error)
        return None

    def read(self, step: int) -> Checkpoint:
        """Returns the checkpoint of a step. Raises UserError, with the reason alone, if it is unusable."""
        manifest, content = self.manifest(step), self.storage.get(f"checkpoints/{step:09d}.pt")
        if content is None or not manifest:
            raise UserError("incomplete")
        if _hash(content, manifest["notes"]) != manifest.get("hash"):
            raise UserError("damaged")
        try:
            with warnings.catch_warnings(action="ignore"):  # torch's own, of an unusual pickle
                state = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        except Exception as error:  # a pickle, say: it was not premed that wrote it, and nothing of it is executed
            raise UserError(f"not a checkpoint ({type(error).__name__})") from None
        if not isinstance(state, dict):
            raise UserError("not a checkpoint")
        if damaged := self.damaged_best(manifest["notes"].get("best") or {}):
            raise UserError(f"of no use: the best weights until then, {damaged}, are damaged or missing")
        return Checkpoint(step, state, manifest["notes"])

    def unusable_words(self, start: int) -> list[str]:
        """A line for each checkpoint that `newest` passed over. start: the step at which the training goes on."""
        goes_on = f"the training goes on from step {start}" if start else "the training starts from the beginning"
        return [
            f"{self.storage.where}/checkpoints/{step:09d} is {reason}; {goes_on}"
            for step, reason in self.unusable.items()
        ]

    def write(self, checkpoint: Checkpoint, kept: int = KEPT) -> None:
        """Writes a checkpoint; keeps the `kept` newest up to its step and removes later ones.

        Later ones are damaged: the training resumed from an earlier one.
        """
        step, state, notes, _ = checkpoint
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        self.storage.put(f"checkpoints/{step:09d}.pt", content)
        manifest = {"step": step, "hash": _hash(content, notes), "notes": notes}
        self.storage.put_json(f"checkpoints/{step:09d}.json", manifest)
        stay = {f"{old:09d}" for old in [old for old in self.steps() if old <= step][-kept:]}
        for name in self.storage.names():
            if name.startswith("checkpoints/") and Path(name).stem not in stay:
                self.storage.remove(name)

    # ---- a training

    def due(self, minutes: float, device: torch.device) -> bool:
        """Whether `minutes` have passed since the last checkpoint or the start, by rank 0's clock."""
        due = torch.tensor(float(time.monotonic() - self.saved_at >= minutes * 60))
        if rank_and_world()[1] > 1:
            due = due.to(device)
            dist.broadcast(due, 0)
        return bool(due)

    def save(self, step: int, objective: Objective, optimizer: AdamW, notes: dict[str, Any], kept: int = KEPT) -> None:
        """Rank 0 writes a checkpoint; the others wait until it is written."""
        rank, world = rank_and_world()
        if rank == 0:
            state = {"objective": objective.state_dict(), "optimizer": optimizer.state_dict()}
            self.write(Checkpoint(step, state, notes), kept)
        self.saved_at = time.monotonic()
        if world > 1:
            dist.barrier()

    def restore(self, objective: Objective, optimizer: AdamW, trunk: StageStorage | None = None) -> Checkpoint | None:
        """Loads the newest checkpoint, on all ranks, and returns it; None if there is none.

        trunk: the segment whose final state the stage starts from while it has no checkpoint of its own. Raises
        RaisedOnAllRanks if that is missing or damaged, or if the ranks do not see the same checkpoints.
        """
        if rank_and_world()[0] == 0:
            self.storage.remove_partial_files()
        checkpoint = self.newest()
        if checkpoint is None and trunk and (final := CheckpointManager(trunk).newest()):
            checkpoint = final._replace(own=False)
        steps = all_gather(checkpoint.step if checkpoint else 0)
        if len(set(steps)) > 1:
            raise RaisedOnAllRanks(
                f"train.storage: {self.storage.where} is not one folder for all nodes (their newest checkpoints "
                f"are of steps {steps}); name one that all nodes reach"
            )
        if checkpoint is None and trunk:
            message = f"{trunk.where}: its final state is missing or damaged; remove that folder and run again"
            raise RaisedOnAllRanks(message)
        if checkpoint is not None:
            objective.load_state_dict(checkpoint.state["objective"])
            optimizer.load_state_dict(checkpoint.state["optimizer"])
        return checkpoint

    # ---- the best weights

    def save_best(self, best: dict[str, Any], objective: Objective) -> None:
        """Writes the objective's parts as the weights of the best step so far, and removes those of earlier ones.

        `best` gets their hashes.
        """
        best["hashes"] = {
            part: self.storage.put_weights(best_file(best["step"], part), plain_state(module))
            for part, module in objective.parts.items()
        }
        # a run may resume from any checkpoint: the weights that were the best when it was written stay, too
        noted = [self.manifest(step).get("notes", {}).get("best", {}) for step in self.steps()]
        stay = {f"{each['step']:09d}" for each in [best, *noted] if each}
        for name in self.storage.names():
            if name.startswith("best/") and name.split("/")[1] not in stay:
                self.storage.remove(name)

    def damaged_best(self, best: dict[str, Any]) -> str:
        """The file of the best weights that is missing or not as it was saved; empty if none is.

        Of those without hashes, as earlier versions noted them, one that cannot be read.
        """
        step, hashes = best.get("step", -1), best.get("hashes")
        folder = f"best/{step:09d}/"
        names = [name for name in self.storage.names() if name.startswith(folder)]
        expected = {best_file(step, part): value for part, value in hashes.items()} if hashes else dict.fromkeys(names)
        return next((name for name, value in expected.items() if not is_whole(self.storage.get(name), value)), "")

    def best_weights(self, best: dict[str, Any], part: str) -> dict[str, Tensor]:
        """The weights of a part at the best step. Raises UserError if they are missing or damaged."""
        name = best_file(best["step"], part)
        content = self.storage.get(name)
        if content is None or not is_whole(content, best.get("hashes", {}).get(part)):
            remedy = "run the same command again, which goes on from the checkpoint before"
            raise UserError(f"{self.storage.where}/{name} is damaged or missing: {remedy}")
        return load(content)


def best_file(step: int, part: str) -> str:
    """The file of the best weights; the step is in its name, because a resumed run may find another best."""
    return f"best/{step:09d}/{part}.safetensors"


def _hash(content: bytes | memoryview, notes: Any) -> str:
    hashed = hashlib.blake2b(content)
    hashed.update(json.dumps(notes).encode())
    return hashed.hexdigest()
