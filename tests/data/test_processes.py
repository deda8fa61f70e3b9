"""Processes that open images: one is killed, the command is stopped or killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import psutil
import pytest

from premed.data import processes
from premed.data.io.memory import num_cpus
from premed.data.processes import process_map
from premed.errors import UserError


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_one_line():
    with (
        pytest.raises(UserError, match="was killed, most likely because memory ran out; end other"),
        process_map() as m,
    ):
        list(m(die, range(4)))


def interrupt(number):
    """As a command that Ctrl-C reaches later than it reached the process that opens images."""
    os.kill(os.getppid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_that_the_command_hears_of_last_is_no_lack_of_memory(monkeypatch):
    monkeypatch.setattr(processes, "MOMENT", 30)  # which the signal ends

    def late(*_):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    before = signal.signal(signal.SIGUSR1, late), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), process_map() as m:
            list(m(interrupt, range(1)))
    finally:
        signal.signal(signal.SIGUSR1, before[0])
        signal.signal(signal.SIGINT, before[1])


WAITING = """
import signal, sys, time
from premed.data.io.memory import num_cpus
from premed.data.processes import process_map

def wait(number):
    print("waiting", flush=True)
    time.sleep(60)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    with process_map() as parallel:
        list(parallel(wait, range(100)))
"""


@pytest.fixture
def waiting(tmp_path):
    """A command whose processes are busy, in a process group of its own, as a terminal starts it."""
    script = tmp_path / "script.py"
    script.write_text(WAITING)
    command = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in range(max(int(num_cpus()), 1)):  # before that, a process may not know yet that Ctrl-C is none of its
        command.stdout.readline()
    children = psutil.Process(command.pid).children(recursive=True)
    yield command, children
    for each in children:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    command.kill()
    command.communicate()


def ended(children):
    _, alive = psutil.wait_procs(children, timeout=20)
    return bool(children) and not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(waiting):
    command, children = waiting
    command.kill()
    assert ended(children)


@pytest.mark.slow
def test_ctrl_c_ends_all_at_once_and_only_the_command_says_so(waiting):
    command, children = waiting
    began = time.monotonic()
    os.killpg(command.pid, signal.SIGINT)
    assert ended(children) and "KeyboardInterrupt" in (text := command.communicate(timeout=20)[1])
    assert text.count("Traceback") == 1 and time.monotonic() - began < 20
