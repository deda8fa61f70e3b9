"""Whole commands beside a plain script: what is timed, and what is not the same work."""

import math
import re

import pytest

from premed.benchmarks import demonstration, sweeping, whole
from premed.benchmarks.result import Times
from premed.benchmarks.settings import NotTheSame, Settings

SAYS = "import sys, time; print('a line', file=sys.stderr, flush=True); time.sleep(3); sys.exit({})"


def test_the_time_until_a_line_ends_with_the_line_and_not_with_the_process():
    times = whole.until(re.compile("^a line"), ["-c", SAYS.format(0)], {})
    assert 0 < times.wall < 3 and math.isnan(times.cpu)


@pytest.mark.parametrize(("line", "code"), [("^another line", 0), ("^a line", 3)])
def test_a_command_that_fails_or_never_says_the_line_has_no_time(line, code):
    with pytest.raises(NotTheSame, match=f"^exit code {code}: a line$"):
        whole.until(re.compile(line), ["-c", SAYS.format(code).replace("sleep(3)", "sleep(0)")], {})


def test_a_command_s_json_is_its_last_line_and_one_that_fails_is_no_time(tmp_path):
    times, found = whole.executed(["-c", "print('a line'); print('{\"score\": 0.5}')"], tmp_path)
    assert found == {"score": 0.5} and times.cpu > 0 and times.wall > 0
    with pytest.raises(NotTheSame, match="^exit code 1: NameError: name 'wrong' is not defined$"):
        whole.executed(["-c", "import sys; sys.tracebacklimit = 0; wrong"], tmp_path)


def test_other_losses_and_scores_are_not_the_same_work():
    outcome = {"stages": [{"value": None, "summary": {"val/loss": 0.8}}, {"value": 0.75}]}
    same = "losses of the pre-training on val of 0.8000 and 0.8000, test scores of 0.7500 and 0.7500"
    assert whole.same_training(outcome, {"loss": 0.8, "score": 0.75 + 1e-9}, same_sums=True) == same
    for other in (0.7501, float("nan")):
        with pytest.raises(NotTheSame, match="^test scores of"):
            whole.same_training(outcome, {"loss": 0.8, "score": other}, same_sums=True)
        assert "0.7500 and" in whole.same_training(outcome, {"loss": 0.81, "score": other}, same_sums=False)
    for other in (0.82, float("nan")):
        with pytest.raises(NotTheSame, match="^losses of"):
            whole.same_training(outcome, {"loss": other, "score": 0.75}, same_sums=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_premed_in_process_and_the_plain_script_have_the_same_test_score():
    (comparison,) = whole.experiments(Settings(short=True))
    assert len(set(re.findall(r"\d\.\d+", comparison.same))) == 2 and comparison.clock == "wall"


# ---- sweeps and the demo

FIELDS = [["finetune.lr=0.01"], ["finetune.lr=0.1"]]
TRIALS = [
    {"setting": {"finetune.lr": lr}, "values": [value], "stages": [{"digest": "a"}, {"digest": digest}]}
    for lr, value, digest in ((0.1, 0.5, "b"), (0.01, 0.25, "c"))
]


def test_a_sweep_whose_trials_have_other_scores_or_are_missing_is_not_the_same_work():
    result, summaries = {"metrics": ["val/auc"], "trials": TRIALS}, [{"val/auc": 0.25}, {"val/auc": 0.5}]
    assert sweeping.same_scores(result, summaries, FIELDS) == "equal scores of 2 trials on val, of 3 stages"
    with pytest.raises(NotTheSame, match=r"^finetune.lr=0.1: val/auc of 0.5000 and 0.6000$"):
        sweeping.same_scores(result, [summaries[0], {"val/auc": 0.6}], FIELDS)
    failed = [TRIALS[0], TRIALS[1] | {"values": None}]
    for trials in (TRIALS[:1], failed):
        with pytest.raises(NotTheSame, match=r"^finetune.lr=0.01: val/auc of nan and 0.2500$"):
            sweeping.same_scores(result | {"trials": trials}, summaries, FIELDS)


def test_a_demo_without_a_verdict_for_each_task_is_no_time(monkeypatch, tmp_path):
    found = {"outcomes": [{"task": "btcv"}, {"task": "brats"}], "verdicts": ["one"], "report": "page.html"}
    monkeypatch.setattr(demonstration, "executed", lambda *_: (Times(1, 2), found))
    with pytest.raises(NotTheSame, match=r"^1 verdicts on 2 tasks; page: page.html$"):
        demonstration.once(Settings(), tmp_path)
    found["verdicts"] = ["one", "two"]
    assert demonstration.once(Settings(), tmp_path) == (Times(1, 2), (2, 2))


def test_without_ray_neither_is_measured(monkeypatch):
    for module, row in ((sweeping, sweeping.sweep), (demonstration, demonstration.demo)):
        monkeypatch.setattr(module, "lacking", lambda cores: "ray is not installed")
        assert [each.why for each in row(Settings())] == ["ray is not installed"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("row", [sweeping.sweep, demonstration.demo])
def test_a_small_sweep_and_a_small_demo_are_measured(row):
    (comparison,) = row(Settings(short=True))
    assert comparison.clock == "wall" and re.search(
        "2 trials on val, of 3 stages|a page and 1 verdict", comparison.same
    )
