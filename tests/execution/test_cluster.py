"""What a cluster of Ray can hold, and an actor of it that is lost."""

from unittest.mock import MagicMock

import pytest

from premed.config.settings import Train
from premed.errors import StageFailed, UserError
from premed.execution.cluster import Remote, admit, nodes


@pytest.mark.parametrize(
    ("train", "words"), [({"workers": 64}, "64 workers need 64 CPUs"), ({"workers": 2, "gpu": True}, "2 GPUs")]
)
def test_what_can_never_be_placed_is_refused_in_one_line(monkeypatch, train, words):
    alive, dead = ({"Resources": {"CPU": 4.0}, "Alive": alive} for alive in (True, False))
    monkeypatch.setattr("ray.nodes", lambda: [alive, dead])
    with pytest.raises(UserError, match=f"^train.workers: .*{words} and the cluster has [40]; lower .*$"):
        admit(Train(**train))


def test_a_tracker_that_ray_ends_for_want_of_memory_ends_the_command_in_order(monkeypatch):
    from ray.exceptions import OutOfMemoryError

    def get(reference):
        raise OutOfMemoryError("10 worker(s) were killed")

    monkeypatch.setattr("ray.get", get)
    with pytest.raises(StageFailed, match="^the MLflow tracker's process ended; run the same command again to resume"):
        Remote(MagicMock(), "MLflow tracker").drain()


def test_a_tracker_that_cannot_start_says_why_and_is_not_to_be_tried_again(monkeypatch):
    from ray.exceptions import ActorDiedError, RayTaskError

    def get(reference):
        why = UserError("sqlite:///runs.db cannot be opened: no module named psycopg2")
        trace = f"ray::MLflowTracker.__init__()\n  File ...\npremed.errors.UserError: {why}"
        raise ActorDiedError(RayTaskError("MLflowTracker.__init__", trace, why))

    monkeypatch.setattr("ray.get", get)
    with pytest.raises(
        StageFailed, match=r"^the MLflow tracker's process does not start: .* no module named psycopg2$"
    ):
        Remote(MagicMock(), "MLflow tracker").drain()


def test_workers_that_an_autoscaler_may_still_start_count_as_there(monkeypatch):
    head, worker = {"CPU": 0.0, "memory": 9.0}, {"CPU": 8.0, "GPU": 1.0, "memory": 9.0}
    monkeypatch.setattr("ray.nodes", lambda: [{"Resources": each, "Alive": True} for each in (head, worker)])
    assert nodes() == [head, worker]
    monkeypatch.setenv("PREMED_NODES", "3 CPU=8 GPU=1")
    assert nodes() == [head, worker, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}]
    admit(Train(workers=3, cpus=8, gpu=True))
    admit(Train(workers=(3, 9), cpus=8, gpu=True))
    with pytest.raises(UserError, match="4 workers need 4 GPUs and the cluster has 3;"):
        admit(Train(workers=4, gpu=True))
    monkeypatch.setenv("PREMED_NODES", "many")
    with pytest.raises(UserError, match="^PREMED_NODES=many: write the largest number of worker nodes"):
        nodes()
