"""The demo: what it prints last is true, its page is there, and its commands can be copied into the shell."""

import json
import os
import shlex
import sys
import webbrowser
from functools import partial
from pathlib import Path

import pytest
from support.commands import shell
from support.experiments import TINY, bare, settle_in
from support.pages import Page

from premed.cli import demo
from premed.config.compose import merge
from premed.data.phantoms.brain import write_brats
from premed.data.phantoms.writers import write_chestxray14

CHEST = merge(TINY, {"finetune": {"label_fraction": 0.5}, "task": {"size": 16, "stored": 16}})
MRI = merge(CHEST, {"task": None, "finetune": {"head": None}, "pretrain": {"augment": None}}) | {
    "task": {"name": "brats", "roi": (16, 16, 8), "spacing": (12.0, 12.0, 12.0), "val_share": 0.3, "test_images": True}
}
PROBE = {"head": {"name": "probe"}, "epochs": 1, "batch": 2, "lr": 1e-3, "label_fraction": 1.0}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A demo of two tasks and two seeds, in this process, without pictures."""
    settle_in(monkeypatch, tmp_path / "home")
    monkeypatch.delenv("PREMED_HOME")
    monkeypatch.chdir(tmp_path)
    bare(monkeypatch)
    pretrain = {"epochs": 1, "batch": 8, "lr": 1e-3, "validations": 1}
    mri = MRI | {"finetune": PROBE, "pretrain": pretrain}
    monkeypatch.setattr(demo, "TREES", (CHEST, mri))
    monkeypatch.setattr(demo, "SEEDS", {"chestxray14": range(2), "brats": range(2)})
    monkeypatch.setattr(demo, "MAE", TINY["pretext"])
    chest = partial(write_chestxray14, num_patients=16, seed=0, size=16, prevalence=0.4)
    brains = partial(write_brats, num_cases=12, num_unlabelled=2, seed=0, shape=(20, 20, 14))
    monkeypatch.setattr(demo, "WRITERS", {"chestxray14": chest, "Task01_BrainTumour": brains})


@pytest.mark.slow
def test_the_demo_ends_with_a_verdict_for_each_task_a_page_and_commands_that_run(tiny, tmp_path, capfd):
    result = demo.run(tmp_path / "demo")
    assert not [outcome for outcome in result["outcomes"] if "failure" in outcome]
    assert [line.split(":")[0] for line in result["verdicts"]] == ["chestxray14", "brats"]
    assert all("of pre-training on" in line and "none" in line for line in result["verdicts"])
    page = Page(Path(result["report"]).read_text())
    assert not page.open and "brats" in page.words and "chestxray14" in page.words
    progress = capfd.readouterr().err
    assert "drawing chestxray14: 16/16" in progress and "drawing Task01_BrainTumour: 14/14" in progress

    demo.show(result)
    printed = capfd.readouterr().out.rstrip().splitlines()
    assert printed[-1] == f"report: {os.path.join('demo', 'report.html')}"
    assert all(line in printed for line in result["verdicts"])
    code, out, err = shell(f"cd {shlex.quote(str(tmp_path))}; unset PREMED_HOME; {result['next'][0]} --json")
    assert code == 0, err
    assert {task["task"] for task in json.loads(out)["tasks"]} == {"brats", "chestxray14"}

    again = demo.run(tmp_path / "demo")  # what is finished is not done again
    assert again["verdicts"] == result["verdicts"]
    assert all(stage["reused"] for outcome in again["outcomes"] for stage in outcome["stages"])


def test_the_recipes_compare_three_tasks_over_at_least_three_seeds_two_experiments_at_once_on_two_cores():
    experiments = demo.experiments()
    for task in ("chestxray14", "btcv", "brats"):
        arms = {}
        for each in (each for each in experiments if each.task.name == task):
            arms.setdefault(each.strategy, []).append(each)
            assert each.train.workers == 1 and each.test
        assert [each.finetune.seed for each in arms["none"]] == [each.finetune.seed for each in arms["mae"]]
        assert len(arms["none"]) >= 3
        for none, mae in zip(arms["none"], arms["mae"], strict=True):  # everything but the strategy is the same
            assert none.finetune == mae.finetune and none.encoder == mae.encoder and none.task == mae.task
            assert none.pretrain is None
        assert len({each.pretrain.model_dump_json() for each in arms["mae"]}) == 1
    assert set(demo.WRITERS) == {"chestxray14", "btcv", "Task01_BrainTumour"}


@pytest.mark.parametrize(
    ("argv", "on_path", "words"),
    [
        (".venv/bin/premed", False, ".venv/bin/premed"),
        (".venv/bin/premed", True, "premed"),
        ("my env/bin/premed", False, "'my env/bin/premed'"),
        ("site-packages/premed/__main__.py", True, f"{sys.executable} -m premed"),
    ],
)
def test_commands_name_premed_as_this_shell_finds_it(monkeypatch, tmp_path, argv, on_path, words):
    """`make demo` does not activate .venv."""
    place = tmp_path / argv
    place.parent.mkdir(parents=True)
    place.write_text("")
    place.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(place), "demo"])
    monkeypatch.setenv("PATH", str(place.parent) if on_path else "/nowhere")
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "some demo/home"))
    assert demo.program() == words
    assert demo.next_commands()[0] == f"PREMED_HOME='some demo/home' {words} compare"


@pytest.mark.parametrize(
    ("environment", "terminal", "opened"),
    [
        ({"DISPLAY": ":0"}, True, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True, True),
        ({"DISPLAY": ":0"}, False, False),
        ({"DISPLAY": ":10", "SSH_CONNECTION": "10.0.0.1"}, True, False),
        ({}, True, False),
    ],
)
def test_the_page_is_opened_where_somebody_sits_before_a_desktop(monkeypatch, tmp_path, environment, terminal, opened):
    asked = []
    monkeypatch.setattr(webbrowser, "open", asked.append)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    demo.open_page(tmp_path / "report.html")
    assert asked == [(tmp_path / "report.html").as_uri()] * opened


def test_where_an_experiment_failed_there_is_no_verdict_and_no_page(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "draw_missing", lambda *given: None)
    monkeypatch.setattr(demo, "run_experiments", lambda printer: [{"failure": "a disk", "stages": []}])
    monkeypatch.setattr(webbrowser, "open", lambda url: pytest.fail("opened"))
    for name in ("PREMED_HOME", "PREMED_DATA"):
        monkeypatch.setenv(name, str(tmp_path))
    result = demo.run(tmp_path / "demo")
    assert result["report"] is None and result["verdicts"] == []
    demo.open_page(result["report"])
    demo.show(result)
    assert "No verdict: an experiment failed; the same command goes on" in capsys.readouterr().out
