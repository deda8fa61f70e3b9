"""The command line: exit codes, one line on stderr, one JSON object on stdout."""

import json
import math
import os
import re
import subprocess
import sys
from contextlib import suppress
from importlib import metadata

import pytest
import yaml
from support.commands import shell
from support.experiments import SCRATCH, command, forked, run, runs_of, settle_in, tree, until
from support.stores import copied, free_port

from premed.cli import options
from premed.reporting import outcomes

pytest_plugins = ["support.experiment_fixtures"]


@pytest.fixture
def written(tmp_path, chest):
    """Writes the tiny experiment, with changes, as a YAML."""

    def write(*changes):
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree(chest, *changes)))
        return tmp_path / "tiny.yaml"

    return write


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "Missing argument"),
        (["frobnicate"], "No such command"),
        (["run", "--frobnicate"], "No such option"),
        (["run", "absent.yaml"], "absent.yaml: cannot be read"),
        (["run", "task=nothing"], "'nothing' is not one of brats"),
        (
            ["data", "phantom", "heart", "absent"],
            "heart: has no phantoms; choose one of brats, btcv, chestxray14, images, msd, nnunet",
        ),
        (["data", "phantom", "msd", "absent", "--num", "none"], "--num"),
        (["data", "phantom", "btcv", "/dev/null/x"], "/dev/null/x: cannot be written (Not a directory)"),
        (["data", "phantom", "images", "absent", "--kind", "bmp"], "kind: bmp is none of png, dicom, nifti"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(premed, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = premed(*arguments)
    assert code == 2 and out == "" and len(err) == 1
    assert err[0].startswith("premed: ") and words in err[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--finetune.lr", "0.1"], r"--finetune\.lr: fields are set without dashes, as finetune\.lr=VALUE$"),
        (["run", "a.yaml", "finetune.lr", "=", "0.1"], "(a.yaml|finetune.lr): "),
        (["runn", "a.yaml"], "No such command 'runn'.* There are init, run, sweep, demo, compare"),
        (["run"], r"Missing argument .* For example: premed run mine.yaml finetune.base_lr=1e-3"),
        (["predict"], r"Missing argument 'RUN'\. All of them: premed predict --help$"),
        (["fields", "finetune.learning_rat"], "finetune.learning_rat: no such field"),
    ],
)
def test_wrong_usage_is_told_the_right_one(premed, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = premed(*words)
    assert code == 2 and re.search(f"^premed: {message}", err[0]) and len(err) == 1


def test_the_fields_of_a_plug_in_say_where_those_of_each_are(premed):
    code, out, _ = premed("fields", "task")
    assert code == 0 and out.splitlines()[-1] == "the fields of each: premed fields task.brats, and so on"
    assert "and so on" not in premed("fields", "task.images")[1]


def test_the_version_is_printed(premed):
    assert premed("--version")[:2] == (0, f"premed {metadata.version('premed')}\n")


def test_help_keeps_what_is_in_brackets(premed):
    assert "pretext=[none,mae]" in premed("run", "--help")[1]


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "headnode", "127.0.0.1:1"])
def test_a_cluster_that_is_none_is_one_line_and_exit_code_2(premed, written, home, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    code, out, err = premed("run", written(), "train.workers=1")
    assert code == 2 and out == "" and err[-1].startswith(f"premed: RAY_ADDRESS={address}")


@pytest.mark.parametrize("change", ["pretrain.lr=fast", "pretext.mask=0.5", "train.workers=-1", "task.root=/absent"])
def test_a_wrong_field_is_named(premed, written, home, change):
    code, out, err = premed("run", written(), change)
    assert code == 2 and out == "" and len(err) == 1 and change.split("=")[0] in err[0]


def test_phantoms_are_not_written_among_other_files(premed, tmp_path):
    (tmp_path / "mine").touch()
    code, out, err = premed("data", "phantom", "msd", tmp_path)
    assert code == 2 and err == [f"premed: {tmp_path} is not empty; name a new folder"]
    code, _, err = premed("data", "phantom", "msd", tmp_path / "mine")
    assert code == 2 and err == [f"premed: {tmp_path / 'mine'} is a file; name a new folder"]
    code, _, err = premed("data", "phantom", "btcv", tmp_path / "new", "--kind", "dicom")
    assert code == 2 and err[0].startswith("premed: --kind dicom: is for the task images")


PLACES = {
    "btcv": "Training/label/label0005.nii.gz",
    "brats": "dataset.json",
    "chestxray14": "images/00000001_000.png",
    "images": "images/p0002_0.png",
    "msd": "imagesTr/hippocampus_001.nii.gz",
}


@pytest.mark.parametrize(("task", "file"), PLACES.items())
def test_phantoms_are_written_where_they_were_asked_for(premed, tmp_path, task, file):
    code, out, err = premed("data", "phantom", task, tmp_path / "new", "--num", 2, "--size", 16, "--seed", 3)
    assert (code, out, err) == (0, f"{tmp_path / 'new'}\n", []) and (tmp_path / "new" / file).is_file()
    assert "with seed 3" in (tmp_path / "new" / "PHANTOMS.txt").read_text()


def test_an_mlflow_that_does_not_answer_is_one_line(premed, written, home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    for workers in (0, 2):
        code, _, err = premed("run", written(), f"train.workers={workers}")
        assert code == 2 and err[-1].endswith("does not answer: start it or unset the variable")
    assert len(err) == 1  # and Ray was not started for it


def test_a_home_that_cannot_be_made_is_one_line(premed, written, home, monkeypatch):
    monkeypatch.setenv("PREMED_HOME", str(home / "mlflow.db" / "below"))
    code, _, err = premed("run", written())
    assert code == 2 and len(err) == 1 and "PREMED_HOME" in err[0]


def test_a_ray_job_must_say_where_its_home_is(premed, written, monkeypatch):
    monkeypatch.delenv("PREMED_HOME", raising=False)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    code, _, err = premed("run", written())
    assert code == 2 and len(err) == 1 and "PREMED_HOME is not set" in err[0]


def test_json_is_the_only_thing_on_stdout(premed, written, home):
    code, out, err = premed("run", written(SCRATCH, {"test": False}), "--json")
    assert code == 0 and len(out.splitlines()) == 1 and "fine-tuning: " in "\n".join(err)
    result = json.loads(out)
    assert result["strategy"] == "none" and result["score"] == "mauc" and result["run_id"]
    assert [stage["kind"] for stage in result["stages"]] == ["finetune"]


def test_what_a_library_prints_does_not_get_into_the_json(premed, written, home, monkeypatch):
    def chatty(*args):
        print("Downloading…")
        return {"where": "x", "num_images": 1, "megabytes": math.nan}

    monkeypatch.setattr("premed.execution.runner.prepare", chatty)
    code, out, err = premed("data", "prepare", written(), "--json")
    assert json.loads(out) == {"where": "x", "num_images": 1, "megabytes": None}
    assert code == 0 and err == ["Downloading…"]


def test_numbers_that_json_has_not_are_null():
    numbers = {"a": [math.nan, 1.5], "b": (math.inf, {"c": -math.inf}), "d": True}
    assert options.as_json_value(numbers) == {"a": [None, 1.5], "b": [None, {"c": None}], "d": True}


def test_a_run_that_fails_midway_is_one_line_and_exit_code_1(premed, written, home):
    code, out, err = premed("run", written(SCRATCH), "finetune.lr=1e30", "--json")
    assert code == 1 and out == ""
    assert err[-1].startswith("premed: finetune: the loss is not finite at step") and "Traceback" not in str(err)


def test_ctrl_c_in_a_command_is_exit_code_130(premed, written, home, monkeypatch):
    monkeypatch.setattr("premed.execution.runner.run", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    code, out, err = premed("run", written())
    assert code == 130 and err == ["premed: stopped"]


@pytest.mark.slow
def test_a_training_whose_progress_nobody_reads_any_more_goes_on_to_its_end(home, written):
    process, output = forked(home, "run", written(SCRATCH, {"test": False}))
    until(output, "fine-tuning on")
    output.close()
    process.join()
    assert process.exitcode == 0 and runs_of(home, "finetune")[0].status == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_so_it_does_as_a_command_and_its_json_is_whole(home, chest, tmp_path, workers):
    process = command(tmp_path, home, chest, SCRATCH, {"test": False}, arguments=[f"train.workers={workers}"])
    until(process.stderr, "fine-tuning on")
    process.stderr.close()
    out = process.stdout.read()
    assert process.wait() == 0 and json.loads(out)["stages"][0]["kind"] == "finetune"


@pytest.mark.slow
def test_a_comparison_is_written_in_ascii_and_to_a_reader_that_leaves(home, chest):
    for seed in (0, 1):
        run(chest, SCRATCH, {"finetune": {"epochs": 1, "seed": seed}})
    code, out, err = shell("premed compare", PYTHONIOENCODING="ascii")
    assert (code, err) == (0, "") and out.isascii() and "mean +- std" in out
    assert shell("premed compare | head -1 | wc -l") == (0, "1\n", "")


def test_the_ui_opens_the_store_in_use_to_this_machine_alone(premed, home, monkeypatch):
    called, told, environments = [], [], []
    monkeypatch.setattr(os, "execve", lambda _, command, env: [called.append(command), environments.append(env)])
    monkeypatch.setattr("premed.cli.services.subprocess.Popen", lambda command: told.extend(command))
    code, _, err = premed("ui", "--port", "5055")
    (command,) = called
    assert code == 0 and err == ["starting MLflow: its addresses follow once it answers"]
    assert told[-3:] == ["http://127.0.0.1:5055", "", "http://127.0.0.1:5055  (Ctrl-C ends it)"]
    assert command[command.index("--host") + 1] == "127.0.0.1" and f"sqlite:///{home}/mlflow.db" in command
    assert environments[0]["PYTHONSAFEPATH"] == "1"  # a random.py in this folder is not MLflow's


def test_the_ui_of_nothing_is_one_line(premed, tmp_path, monkeypatch):
    monkeypatch.setenv("PREMED_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, _, err = premed("ui")
    assert code == 2 and len(err) == 1 and "run an experiment first" in err[0]


def test_help_and_versions_do_not_wait_for_torch():
    code = "import sys; from premed.cli import app; sys.exit('torch' in sys.modules or 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_table_is_what_people_get(premed, written, home, monkeypatch):
    monkeypatch.setattr("premed.execution.runner.run", lambda experiment, show: {"stages": []})
    monkeypatch.setattr(outcomes, "show_outcomes", lambda found: print(f"a table of {len(found)}"))
    assert premed("run", written()) == (0, "a table of 1\n", [])


# ---- compare


@pytest.mark.slow
def test_compare_shows_real_runs_as_a_table_json_and_csv(premed, chest, home, tmp_path):
    for seed in (0, 1):
        run(chest, SCRATCH, {"finetune": {"epochs": 1, "seed": seed}})
    tested = runs_of(home, "test")
    code, out, err = premed("compare", "--json", "--csv", tmp_path / "all.csv")
    (row,) = json.loads(out)["tasks"][0]["blocks"][0]["rows"]
    assert code == 0 and row["num_seeds"] == 2 and row["strategy"] == "none"
    found = sorted(each["value"] for each in row["runs"])
    assert found == pytest.approx(sorted(each.metrics["test/mauc"] for each in tested))
    assert row["cost"]["finetune"]["device"] == "CPU" and row["cost"]["finetune"]["seconds"] > 0
    assert (tmp_path / "all.csv").read_text().startswith("task,part,head")
    code, out, err = premed("compare")
    assert code == 0 and "fewer than 3 seeds" in out and "none" in out


@pytest.mark.slow
@pytest.mark.whole
def test_the_page_of_real_runs_shows_their_pre_training_and_their_answers(
    premed, chest, mae_home, tmp_path, monkeypatch
):
    home = copied(mae_home[0], tmp_path / "home")
    settle_in(monkeypatch, home)
    run(chest, SCRATCH)
    code, _, _ = premed("compare", "--html", tmp_path / "page.html", "--ui", "http://127.0.0.1:5000")
    text = (tmp_path / "page.html").read_text()
    tested, _ = runs_of(home, "test")
    assert code == 0 and f"/runs/{tested.run_id}" in text
    assert text.count("data:image/png") == 4 + 10 + 56  # of the stages, of the best and worst cases, of all listed
    for shown in ("Pre-training and its gate", "seed 0: progress", "seed 0: reconstruction", "seed 0: probabilities"):
        assert shown in text
    code, _, err = premed("compare", "--html", tmp_path / "absent" / "page.html")
    assert code == 2 and len(err) == 1 and "its folder does not exist" in err[0]


def test_compare_without_a_store_is_one_line(premed, tmp_path, monkeypatch):
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "absent"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, out, err = premed("compare")
    assert code == 2 and out == "" and len(err) == 1 and "does not exist yet: run an experiment first" in err[0]
    assert premed("compare", "--part", "train")[2] == ["premed: --part train: write --part test or --part val"]


def test_on_a_terminal_the_first_seconds_show_that_something_is_under_way(tmp_path):
    (tmp_path / "a.yaml").write_text("encoderr: 1\n")
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "premed", "run", "a.yaml"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=theirs, env=os.environ | {"TERM": "xterm"}) as process:
        assert process.wait(60) == 2
    os.close(theirs)
    written = b""
    with suppress(OSError):  # the end of what a terminal was sent
        while part := os.read(ours, 4096):
            written += part
    os.close(ours)
    shown = written.decode()
    assert "reading a.yaml" in shown and shown.rstrip().splitlines()[-1].endswith("did you mean encoder?")
