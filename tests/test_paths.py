"""paths.py: what a user may write as a path, and the URLs of databases below any folder."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.suite import examples

from premed import paths
from premed.errors import UserError
from premed.tracking.client import resolve_uri
from premed.tracking.run_store import RunStore, open_store
from premed.tuning.study_database import engine_settings

ODD = ["c?d=1&e", "a%20b", "100% ü#f"]  # a new database takes a second or two


def test_a_file_that_cannot_be_written_is_named_with_what_to_do(tmp_path):
    with (
        pytest.raises(
            UserError, match=rf"^--html {tmp_path}: cannot be written \(Is a directory\); name another file$"
        ),
        paths.writing(f"--html {tmp_path}"),
    ):
        tmp_path.write_text("a page")
    with pytest.raises(UserError, match=r"\(a disk\); make room$"), paths.writing("x", "make room"):
        raise OSError("a disk")


@pytest.mark.parametrize("name", ODD)
def test_a_home_of_any_name_holds_its_database_and_nothing_is_written_beside_it(name, tmp_path, monkeypatch):
    home = tmp_path / name
    monkeypatch.setenv("PREMED_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="does not exist yet"):
        open_store()
    home.mkdir(exist_ok=True)
    store = RunStore(paths.sqlite_url(home / "mlflow.db"), str(home / "artifacts"))
    run = store.client.create_run(store.experiment("chests"), run_name="one").info.run_id
    store.client.log_text(run, "text", "note.txt")
    assert (home / "mlflow.db").is_file() and list((home / "artifacts").rglob("note.txt"))
    assert open_store().get(run).name == "one", "a second process finds it"
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ODD)
def test_optuna_s_study_lies_in_the_home_too(name, tmp_path):
    import optuna

    (tmp_path / name).mkdir()
    url = paths.sqlite_url(tmp_path / name / "sweeps.db")
    optuna.create_study(storage=optuna.storages.RDBStorage(url, engine_kwargs=engine_settings(url)))
    assert (tmp_path / name / "sweeps.db").is_file() and [each.name for each in tmp_path.iterdir()] == [name]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r\t", exclude_categories=["Cc"]), min_size=1))
@settings(max_examples=examples(200))
def test_a_database_s_url_names_its_file(name):
    file = Path("/") / name.replace("/", "_") / "mlflow.db"
    assert paths.sqlite_file(paths.sqlite_url(file)) == file


def test_a_url_that_names_no_file_has_none():
    assert [paths.sqlite_file(url) for url in ("sqlite://", "sqlite:///", "http://host/x", "postgresql://h/d")] == [
        None,
        None,
        None,
        None,
    ]


def test_what_a_folder_s_message_proposes_is_a_store_below_that_folder(tmp_path):
    for uri in (f"file://{tmp_path}", str(tmp_path)):
        with pytest.raises(UserError) as refused:
            resolve_uri(uri)
        proposed = str(refused.value).rpartition("write ")[2]
        assert resolve_uri(proposed)[1] == tmp_path
        RunStore(proposed)
    assert (tmp_path / "mlflow.db").is_file()


@pytest.mark.parametrize("written", ["~/state", "$HOME/state", "${HOME}/state"])
def test_home_storage_and_root_are_expanded_alike(written, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setenv("PREMED_HOME", written)
    assert paths.home() == Path(paths.storage(written)) == paths.data_root(Path(written), "") == state
    assert resolve_uri(f"sqlite:///{written}/mlflow.db") == (f"sqlite:///{state}/mlflow.db", state)
    assert os.listdir(tmp_path) == ["state"]


@pytest.mark.parametrize("written", ["~/data", "data", "data/"])
def test_a_run_records_a_folder_below_premed_data_however_that_is_written(written, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREMED_DATA", written)
    assert paths.portable_path(tmp_path / "data" / "site" / "scans") == "${PREMED_DATA}/site/scans"


def test_a_variable_that_is_not_set_and_an_unknown_user_are_refused_by_field(monkeypatch):
    monkeypatch.delenv("SCRATCH", raising=False)
    monkeypatch.setenv("PREMED_HOME", "${SCRATCH}/premed")
    with pytest.raises(UserError, match=r"^PREMED_HOME: \$\{SCRATCH\}/premed needs the variable SCRATCH; set it"):
        paths.home()
    with pytest.raises(UserError, match=r"^train\.storage: ~nobody-here/x begins with a user that is not known"):
        paths.storage("~nobody-here/x")
