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


def test_other_scores_are_not_the_same_work():
    outcome = {"stages": [{"value": None}, {"value": 0.75}]}
    assert whole.same_score(outcome, {"score": 0.75 + 1e-9}, 1e-6) == "test scores of 0.7500 and 0.7500"
    for other in (0.7501, float("nan")):
        with pytest.raises(NotTheSame, match="^test scores of"):
            whole.same_score(outcome, {"score": other}, 1e-6)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_premed_in_process_and_the_plain_script_have_the_same_test_score():
    (comparison,) = whole.experiments(Settings(short=True))
    assert len(set(re.findall(r"0\.\d+", comparison.same))) == 1 and comparison.clock == "wall"
