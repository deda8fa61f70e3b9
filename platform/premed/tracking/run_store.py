"""RunStore: experiments and stages as runs in MLflow, identified by their digests.

One parent run per experiment, one child run per stage. Everything goes through an `MlflowClient` of the store's own:
MLflow's global tracking URI and its active run are neither read nor set.
"""

import json
import math
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from premed.errors import UserError
from premed.tracking.artifacts import ArtifactMissing, artifact_location, local_folder, repository
from premed.tracking.client import connect, connect_or_raise, masked, require_store, resolve_uri
from premed.tracking.entities import (
    SCORES_HASH,
    batches,
    dataset_inputs,
    mark,
    new_metrics,
    new_params,
    read_scores,
    score_rows,
    shortened,
    truncated,
    write_scores,
)
from premed.tracking.probe import Probe
from premed.tracking.provenance import process_tags, run_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

    from premed.contracts import Row

LEASES = "premed leases"
"""The MLflow experiment that holds the leases (`stage_leases`); no listing of runs shows it."""
_PAGE, _SERVERS = 1000, ("http", "databricks")  # servers decide where artifacts go


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

    @cached_property
    def probe(self) -> Probe:
        """Whether MLflow answers: asked before what waits long for it."""
        return Probe(self.uri)

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
            command = f"mlflow experiments restore -x {experiment.experiment_id}"
            command = f"MLFLOW_TRACKING_URI={shlex.quote(masked(self.uri))} {command}"
            raise UserError(f"experiment {name!r} was deleted in MLflow: restore it ({command}) or choose another name")
        mark(self.client, experiment, name == LEASES)
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
        all_tags = run_tags(digest, kind, parent, {name: truncated(value) for name, value in (tags or {}).items()})
        run = self.client.create_run(self.experiment(experiment), tags=all_tags, run_name=shortened(name))
        self.log_params(run.info.run_id, params or {}, known={})
        return run.info.run_id

    def log_params(self, run_id: str, params: Mapping[str, Any], known: Mapping[str, str] | None = None) -> None:
        """Logs the parameters that a run lacks: one whose process was killed when it had just begun has few or none.

        known: those that it has; None asks the store.
        """
        if known is None:
            known = self.client.get_run(run_id).data.params if params else {}
        for batch in batches(new_params(known, params), 100):
            self.client.log_batch(run_id, params=batch)

    def finish(self, run_id: str, status: str = "FINISHED", end_time: int | None = None) -> None:
        """Ends a run. `status`: FINISHED, FAILED or KILLED; `end_time` in ms (None: now)."""
        self.client.set_terminated(run_id, status, end_time)

    def reopen(self, run_id: str) -> None:
        """Sets an ended or abandoned run to RUNNING, with this process as its writer."""
        self.client.update_run(run_id, status="RUNNING")
        self.set_tags(run_id, process_tags())

    def restore(self, run_id: str) -> None:
        """Restores a deleted run. A deleted experiment is left so: MLflow would restore all that it ever had."""
        self.client.restore_run(run_id)

    def set_tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        for batch in batches([RunTag(name, truncated(value)) for name, value in tags.items()], 100):
            self.client.log_batch(run_id, tags=batch)

    def get(self, run_id: str) -> Run:
        return self._run(self.client.get_run(run_id))

    def find(self, digest: str, kind: str | None = None) -> Run | None:
        """Returns the newest finished run of that digest, or None."""
        tags = {"premed.digest": digest, **({"premed.kind": kind} if kind else {})}
        return next(self.search(tags, status="FINISHED", limit=1), None)

    def search(
        self,
        tags: Mapping[str, str],
        status: str | None = None,
        experiment: str | None = None,
        limit: int | None = None,
        condition: str | None = None,
    ) -> Iterator[Run]:
        """Yields runs that have `tags`, newest first, of one experiment or of all but that of leases.

        condition: a further one, in MLflow's language.
        """
        conditions = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        conditions += [condition] if condition else []
        conditions += [f"attributes.status = '{status}'"] if status else []
        ids, token, left = self._ids(experiment), None, limit or math.inf
        while ids and left > 0:
            page = self.client.search_runs(
                ids,
                " and ".join(conditions),
                max_results=int(min(left, _PAGE)),
                order_by=["attributes.start_time DESC"],
                page_token=token,
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

        A resumed stage logs its last steps again, at new times and with slightly other values, and each stage its whole
        curve at its end, which fills what an outage lost: steps that the metric has already are left out. NaN and
        infinity are left out and named in a tag.
        """
        run = self.client.get_run(run_id)
        new, non_finite = new_metrics(self.client, run, rows)
        for batch in batches(new, 1000):
            self.client.log_batch(run_id, metrics=batch)
        named = json.loads(run.data.tags.get("premed.nonfinite", "{}"))
        if non_finite.keys() - named.keys():
            self.set_tags(run_id, {"premed.nonfinite": json.dumps(non_finite | named)})

    def log_scores(self, run_id: str, rows: Sequence["Row"]) -> None:
        """Logs the table of scores, one row per case: `scores.json`, a table in MLflow's UI, and `scores.csv`."""
        with tempfile.TemporaryDirectory() as folder:
            content = write_scores(rows, folder)
            self.log_files(run_id, folder)
        table = json.dumps([{"path": "scores.json", "type": "table"}])
        self.set_tags(run_id, {SCORES_HASH: sha256(content).hexdigest(), "mlflow.loggedArtifacts": table})

    def scores(self, run_id: str) -> "list[Row]":
        """The rows of `log_scores`; undefined numbers are NaN."""
        return score_rows(self.columns(self.get(run_id)))

    def columns(self, run: Run) -> dict[str, list[Any]]:
        """Returns the table of `log_scores` by columns; undefined numbers are None.

        Raises ArtifactMissing if the store has it no more, or not whole.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = self.file(run, "scores.json", folder)
            try:
                return read_scores(path, run.tags.get(SCORES_HASH))
            except ValueError as error:
                raise ArtifactMissing(f"run {run.run_id}: its scores cannot be read ({error}); run it again") from None

    def file(self, run: Run, path: str, to: Path | str) -> Path:
        """Returns the run's file or folder of that name: where it is on this disk, else a download in `to`.

        Raises ArtifactMissing if the store has it no more.
        """
        folder = local_folder(run.artifact_uri, self.artifacts)
        if folder and (folder / path).exists():
            return folder / path
        if folder or path not in {each.path for each in self.client.list_artifacts(run.run_id)}:
            raise ArtifactMissing(f"run {run.run_id}: {folder or run.artifact_uri} has no {path} any more")
        return self.download(run.run_id, path, to)

    def log_files(self, run_id: str, folder_or_file: Path | str, path: str = "") -> None:
        """Logs a file, or all files of a folder, at `path` among the run's artifacts."""
        source = Path(folder_or_file)
        if not source.exists():
            raise FileNotFoundError(f"{source}: does not exist, so it cannot be logged")
        kept = self._repository(run_id)
        send = kept.log_artifacts if source.is_dir() else kept.log_artifact
        send(str(source), path or None)

    def download(self, run_id: str, path: str, to: Path | str) -> Path:
        """Downloads the run's file or folder `path` into the folder `to`, created if missing; returns where it is."""
        Path(to).mkdir(parents=True, exist_ok=True)
        return Path(self._repository(run_id).download_artifacts(path, str(to)))

    def _repository(self, run_id: str) -> "ArtifactRepository":
        return repository(str(self.client.get_run(run_id).info.artifact_uri), self.artifacts, self.uri)

    def log_datasets(self, run_id: str, entries: Sequence[Mapping[str, Any]]) -> None:
        """Logs entries `{name, digest, context, source, num_cases}`: "datasets used" in the UI."""
        self.client.log_inputs(run_id, dataset_inputs(entries))
