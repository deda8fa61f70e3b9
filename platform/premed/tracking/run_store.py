"""RunStore: experiments and stages as runs in MLflow, identified by their digests.

One parent run per experiment, one child run per stage. Everything goes through an `MlflowClient` of the store's own:
MLflow's global tracking URI and its active run are neither read nor set.
"""

import getpass
import json
import math
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from premed.errors import UserError
from premed.tracking.client import (
    artifact_location,
    batches,
    connect,
    connect_or_raise,
    flatten,
    json_cell,
    masked,
    on_disk,
    require_store,
    resolve_uri,
    truncated,
    valid_name,
)
from premed.tracking.provenance import process_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from premed.contracts import Row

LEASES = "premed leases"
"""The MLflow experiment that holds the leases (`stage_leases`); no listing of runs shows it."""
_PAGE = 1000
_NEWEST = ["attributes.start_time DESC"]
_SERVERS = ("http", "databricks")  # they decide where artifacts go


def open_store() -> "RunStore":
    """Opens the store that `premed run` writes to. Raises UserError if there is none yet."""
    return RunStore(*require_store())


@dataclass(frozen=True)
class Run:
    """One run, as the store returned it."""

    run_id: str
    name: str
    experiment: str
    status: str  # RUNNING, FINISHED, FAILED, KILLED
    tags: dict[str, str]
    metrics: dict[str, float]  # the last value of each
    params: dict[str, str]
    artifact_uri: str
    parent: str | None
    experiment_id: str


class RunStore:
    """The runs at one tracking URI. It pickles: its state is two strings.

    `uri`: `sqlite:///…/mlflow.db` (created if missing), a server's `http(s)://…`, or another database of MLflow's.
    `artifacts`: the folder or URI of artifacts if no server decides that; None: beside the database. Raises
    UserError, within seconds, if nothing answers at `uri`.
    """

    def __init__(self, uri: str, artifacts: str | None = None):
        self.uri, folder = resolve_uri(uri)
        self.artifacts = artifacts or (str(folder / "artifacts") if folder else None)
        if not self.uri.startswith(_SERVERS) and not self.artifacts:
            remedy = "run `mlflow server` on this database and name that server"
            raise UserError(f"MLFLOW_TRACKING_URI={masked(uri)} has no folder for artifacts: {remedy}")
        self.client = connect_or_raise(self.uri)

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "artifacts": self.artifacts}

    @cached_property
    def client(self) -> "MlflowClient":  # created anew in a process that unpickles the store
        return connect(self.uri)

    def experiment(self, name: str) -> str:
        """Returns the id of the experiment called `name`; creates it if missing."""
        from mlflow.exceptions import MlflowException

        if not (experiment := self.client.get_experiment_by_name(name)):
            try:
                artifacts = None if self.uri.startswith(_SERVERS) else self.artifacts
                self.client.create_experiment(name, artifacts and artifact_location(artifacts, name))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process may create it in between
                    raise
            experiment = self.client.get_experiment_by_name(name)
        assert experiment is not None
        if experiment.lifecycle_stage != "active":
            uri = shlex.quote(masked(self.uri))
            command = f"MLFLOW_TRACKING_URI={uri} mlflow experiments restore -x {experiment.experiment_id}"
            raise UserError(f"experiment {name!r} was deleted in MLflow: restore it ({command}) or choose another name")
        return experiment.experiment_id

    # ---- runs

    def start(
        self,
        experiment: str,
        name: str,
        *,
        digest: str,
        kind: str,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> str:
        """Starts a run and returns its id. `kind`: `experiment`, or a stage's. Nested `params` get names with dots."""
        from mlflow.entities import Param

        all_tags = {name: truncated(value) for name, value in (tags or {}).items()}  # first: the UI keeps this order
        all_tags |= {"premed.digest": digest, "premed.kind": kind, "mlflow.source.name": "premed"}
        with suppress(OSError, KeyError):  # a container's user may have no name
            all_tags["mlflow.user"] = getpass.getuser()
        all_tags |= process_tags() | ({"mlflow.parentRunId": parent} if parent else {})
        run = self.client.create_run(self.experiment(experiment), tags=all_tags, run_name=name)
        for batch in batches([Param(valid_name(name), truncated(value)) for name, value in flatten(params or {})], 100):
            self.client.log_batch(run.info.run_id, params=batch)
        return run.info.run_id

    def finish(self, run_id: str, status: str = "FINISHED", end_time: int | None = None) -> None:
        """Ends a run. `status`: FINISHED, FAILED or KILLED; `end_time` in ms (None: now)."""
        self.client.set_terminated(run_id, status, end_time)

    def reopen(self, run_id: str) -> None:
        """Sets an ended or abandoned run to RUNNING, with this process as its writer."""
        self.client.update_run(run_id, status="RUNNING")
        self.set_tags(run_id, process_tags())

    def set_tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        for batch in batches([RunTag(name, truncated(value)) for name, value in tags.items()], 100):
            self.client.log_batch(run_id, tags=batch)

    def get(self, run_id: str) -> Run:
        return self._run(self.client.get_run(run_id))

    def find(self, digest: str, kind: str | None = None) -> Run | None:
        """Returns the newest finished run of that digest, or None."""
        tags = {"premed.digest": digest} | ({"premed.kind": kind} if kind else {})
        return next(self.search(tags, status="FINISHED", limit=1), None)

    def search(
        self,
        tags: Mapping[str, str],
        status: str | None = None,
        experiment: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Run]:
        """Yields runs that have `tags`, newest first, of one experiment or of all but that of leases."""
        conditions = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        conditions += [f"attributes.status = '{status}'"] if status else []
        ids, token, left = self._ids(experiment), None, limit or math.inf
        while ids and left > 0:
            page = self.client.search_runs(
                ids, " and ".join(conditions), max_results=int(min(left, _PAGE)), order_by=_NEWEST, page_token=token
            )
            yield from map(self._run, page)
            left, token = left - len(page), page.token
            if not token:
                return

    def _ids(self, experiment: str | None) -> list[str]:
        if experiment:
            named = self.client.get_experiment_by_name(experiment)
            return [named.experiment_id] if named else []
        experiments, token = [], None
        while token != "":
            page = self.client.search_experiments(page_token=token)
            experiments, token = experiments + page, page.token or ""
        self._names.update({each.experiment_id: each.name for each in experiments})
        return [each.experiment_id for each in experiments if each.name != LEASES]

    @cached_property
    def _names(self) -> dict[str, str]:
        """Names of experiments by id."""
        return {}

    def _run(self, run: Any) -> Run:
        info, data = run.info, run.data
        if info.experiment_id not in self._names:
            self._names[info.experiment_id] = self.client.get_experiment(info.experiment_id).name
        experiment, parent = self._names[info.experiment_id], data.tags.get("mlflow.parentRunId")
        rest = info.status, data.tags, data.metrics, data.params, info.artifact_uri, parent, info.experiment_id
        return Run(info.run_id, info.run_name, experiment, *rest)

    # ---- metrics, scores, files, data sets

    def log_rows(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs rows `{"step": int, "time": ms, "metrics": {name: float}}`, each step of a metric once.

        A resumed stage logs its last steps again, at new times and with slightly other values: a step that is not above
        the metric's last stored one is left out. NaN and infinity are left out and named in a tag.
        """
        from mlflow.entities import Metric

        run = self.client.get_run(run_id)
        last = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        new, non_finite = [], {}
        for row in sorted(rows, key=lambda row: row["step"]):
            step = int(row["step"])
            for name, value in ((valid_name(name), float(value)) for name, value in row["metrics"].items()):
                if step <= last.get(name, -1):
                    continue
                if not math.isfinite(value):
                    non_finite.setdefault(name, step)
                    continue
                last[name] = step
                new.append(Metric(name, value, int(row["time"]), step))
        for batch in batches(new, 1000):
            self.client.log_batch(run_id, metrics=batch)
        known = json.loads(run.data.tags.get("premed.nonfinite", "{}"))
        if non_finite.keys() - known.keys():
            self.set_tags(run_id, {"premed.nonfinite": json.dumps(non_finite | known)})

    def log_scores(self, run_id: str, rows: Sequence["Row"]) -> None:
        """Logs the table of scores, one row per case: `scores.json`, a table in MLflow's UI, and `scores.csv`."""
        import pandas as pd

        # MlflowClient.log_table would append when called twice and keep ten digits; this writes the same file and tag
        frame = pd.DataFrame(list(rows))
        cells = [[json_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
        shown = {"columns": list(frame.columns), "data": cells}
        self.client.log_text(run_id, json.dumps(shown, allow_nan=False), "scores.json")
        self.client.log_text(run_id, frame.to_csv(index=False), "scores.csv")
        self.client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": "scores.json", "type": "table"}]))

    def scores(self, run_id: str) -> "list[Row]":
        """Returns the rows of `log_scores`; undefined numbers are NaN."""
        columns = self.columns(self.get(run_id))
        values = [[math.nan if value is None else value for value in column] for column in columns.values()]
        return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]

    def columns(self, run: Run) -> dict[str, list[Any]]:
        """Returns the table of `log_scores` by columns; undefined numbers are None."""
        with tempfile.TemporaryDirectory() as folder:
            table = json.loads(self.file(run, "scores.json", folder).read_bytes())
        return dict(zip(table["columns"], map(list, zip(*table["data"], strict=True)), strict=True))

    def file(self, run: Run, path: str, to: Path | str) -> Path:
        """Returns the run's file or folder `path`: the artifact itself if on this disk, else a download in `to`."""
        return on_disk(run.artifact_uri, path) or self.download(run.run_id, path, to)

    def log_files(self, run_id: str, folder_or_file: Path | str, path: str = "") -> None:
        """Logs a file, or all files of a folder, at `path` among the run's artifacts."""
        source = Path(folder_or_file)
        if not source.exists():
            raise FileNotFoundError(f"{source}: does not exist, so it cannot be logged")
        send = self.client.log_artifacts if source.is_dir() else self.client.log_artifact
        send(run_id, str(source), path or None)

    def download(self, run_id: str, path: str, to: Path | str) -> Path:
        """Downloads the run's file or folder `path` into the folder `to`, created if missing; returns where it is."""
        Path(to).mkdir(parents=True, exist_ok=True)
        return Path(self.client.download_artifacts(run_id, path, str(to)))

    def log_datasets(self, run_id: str, entries: Sequence[Mapping[str, Any]]) -> None:
        """Logs entries `{name, digest, context, source, num_cases}`: "datasets used" in the UI."""
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
        self.client.log_inputs(run_id, inputs)
