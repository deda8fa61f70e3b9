"""recorder.py: how long the end of a run waits for MLflow."""

from types import SimpleNamespace

import pytest
from support.experiments import experiment

from premed.execution.recorder import ExperimentRecorder


@pytest.mark.parametrize(("status", "longest"), [("FINISHED", 10), ("FAILED", 10), ("KILLED", 1)])
def test_a_stopped_command_waits_a_second_for_each_run_since_closing_delivers_all(status, longest):
    """Schedulers kill after 30 seconds: a stage's run and its experiment's may not take 20 of them without MLflow."""
    waited = []
    tracker = SimpleNamespace(
        finish=lambda run_id, status: None,
        wait_delivered=lambda run_id, timeout=10.0: waited.append(timeout),
    )
    recorder = ExperimentRecorder(experiment("chest"), None, tracker, lambda event: None)
    recorder.copies["run"] = ["folder"]
    recorder.end("run", status)
    assert waited == [longest] and recorder.copies == {"run": ["folder"]}  # MLflow has not read them yet
