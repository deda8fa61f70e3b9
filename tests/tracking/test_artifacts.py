"""Artifacts of a home that was moved, and those that are gone."""

import shutil
import subprocess

import pytest
from support.stores import start

from premed.errors import UserError
from premed.tracking.artifacts import ArtifactMissing, refuse_moved
from premed.tracking.run_store import RunStore

pytest_plugins = ["support.store_fixtures"]

SCORES = [{"case": "a", "dice/1": 0.5}]


@pytest.fixture
def moved(store, tmp_path):
    """A run with scores in a home that was moved afterwards; and the store as it is opened now."""
    run_id = start(store)
    store.log_scores(run_id, SCORES)
    (tmp_path / "home").rename(tmp_path / "new home")
    return run_id, RunStore(f"sqlite:///{tmp_path}/new home/mlflow.db")


def test_a_moved_home_has_its_artifacts(moved, tmp_path):
    run_id, store = moved
    assert store.scores(run_id) == SCORES
    assert store.file(store.get(run_id), "scores.csv", tmp_path).is_relative_to(tmp_path / "new home")
    assert store.download(run_id, "", tmp_path / "all").joinpath("scores.csv").is_file()
    assert store.download(run_id, "scores.json", tmp_path / "one").read_bytes()[:1] == b"{"


def test_a_folder_that_only_its_owner_may_read_is_kept_as_others_are(store, tmp_path):
    """A temporary folder is 0700; those who share a home read what was made in it."""
    run_id, made = start(store), tmp_path / "made"
    made.mkdir(0o700)
    (made / "a.png").write_bytes(b"png")
    store.log_files(run_id, made, "pictures")
    kept = tmp_path / "home" / "artifacts"
    assert {oct(each.stat().st_mode & 0o777) for each in kept.rglob("*") if each.is_dir()} == {"0o755"}


def test_what_a_moved_home_logs_stays_inside_it(moved, tmp_path):
    _, store = moved
    run_id = start(store, "another")
    store.log_scores(run_id, SCORES)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"png")
    store.log_files(run_id, tmp_path / "pictures", "pictures")
    assert store.scores(run_id) == SCORES and not (tmp_path / "home").exists()
    assert store.file(store.get(run_id), "pictures", tmp_path / "to").joinpath("a.png").read_bytes() == b"png"


def test_a_model_of_a_moved_home_is_not_written_where_it_was(moved, tmp_path):
    run_id, store = moved
    with pytest.raises(UserError, match=f"MLflow keeps models in {tmp_path}/home, from where .*") as refusal:
        refuse_moved(store.get(run_id).artifact_uri, store.artifacts)
    subprocess.run(str(refusal.value).rpartition("moved: ")[2], shell=True, check=True)  # as it is told, with its blank
    assert (tmp_path / "home").readlink() == tmp_path / "new home"
    refuse_moved(store.get(run_id).artifact_uri, store.artifacts)


def test_a_new_home_at_the_old_place_does_not_hide_the_moved_one(moved, tmp_path):
    run_id, store = moved
    (tmp_path / "home" / "artifacts").mkdir(parents=True)
    assert store.scores(run_id) == SCORES


@pytest.mark.parametrize("gone", ["artifacts", "scores.json"])
def test_artifacts_that_are_gone_are_named_with_the_run(store, tmp_path, gone):
    run_id = start(store)
    store.log_scores(run_id, SCORES)
    (path,) = [path for path in (tmp_path / "home").rglob(gone) if gone == "scores.json" or "chest" not in path.parts]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ArtifactMissing, match=rf"run {run_id}: .* has no scores.json any more"):
        store.scores(run_id)


@pytest.mark.parametrize(
    "text", ["", '{"columns": ["case"', '{"columns": ["a", "b"], "data": [[1]]}', "[]", "\x00" * 40]
)
def test_a_torn_table_is_named_with_the_run(store, tmp_path, text):
    run_id = start(store)
    store.log_scores(run_id, SCORES)
    (path,) = (tmp_path / "home").rglob("scores.json")
    path.write_text(text)
    with pytest.raises(ArtifactMissing, match=rf"run {run_id}: its scores cannot be read .*; run it again"):
        store.scores(run_id)
