"""Whole commands beside a plain script: what is timed, and what is not the same work."""

import math
import re

import pytest

from premed.benchmarks import whole
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
