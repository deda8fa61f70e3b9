"""Errors as users read them."""

from premed.errors import first_line


def test_an_error_is_told_in_one_line():
    class OnWorkers(Exception):
        worker_failures = {1: RuntimeError("other"), 0: RuntimeError("Traceback:\n  File x\nKeyError: 'lungs'\n")}

    assert first_line(ValueError("first\nsecond")) == "first" and first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert first_line(OnWorkers("Training failed due to worker errors:")) == "KeyError: 'lungs'"
