"""Ctrl-C and SIGTERM in processes of their own: what the first one stops where; a second one leaves at once."""

import signal
import subprocess
import sys
import time

import pytest

HEAD = """
import os, signal, sys, time
from premed.training import stopping
stopping.install()

def say(text):
    print(text, flush=True)

def wait(condition):
    while not condition():
        time.sleep(0.01)
"""
BUSY = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2 * 10**9)"  # minutes in a library, which runs no handler meanwhile
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
LEFT = "premed: left at once; what was not saved yet is lost\n"


def started(code, preexec_fn=None):
    """The process, once it has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec_fn or heard,
    )
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def ended(process):
    """What it still says on stdout and stderr: `communicate` would lose what `readline` has read ahead."""
    output = process.stdout.read(), process.stderr.read()
    process.wait()
    return output


def heard():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background shell ignores it


@BOTH
def test_the_first_interrupts_what_is_no_training_where_it_is(number):
    process = started("""
try:
    say("ready")
    time.sleep(60)
except KeyboardInterrupt:
    say(f"interrupted {stopping.asked()}")
""")
    process.send_signal(number)
    assert ended(process) == ("interrupted True\n", "") and process.returncode == 0


@BOTH
def test_a_training_finishes_its_step_and_may_save_what_it_has(number):
    process = started("""
try:
    with stopping.deferred() as interrupted:
        say("ready")
        wait(interrupted)
        say("saved")
except KeyboardInterrupt:
    say(f"interrupted")
""")
    process.send_signal(number)
    assert ended(process)[0] == "saved\ninterrupted\n"


def test_a_validation_is_interrupted_by_a_signal_that_comes_in_it_or_came_before():
    for before in (False, True):
        process = started(f"""
with stopping.deferred() as interrupted:
    {'say("ready")' if before else "pass"}
    wait(interrupted) if {before} else None
    try:
        with stopping.interruptible():
            say("ready")
            time.sleep(60)
    except KeyboardInterrupt:
        say("saved")
    time.sleep(0.01)
    say("not interrupted once more")
    os._exit(0)
""")
        process.send_signal(signal.SIGINT)
        assert ended(process)[0] == "saved\nnot interrupted once more\n"


@BOTH
def test_a_second_one_leaves_at_once_also_from_a_library_that_does_not_return(number):
    process = started(f"""
import hashlib
with stopping.deferred():
    say("ready")
    {BUSY}
""")
    process.send_signal(signal.SIGINT)
    stopping = process.stderr.readline()
    assert stopping == "premed: stopping, after a checkpoint where one can be saved; again to leave at once\n"
    began = time.monotonic()
    process.send_signal(number)
    assert ended(process)[1] == LEFT and process.returncode == 130
    assert time.monotonic() - began < 30


def test_what_comes_twice_at_the_same_moment_is_one():
    """Some launchers pass on the Ctrl-C that the terminal has sent to the command already."""
    process = started("""
with stopping.deferred() as interrupted:
    say("ready")
    wait(interrupted)
    time.sleep(0.2)
    os._exit(3)
""")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == ("", "") and process.returncode == 3


def test_where_ctrl_c_is_ignored_it_stays_ignored():
    process = started(
        "say('ready'); time.sleep(0.5); say('done')", lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )
    process.send_signal(signal.SIGINT)
    assert ended(process) == ("done\n", "")


def test_signals_of_a_forked_process_are_its_own():
    process = started("""
for _ in range(2):
    if os.fork() == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    time.sleep(0.4)
ends = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)]
say("ready")
say(f"{ends} {stopping.asked()}")
""")
    assert ended(process)[0] == f"{[-signal.SIGTERM] * 2} False\n"


def test_without_the_command_line_ctrl_c_is_python_s():
    code = "stopping.deferred():\n    say('ready')\n    time.sleep(60)"
    process = started(f"signal.signal(signal.SIGINT, signal.default_int_handler)\nwith {code}")
    process.send_signal(signal.SIGINT)
    assert ended(process)[1].endswith("KeyboardInterrupt\n")
