"""Events travel through Ray actors, and anybody may import them."""

import inspect
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from premed import events
from premed.events import CheckpointSaved, Event, StageStarted

EVENTS = [kind for _, kind in inspect.getmembers(events, inspect.isclass) if issubclass(kind, Event)]


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_an_event_pickles_and_does_not_change(kind):
    event = kind(**{field.name: "x" for field in fields(kind)})
    assert pickle.loads(pickle.dumps(event)) == event
    with pytest.raises(FrozenInstanceError):
        event.experiment = "another"


def test_an_event_takes_on_the_experiment_run_and_stage_that_it_is_of():
    event = replace(CheckpointSaved(6), experiment="mae", run_id="abc", kind="pretrain")
    assert (event.step, event.experiment, event.run_id, event.kind) == (6, "mae", "abc", "pretrain")
    assert event != CheckpointSaved(6)
    with pytest.raises(TypeError, match="kind"):
        StageStarted(where="/x")


def test_events_are_imported_without_torch_ray_and_mlflow():
    code = "import sys, premed.events; print({'torch', 'ray', 'mlflow', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
