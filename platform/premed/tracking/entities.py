"""What MLflow takes: names, text and numbers within its limits, points of metrics, tables of scores, data sets."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from premed.safety.files import csv_line, spreadsheet_cell

if TYPE_CHECKING:
    from mlflow import MlflowClient

SCORES_HASH = "premed.scores_sha256"
"""The tag with the SHA-256 of a run's `scores.json`."""

# ---- names, text, numbers


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, with names joined by dots; mappings in a list are numbered."""
    for name, value in nested.items():
        if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            value = {str(number): each for number, each in enumerate(value)}
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def valid_name(name: str) -> str:
    """A name that MLflow accepts: a class may be called "Spleen (left)". What is cut keeps names apart by its hash."""
    return shortened(re.sub(r"[^\w\-./: ]", "_", name))


def valid_names(names: Iterable[str]) -> dict[str, str]:
    """The same of several names, which stay different: "a (b)" and "a [b]" would both be "a _b_"."""
    valid: dict[str, str] = {}
    for name in names:
        taken, new = valid.values(), valid_name(name)
        valid[name] = shortened(f"{new[:240]} {text_hash(name)}") if new in taken else new
    return valid


def shortened(text: str, most: int = 250) -> str:
    """Text of at most `most` characters, as databases other than SQLite enforce it; what is cut is kept as a hash."""
    return text if len(text) <= most else f"{text[: most - 9]} {text_hash(text)}"


def text_hash(text: str) -> str:
    """Eight hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def truncated(value: Any) -> str:
    """Text cut to 5000 characters, less than MLflow stores of a parameter (6000) and of a tag (8000)."""
    text = str(value)
    return text if len(text) <= 5000 else text[:4999] + "…"


def json_cell(value: Any) -> Any:
    """A table's cell in JSON: NumPy's numbers as Python's, undefined ones as null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    """`items` in lists of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


# ---- parameters, metrics, scores, data sets


def new_params(known: Mapping[str, str], params: Mapping[str, Any]) -> list[Any]:
    """MLflow's parameters of `params`, nested ones with dots in their names, but for those that a run has already."""
    from mlflow.entities import Param

    named = ((valid_name(name), truncated(value)) for name, value in flatten(params))
    return [Param(name, value) for name, value in named if name not in known]


def new_metrics(
    client: "MlflowClient", run: Any, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[Any], dict[str, int]]:
    """Returns MLflow's metrics of those `rows` that the run does not have yet, and the first step of each that is not
    finite, by name; these are left out. See `RunStore.log_rows`.
    """
    from mlflow.entities import Metric

    last = {metric.key: metric.step for metric in run.data.to_proto().metrics}
    known: dict[str, set[int]] = {}  # the steps of each metric that has some beyond those of `rows`
    new, non_finite = [], {}
    for row in sorted(rows, key=lambda row: row["step"]):
        step, names = int(row["step"]), valid_names(row["metrics"])
        for name, value in ((names[name], float(value)) for name, value in row["metrics"].items()):
            if step <= last.get(name, -1):
                if name not in known:
                    known[name] = {each.step for each in client.get_metric_history(run.info.run_id, name)}
                if step in known[name]:
                    continue
            if not math.isfinite(value):
                non_finite.setdefault(name, step)
                continue
            known.get(name, set()).add(step)
            last[name] = max(step, last.get(name, -1))
            new.append(Metric(name, value, int(row["time"]), step))
    return new, non_finite


def dataset_inputs(entries: Sequence[Mapping[str, Any]]) -> list[Any]:
    """MLflow's inputs of a run, from entries `{name, digest, context, source, num_cases}`."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    same: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in entries:  # MLflow keeps one entry per name and digest, so the contexts of equal ones are joined
        same.setdefault((entry["name"], entry["digest"][:36]), []).append(entry)
    inputs = []
    for (name, digest), group in same.items():
        contexts = ", ".join(dict.fromkeys(each["context"] for each in group))
        source, profile = {"uri": group[0]["source"]}, {"num_cases": group[0]["num_cases"]}
        data = Dataset(name, digest, "local", json.dumps(source), profile=json.dumps(profile))
        inputs.append(DatasetInput(data, [InputTag("mlflow.data.context", contexts)]))
    return inputs


def write_scores(rows: Sequence[Mapping[str, Any]], folder: Path | str) -> bytes:
    """Writes both files; returns the content of `scores.json`.

    MlflowClient.log_table would append when called twice and keep ten digits.
    """
    import pandas as pd

    frame = pd.DataFrame(list(rows))
    cells = [[json_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    shown = {"columns": list(frame.columns), "data": cells}
    content = json.dumps(shown, allow_nan=False).encode()
    Path(folder, "scores.json").write_bytes(content)
    lines = (csv_line(map(spreadsheet_cell, row)) for row in [frame.columns, *cells])
    Path(folder, "scores.csv").write_text("".join(lines), encoding="utf-8", newline="")
    return content


def read_scores(path: Path, expected: str | None = None) -> dict[str, list[Any]]:
    """The columns of `scores.json`; undefined numbers are None. Raises ValueError if it is not whole.

    expected: its SHA-256, which is in the run's tag.
    """
    content = path.read_bytes()
    if expected is not None and hashlib.sha256(content).hexdigest() != expected:
        raise ValueError("they are not those that were recorded")
    try:
        table = json.loads(content)
        columns = dict(zip(table["columns"], map(list, zip(*table["data"], strict=True)), strict=True))
        return {"case": columns.pop("case")} | columns
    except (LookupError, TypeError) as error:
        raise ValueError(f"is no table of scores ({error})") from None


def score_rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The rows of a table that `read_scores` returned; undefined numbers are NaN."""
    values = [[math.nan if value is None else value for value in column] for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def mark(client: "MlflowClient", experiment: Any, is_service: bool) -> None:
    """Sets the tag that tells MLflow's UI (3.17) how to show an experiment, unless it is there or may not be written.

    Under Model training; without the tag, under GenAI. is_service: it holds what no person looks for, and is left out
    of the list, as MLflow leaves out those of its gateway.
    """
    training = "mlflow.experimentKind", "custom_model_development"
    name, value = ("mlflow.experiment.isGateway", "true") if is_service else training
    if name not in experiment.tags:
        with suppress(Exception):
            client.set_experiment_tag(experiment.experiment_id, name, value)
