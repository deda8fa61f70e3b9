"""A worker that is stuck ends itself, with its stacks; one that works, or waits where it may, does not."""

import threading
import time

import pytest
from support.forks import fork
from torch import nn, zeros

from premed.training.storage import StageStorage
from premed.training.watchdog import Watchdog, stuck_workers


def sleeping_in_a_step(seconds):
    time.sleep(seconds)


def work(folder, seconds, function):
    watchdog, encoder = Watchdog(StageStorage(folder, "stage"), 1, seconds), nn.Linear(1, 1)
    with watchdog.watching(encoder):
        function(watchdog, encoder)


def stuck(watchdog, encoder):
    encoder(zeros(1, 1))
    sleeping_in_a_step(60)


def busy(watchdog, encoder):
    for _ in range(15):
        encoder(zeros(1, 1))
        time.sleep(0.1)


def waiting(watchdog, encoder):
    watchdog.pausing(time.sleep)(1.5)
    encoder(zeros(1, 1))


def exit_code(tmp_path, seconds, function):
    process = fork.Process(target=work, args=(str(tmp_path), seconds, function))
    process.start()
    process.join(30)
    process.kill()
    return process.exitcode


def test_a_stuck_worker_ends_and_its_stack_says_where(tmp_path):
    assert exit_code(tmp_path, 0.5, stuck) == 1
    storage = StageStorage(str(tmp_path), "stage")
    (line,) = stuck_workers(storage)
    assert line.startswith("worker 1 was stuck for more than 0.5 s in sleeping_in_a_step (")
    assert "train.hang_timeout; its stacks: " in line
    (name,) = storage.names()
    text = storage.get(name).decode()
    assert text.index("in stuck\n") < text.index("in sleeping_in_a_step\n") < text.index("\npremed watchdog\n")
    assert stuck_workers(storage) == [], "reported once"


@pytest.mark.slow
@pytest.mark.parametrize("function", [busy, waiting])
def test_a_worker_that_works_or_may_wait_is_left_alone(tmp_path, function):
    assert exit_code(tmp_path, 0.5, function) == 0
    assert StageStorage(str(tmp_path), "stage").names() == []


def test_none_watches_nothing(tmp_path):
    def watching(seconds):
        with Watchdog(StageStorage(str(tmp_path), "stage"), 0, seconds).watching(nn.Linear(1, 1)):
            return "premed watchdog" in [thread.name for thread in threading.enumerate()]

    assert not watching(None) and watching(60)
