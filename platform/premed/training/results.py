"""`result.json`, which marks a stage as finished: its numbers, and the hashes of itself and of the tables of scores."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from premed.config.settings import Kind, Train
from premed.events import EventHandler, WarningIssued
from premed.safety.seals import is_sealed, sealed
from premed.training.artifacts import damaged_parts
from premed.training.storage import StageStorage

RESULT = "result.json"
TABLES = ("scores.json", "constant.json")
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
"""What a result calls the precisions that `train.precision` names."""
FIELDS = {"kind", "digest", "summary", "num_cases", "seconds", "peak_memory_mb"}
"""What every result has."""


def put_result(storage: StageStorage, result: dict[str, Any]) -> None:
    """Writes the result of a stage whose tables are written; it is the last file."""
    hashes = {name: found for name in TABLES if (found := table_hash(storage, name)) is not None}
    storage.put_json(RESULT, sealed({**result, "hashes": hashes}, "result"))


def table_hash(storage: StageStorage, name: str) -> str | None:
    """The SHA-256 of a table's values, however they are laid out; None if there is no such table, or a torn one."""
    content = storage.get(name)
    try:
        if content is None:
            return None
        return hashlib.sha256(json.dumps(json.loads(content), sort_keys=True).encode()).hexdigest()
    except (ValueError, RecursionError):
        return None


def put_files(storage: StageStorage, folder: Path) -> None:
    """Copies a finished stage's files from a folder, where the tables may be written in another way."""
    for path in folder.rglob("*"):
        if path.is_file() and path != folder / RESULT:
            storage.put(path.relative_to(folder).as_posix(), path.read_bytes())
    with suppress(OSError, ValueError):  # missing or torn: then the stage does not count as finished
        if is_result(result := json.loads((folder / RESULT).read_bytes())):
            put_result(storage, result)


def is_result(value: Any) -> bool:
    """Whether it is a result as a stage wrote it."""
    return is_sealed(value, "result") and value.keys() >= FIELDS and isinstance(value["summary"], dict)


def read_result(storage: StageStorage) -> dict[str, Any] | None:
    """A stage's result; None if there is none, or a damaged one, which is put aside."""
    result = storage.get_json(RESULT)
    if result is None:
        return None
    if is_result(result):
        if not (other := storage.other_stage(result)):
            return result
        storage.put_aside(RESULT, f"it is of another stage, {other}")
        return None
    storage.put_aside(RESULT, "it is not what the stage wrote")
    return None


def whole_result(storage: StageStorage, kind: Kind, show: EventHandler) -> dict[str, Any] | None:
    """The result of a stage whose parts and tables are as it saved them. If some are damaged, they and the result are
    removed."""
    if (result := read_result(storage)) is None:
        return None
    damaged = damaged_tables(storage, result)
    if kind not in ("trunk", "test"):
        damaged += damaged_parts(storage)
    if not damaged:
        return result
    text = f"{', '.join(damaged)} damaged or missing: fetched from MLflow, or made again"
    show(WarningIssued(f"{storage.where}: {text}"))
    for name in (RESULT, *damaged):
        storage.remove(name)
    return None


def damaged_tables(storage: StageStorage, result: dict[str, Any]) -> list[str]:
    """The tables of scores that are missing or not as the stage saved them."""
    hashes = result.get("hashes", {})
    return [name for name in TABLES if name in hashes and table_hash(storage, name) != hashes[name]]


def other_rounding(result: dict[str, Any], train: Train) -> list[str]:
    """The warnings about a finished stage that was trained in another precision than is set now, or compiled and now
    it would not be, or the other way round: neither is a part of its digest."""
    wanted, its, warnings = PRECISIONS.get(train.precision), result.get("precision"), []
    if None not in (wanted, its) and wanted != its:
        warnings.append(f"was trained in {its}, and is used as it is; another PREMED_HOME has it trained in {wanted}")
    if train.compile != result.get("compiled", train.compile):
        words = ("without", "with") if train.compile else ("with", "without")
        how, other = (f"{word} torch.compile" for word in words)
        warnings.append(f"was trained {how}, and is used as it is; another PREMED_HOME has it trained {other}")
    return warnings
