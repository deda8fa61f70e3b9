"""A stage's folder in `train.storage`, on a disk or at a URL: reads and writes bytes, JSON and weights by name.

Nobody sees an incomplete file: on a disk it is renamed into place, in an object store a put is atomic. Weights are
safetensors.
"""

import hashlib
import json
import logging
import os
import re
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

log = logging.getLogger(__name__)


def is_whole(content: bytes | None, expected: str | None) -> bool:
    """Whether these are the weights with that SHA-256; without one, as in the first cards, whether they can be read."""
    if content is None:
        return False
    if expected is not None:
        return hashlib.sha256(content).hexdigest() == expected
    try:
        load(content)
    except SafetensorError:
        return False
    return True


class StageStorage:
    """The folder `name` below `storage` (a path, or a URL that pyarrow can open; `file://` is a path)."""

    def __init__(self, storage: str, name: str):
        self.where = f"{storage.removeprefix('file://').rstrip('/')}/{name}"
        self._filesystem = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_filesystem": None}  # pyarrow's file systems do not pickle

    @property
    def local(self) -> bool:
        return "://" not in self.where

    def other_stage(self, record: Any) -> str:
        """The folder of the stage that a record says it is of, if that is not this folder; else empty.

        A whole file of another stage, copied here by hand, has a right hash. Folders of other names hold any stage's.
        """
        name = self.where.rpartition("/")[2]
        is_named = isinstance(record, dict) and record.get("kind") and record.get("digest")
        if not is_named or not re.fullmatch(r"[a-z]+-[0-9a-f]{16}", name):
            return ""
        its = f"{record['kind']}-{record['digest'][:16]}"
        return "" if its == name else its

    def put(self, name: str, content: bytes | memoryview) -> None:
        """Writes a file completely, or not at all."""
        if not self.local:
            with self._output(name) as file:
                file.write(content)
            return
        path = Path(self.where) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _output(self, name: str):
        files, root = self.filesystem()
        path = f"{root}/{name}"
        try:
            return files.open_output_stream(path)
        except FileNotFoundError:  # not an object store: the folder must be created first
            files.create_dir(path.rpartition("/")[0], recursive=True)
            return files.open_output_stream(path)

    def remove_partial_files(self) -> None:
        """Removes the incomplete files of killed writers. Only the one process that writes here may call it."""
        if self.local:
            for leftover in Path(self.where).rglob(".*.part"):
                leftover.unlink(missing_ok=True)

    def get(self, name: str) -> bytes | None:
        """Returns a file's content; None if there is no such file."""
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
        """The names of all files below the folder, sorted."""
        if self.local:
            root = Path(self.where)
            return sorted(
                str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.suffix != ".part"
            )
        from pyarrow.fs import FileSelector

        files, root = self.filesystem()
        infos = files.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
        return sorted(info.path.removeprefix(root).lstrip("/") for info in infos if info.is_file)

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

    # ---- JSON and weights

    def put_json(self, name: str, value: Any) -> None:
        self.put(name, json.dumps(value, indent=1).encode())

    def get_json(self, name: str) -> Any | None:
        """Returns a JSON file's value; None if there is no such file, or if it is not whole: then it is put aside."""
        content = self.get(name)
        try:
            return None if content is None else json.loads(content)
        except (ValueError, RecursionError) as error:  # the latter of thousands of brackets
            self.put_aside(name, str(error))
            return None

    def put_aside(self, name: str, reason: str) -> None:
        """Renames a damaged file, so that it is taken for missing, and says so."""
        log.warning("%s/%s is damaged (%s): kept as %s.damaged, and made again", self.where, name, reason, name)
        with suppress(OSError):  # where nobody may write
            self.put(f"{name}.damaged", self.get(name) or b"")
            self.remove(name)

    def put_weights(self, name: str, state: dict[str, Tensor]) -> str:
        """Writes weights; returns the SHA-256 of the file."""
        content = save({key: value.detach().cpu().contiguous() for key, value in state.items()})
        self.put(name, content)
        return hashlib.sha256(content).hexdigest()

    def get_weights(self, name: str) -> dict[str, Tensor] | None:
        """Returns a file's weights; None if there is no such file, or if it is torn: then it is put aside."""
        content = self.get(name)
        try:
            return None if content is None else load(content)
        except SafetensorError as error:
            self.put_aside(name, str(error))
            return None

    def clear(self, folder: str) -> None:
        """Removes all files of a folder."""
        for name in self.names():
            if name.startswith(f"{folder}/"):
                self.remove(name)
