"""A stage in this process: it waits after each validation until it may continue, and can be cancelled there."""

import pytest

from premed.errors import CalledOff
from premed.execution import executor
from premed.execution.executor import LocalExecutor


@pytest.fixture
def validating(monkeypatch):
    """A stage that is nothing but validations: the steps that it continued from."""
    continued = []

    def stage(job, events, reported, tasks):
        for step in (10, 20):
            reported({"step": step, "val/loss": 1.0})
            continued.append(step)

    monkeypatch.setattr(executor, "run_stage", stage)
    return continued


def test_a_stage_without_report_runs_to_its_end(validating):
    LocalExecutor(None, None).run_stage(None, None)
    assert validating == [10, 20]


def test_a_stage_waits_at_each_validation_until_it_may_continue(validating):
    answers, asked, pauses = iter([False, True, False, True]), [], []
    LocalExecutor(None, pauses.append).run_stage(None, None, lambda step: asked.append(step) or next(answers))
    assert asked == [10, 10, 20, 20] and len(pauses) == 2 and validating == [10, 20]


def test_a_cancelled_stage_ends_at_its_validation(validating):
    def pause(seconds):
        raise CalledOff

    with pytest.raises(CalledOff):
        LocalExecutor(None, pause).run_stage(None, None, lambda step: step < 20)
    assert validating == [10]
