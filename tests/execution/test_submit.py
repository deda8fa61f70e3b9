"""`premed submit`: what is uploaded, where, and which PREMED_HOME a job may have. A real cluster: test_jobs.py."""

import json
import os
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from support.experiments import TINY, tree
from support.stores import free_port
from support.suite import REPOSITORY

from premed.errors import UserError
from premed.execution import submit
from premed.paths import home, storage
from premed.tracking.provenance import commit

pytest_plugins = ["support.experiment_fixtures"]

MAE = "experiments/hippocampus/mae.yaml"


@pytest.fixture(autouse=True)
def told_of_no_cluster(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder, in use, with an experiment and its base in folders of their own."""
    for name, fields in (("shared/base", TINY), ("mine/a", {"base": "../shared/base.yaml"})):
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir()
        path.write_text(yaml.safe_dump(fields))
    (tmp_path / "scan.nii").write_bytes(b"x" * 10_000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def dashboard():
    """A server that takes packages and jobs as Ray's does: (address, packages, jobs), the latter as they come."""
    packages, jobs = [], []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, code=200, **content):
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            if self.path.startswith("/api/packages/"):
                return self.answer(404)
            return self.answer(ray_version="2.60.0", version="4", status="PENDING", type="SUBMISSION", entrypoint="")

        def do_PUT(self):
            packages.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer()

        def do_POST(self):
            jobs.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(job_id="job_1", submission_id="job_1")

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", packages, jobs
    server.shutdown()
    server.server_close()


def within(packages):
    """(name, bytes) of all files in packages."""
    archives = [ZipFile(BytesIO(package)) for package in packages]
    return sorted((each.filename, each.file_size) for archive in archives for each in archive.infolist())


def dry(premed, *arguments):
    code, out, err = premed("submit", "--dry-run", "--json", *arguments)
    assert (code, err) == (0, [])
    return json.loads(out)


# ---- what is uploaded


def test_a_checkout_is_uploaded_as_git_has_it_less_what_rayignore_names_and_is_small(premed, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    expected = {name for name in listed.stdout.splitlines() if not name.startswith(("tests/", "docs/"))}
    result = dry(premed, MAE, "pretext.mask_ratio=0.5")
    assert {file["name"] for file in result["files"]} == {name for name in expected if os.path.isfile(name)}
    assert result["entrypoint"] == f"python -m premed run {MAE} pretext.mask_ratio=0.5" and result["megabytes"] < 5
    assert result["env_vars"] == {"PYTHONPATH": "platform", "PREMED_COMMIT": commit()}


def test_a_yaml_of_the_checkout_is_the_uploaded_one_however_it_is_named(premed, monkeypatch):
    """An absolute path would be looked for on the cluster, which has none or another version of it."""
    monkeypatch.chdir(REPOSITORY)
    for named in (REPOSITORY / MAE, f"docs/../{MAE}"):
        assert dry(premed, str(named), "train.workers=2")["entrypoint"] == f"python -m premed run {MAE} train.workers=2"


def test_from_elsewhere_yamls_with_their_bases_and_the_premed_in_use_are_uploaded_and_nothing_else(premed, elsewhere):
    result = dry(premed, "mine/a.yaml", "train.workers=2")
    names = {file["name"] for file in result["files"]}
    parts = [path for path in submit.PACKAGE.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    package = {f"premed/{path.relative_to(submit.PACKAGE)}" for path in parts}
    assert names == {"mine/a.yaml", "shared/base.yaml"} | package
    assert result["entrypoint"] == "python -m premed run mine/a.yaml train.workers=2"


def test_all_bases_of_a_sweep_are_uploaded_and_theirs(premed, elsewhere):
    (elsewhere / "mine" / "small.yaml").write_text("train: {workers: 1}")
    (elsewhere / "mine" / "sweep.yaml").write_text("base: [a.yaml, small.yaml]\nspace: {finetune.lr: [0.1, 0.2]}")
    result = dry(premed, "sweep", "mine/sweep.yaml")
    yamls = {file["name"] for file in result["files"] if file["name"].endswith(".yaml")}
    assert yamls == {"mine/sweep.yaml", "mine/a.yaml", "mine/small.yaml", "shared/base.yaml"}


def test_a_yaml_above_the_folder_in_use_is_found_there_too(premed, elsewhere, monkeypatch):
    monkeypatch.chdir(elsewhere / "mine")
    result = dry(premed, "run", "a.yaml", "../shared/base.yaml", "--json")
    assert result["entrypoint"] == "python -m premed run mine/a.yaml shared/base.yaml --json"
    monkeypatch.chdir(REPOSITORY / "experiments")
    result = dry(premed, elsewhere / "shared" / "base.yaml")
    assert result["entrypoint"] == "python -m premed run base.yaml"


@pytest.mark.parametrize("checkout", [True, False])
def test_what_a_dry_run_lists_is_what_a_cluster_gets(premed, elsewhere, dashboard, monkeypatch, checkout):
    address, packages, jobs = dashboard
    if checkout:
        monkeypatch.chdir(REPOSITORY)
    arguments = ["--env", "PREMED_HOME=/mnt/a b", "run", MAE if checkout else "mine/a.yaml", "name=it's mine"]
    result = dry(premed, *arguments)
    code, out, _ = premed("submit", "--no-wait", "--address", address, *arguments)
    assert (code, out) == (0, "job_1\n")
    assert [(file["name"], file["bytes"]) for file in result["files"]] == within(packages)
    assert round(result["megabytes"] * 1e6) == sum(map(len, packages)) and len(packages) == (1 if checkout else 2)
    (job,) = jobs
    assert job["entrypoint"] == result["entrypoint"]
    assert job["runtime_env"]["env_vars"] == result["env_vars"] and result["env_vars"]["PREMED_HOME"] == "/mnt/a b"


def test_people_see_each_file_with_its_size_and_the_sum(premed, elsewhere):
    code, out, _ = premed("submit", "--dry-run", "--env", "A=1", "mine/a.yaml")
    lines = out.splitlines()
    assert code == 0 and lines[:2] == ["python -m premed run mine/a.yaml", "with A=1"]
    assert f"{(elsewhere / 'mine' / 'a.yaml').stat().st_size:>12,} mine/a.yaml" in lines
    assert "bytes in all, as Ray packs" in lines[-1]


def test_a_yaml_that_would_not_be_uploaded_is_named(premed, monkeypatch, tmp_path):
    monkeypatch.chdir(REPOSITORY)
    shutil.copy(MAE, tmp_path / "mae.yaml")
    shutil.copy("experiments/hippocampus/base.yaml", tmp_path)
    code, _, err = premed("submit", "--dry-run", tmp_path / "mae.yaml")
    assert code == 2 and len(err) == 1 and f"{tmp_path / 'mae.yaml'}: would not be uploaded" in err[0]


@pytest.mark.parametrize("folder", [".venv/etc", pytest.param("__pycache__", marks=pytest.mark.slow)])
def test_a_yaml_or_its_base_in_a_folder_that_ray_leaves_out_is_named(premed, elsewhere, folder):
    hidden = elsewhere / folder
    hidden.mkdir(parents=True)
    for name in ("mine", "shared"):
        shutil.move(elsewhere / name, hidden / name)
    code, _, err = premed("submit", "--dry-run", f"{folder}/mine/a.yaml")
    assert code == 2 and len(err) == 1
    assert f"{hidden}/" in err[0] and "would not be uploaded (it is ignored, or in a folder that Ray" in err[0]
    (elsewhere / "top.yaml").write_text(f"base: {folder}/shared/base.yaml\n")
    code, _, err = premed("submit", "--dry-run", "top.yaml")
    assert code == 2 and "would not be uploaded" in err[0]


@pytest.mark.slow
def test_an_upload_that_no_cluster_takes_names_its_largest_files(premed, elsewhere, monkeypatch):
    with (elsewhere / "mine/a.yaml").open("a") as file:
        file.write(f"# {os.urandom(2_000_000).hex()}\n")
    monkeypatch.setattr(submit, "LIMIT", 2_000_000)
    code, _, err = premed("submit", "--dry-run", "mine/a.yaml")
    assert code == 2 and len(err) == 1
    assert ".rayignore" in err[0] and "(the largest: mine/a.yaml (4 MB), " in err[0]


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ui"], "ui cannot be a job"),
        (["frobnicate"], "frobnicate is not a command; name one of bench, compare, data, demo"),
        (["absent.yaml"], "absent.yaml: cannot be read"),
        (["mine/a.yaml", "pretext.mask=1"], "pretext.mask: no such field"),
        (["--env", "PREMED_HOME", "mine/a.yaml"], "--env PREMED_HOME: is not NAME=VALUE"),
        (["--runtime-env", "absent.yaml", "mine/a.yaml"], "absent.yaml: cannot be read"),
        (["--runtime-env", "mine", "mine/a.yaml"], "mine: is a folder"),
        (["mine/a.yaml"], "no cluster is named: set RAY_ADDRESS, or --address"),
    ],
)
def test_what_makes_no_job_is_one_line_and_exit_code_2(premed, elsewhere, arguments, words):
    code, out, err = premed("submit", *arguments)
    assert (code, out) == (2, "") and len(err) == 1 and words in err[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("env_vars: [A=1]", "env_vars: is ['A=1']; write NAME: value"),
        ("env_vars: {DEBUG: true}", "env_vars.DEBUG: is True; write text, in quotes"),
        ("py_modules: 3", "py_modules: is 3; write a list of text"),
        ("excludes: data", "excludes: is 'data'; write a list of text, [data]"),
        ("exclude: [data]", "exclude: no such field of a runtime environment; Ray has "),
        ("working_dir: /nope", "working_dir: is what premed submit uploads by itself"),
    ],
)
def test_a_wrong_runtime_environment_is_one_line_that_names_its_file(premed, elsewhere, content, words):
    Path("env.yaml").write_text(content)
    code, out, err = premed("submit", "--dry-run", "--runtime-env", "env.yaml", "mine/a.yaml")
    assert (code, out) == (2, "") and len(err) == 1 and err[0].startswith(f"premed: env.yaml: {words}")


def test_numbers_among_the_variables_are_text_as_a_shell_has_them(premed, elsewhere):
    Path("env.yaml").write_text("env_vars: {OMP_NUM_THREADS: 2}\nexcludes: [data]")
    assert dry(premed, "--runtime-env", "env.yaml", "mine/a.yaml")["env_vars"]["OMP_NUM_THREADS"] == "2"


def test_an_address_on_the_command_line_counts_more_than_the_environment_s(premed, elsewhere, dashboard, monkeypatch):
    address, _, jobs = dashboard
    nobody = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    code, _, err = premed("submit", "mine/a.yaml")
    assert code == 2 and len(err) == 1 and f"{nobody} does not answer" in err[0]
    assert premed("submit", "--no-wait", "--address", address, "mine/a.yaml")[0] == 0 and len(jobs) == 1
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert premed("submit", "--no-wait", "mine/a.yaml")[0] == 0 and len(jobs) == 2


# ---- a job's home


@pytest.fixture
def job(tmp_path, monkeypatch):
    """This process is a job's, in its upload."""
    folder = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for name in ("PREMED_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("inside", [".premed", "{here}/.premed", "../_ray_pkg_0123/x"])
def test_a_job_keeps_nothing_in_its_upload(job, monkeypatch, inside):
    inside = inside.format(here=os.getcwd())
    monkeypatch.setenv("PREMED_HOME", inside)
    with pytest.raises(UserError, match=f"^PREMED_HOME: {inside} is in the Ray job's upload"):
        home()
    with pytest.raises(UserError, match=f"^train.storage: {inside} is in the Ray job's upload"):
        storage(inside)


def test_a_job_needs_a_home_outside_or_a_server_and_a_storage(job, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="^PREMED_HOME is not set"):
        home()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    with pytest.raises(UserError, match="^PREMED_HOME is not set"):
        home()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    with pytest.raises(UserError, match="^train.storage is not set, nor PREMED_HOME"):
        storage(None)
    assert storage("s3://bucket/premed") == "s3://bucket/premed" and storage(str(tmp_path)) == str(tmp_path)
    assert home().name == ".premed"
    monkeypatch.setenv("PREMED_HOME", str(tmp_path))
    assert (home(), storage(None)) == (tmp_path, f"{tmp_path}/checkpoints")


def test_a_run_without_a_storage_is_refused_before_anything_starts(job, premed, chest, monkeypatch, tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(tree(chest)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    code, _, err = premed("run", tmp_path / "a.yaml", "train.workers=2")
    assert code == 2 and len(err) == 1 and "train.storage is not set, nor PREMED_HOME" in err[0]


def test_the_commit_is_sent_with_the_job_which_has_no_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    monkeypatch.setenv("PREMED_COMMIT", "abc-dirty")
    assert commit() == "abc-dirty"
