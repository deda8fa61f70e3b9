"""Vault: one stage's folder in `train.storage`, on a disk or behind a URL: checkpoints, the best weights, the result.

A file counts only once it is whole: on a disk by renaming, in an object store because a put is all or nothing; a
checkpoint only with its manifest, which is written last and holds the hash of everything. Weights are safetensors; the
state to resume from is torch's own format, read with `weights_only=True`.
"""

import hashlib
import io
import json
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

KEPT = 2  # checkpoints: the newest may turn out damaged


class Vault:
    """The folder `name` below `storage` (a path, or a URL that pyarrow can open; `file://` is a path)."""

    def __init__(self, storage: str, name: str):
        self.where = f"{storage.removeprefix('file://').rstrip('/')}/{name}"
        self._filesystem = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_filesystem": None}  # file systems do not travel

    @property
    def local(self) -> bool:
        return "://" not in self.where

    def put(self, name: str, content: bytes | memoryview) -> None:
        """Writes a whole file, or none."""
        if not self.local:
            with self._output(name) as file:
                file.write(content)
            return
        path = Path(self.where) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def _output(self, name: str):
        files, root = self.filesystem()
        path = f"{root}/{name}"
        try:
            return files.open_output_stream(path)
        except FileNotFoundError:  # not an object store: there are folders to make
            files.create_dir(path.rpartition("/")[0], recursive=True)
            return files.open_output_stream(path)

    def sweep(self) -> None:
        """Removes what killed writers left half-written. Only for whoever alone writes here."""
        if self.local:
            for leftover in Path(self.where).rglob(".*.part"):
                leftover.unlink(missing_ok=True)

    def get(self, name: str) -> bytes | None:
        """A file's content; None if it is not there."""
        if self.local:
            path = Path(self.where) / name
            return path.read_bytes() if path.is_file() else None
        files, root = self.filesystem()
        try:
            with files.open_input_stream(f"{root}/{name}") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """All files' names below the folder, sorted."""
        if self.local:
            root = Path(self.where)
            return sorted(
                str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.suffix != ".part"
            )
        from pyarrow.fs import FileSelector

        files, root = self.filesystem()
        found = files.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
        return sorted(info.path.removeprefix(root).lstrip("/") for info in found if info.is_file)

    def remove(self, name: str) -> None:
        if self.local:
            (Path(self.where) / name).unlink(missing_ok=True)
        else:
            files, root = self.filesystem()
            with suppress(FileNotFoundError):
                files.delete_file(f"{root}/{name}")

    def filesystem(self):
        """pyarrow's file system of the URL, and the path in it."""
        from pyarrow.fs import FileSystem

        if self._filesystem is None:
            self._filesystem = FileSystem.from_uri(self.where)
        return self._filesystem

    # JSON, weights and checkpoints, in terms of the above

    def put_json(self, name: str, value: Any) -> None:
        self.put(name, json.dumps(value, indent=1).encode())

    def get_json(self, name: str) -> Any | None:
        content = self.get(name)
        return None if content is None else json.loads(content)

    def put_weights(self, name: str, state: dict[str, Tensor]) -> None:
        self.put(name, save({key: value.detach().cpu().contiguous() for key, value in state.items()}))

    def get_weights(self, name: str) -> dict[str, Tensor] | None:
        content = self.get(name)
        return None if content is None else load(content)

    def save_checkpoint(self, step: int, state: dict[str, Any], notes: dict[str, Any], kept: int = KEPT) -> None:
        """`state` (tensors and plain values) and `notes` (JSON) after `step` steps; the `kept` newest up to it stay."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        self.put(f"checkpoints/{step:09d}.pt", content)
        self.put_json(f"checkpoints/{step:09d}.json", {"step": step, "hash": _hash(content, notes), "notes": notes})
        # later ones are of a past that was given up because they were damaged
        stay = {f"{old:09d}" for old in [old for old in self.checkpoint_steps() if old <= step][-kept:]}
        for name in self.names():
            if name.startswith("checkpoints/") and Path(name).stem not in stay:
                self.remove(name)

    def checkpoint_steps(self) -> list[int]:
        """The steps after which there is a checkpoint, damaged or not, in order."""
        return [
            int(Path(name).stem) for name in self.names() if name.startswith("checkpoints/") and name.endswith(".json")
        ]

    def manifest(self, step: int) -> dict[str, Any]:
        """What was written beside the checkpoint of a step: `hash` and `notes`; empty where it cannot be read."""
        try:
            return self.get_json(f"checkpoints/{step:09d}.json") or {}
        except ValueError:
            return {}

    def newest_checkpoint(self) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        """(step, state, notes) of the newest checkpoint that is whole."""
        for step in reversed(self.checkpoint_steps()):
            manifest, content = self.manifest(step), self.get(f"checkpoints/{step:09d}.pt")
            if content is not None and manifest and _hash(content, manifest.get("notes")) == manifest.get("hash"):
                state = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
                return step, state, manifest["notes"]
        return None

    def clear(self, folder: str) -> None:
        """Removes all files of a folder."""
        for name in self.names():
            if name.startswith(f"{folder}/"):
                self.remove(name)


def _hash(content: bytes | memoryview, notes: Any) -> str:
    hashed = hashlib.blake2b(content)
    hashed.update(json.dumps(notes).encode())
    return hashed.hexdigest()
